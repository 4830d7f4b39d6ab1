"""One claim, one file."""
