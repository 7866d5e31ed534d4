"""Our messages in the log of Flower's processes, without those of every library there."""

from __future__ import annotations

import logging


def show_log() -> None:
    """Show the logger ``fednml`` on stderr; calling it again changes nothing."""
    logger = logging.getLogger("fednml")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fednml: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
