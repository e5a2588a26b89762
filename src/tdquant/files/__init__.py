"""Files: atomic, versioned and digested ones of our own; foreign ones, read safely."""
