"""Images decoded once: found by content, kept as one array, mapped into memory."""
