"""Label files as hospitals have them: from the bytes of a table to labels, patients and sites."""
