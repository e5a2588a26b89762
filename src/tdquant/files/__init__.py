"""Files: whole or not at all, versioned, digested; and those of others, read safely."""
