"""Where and in which batch directions are computed."""
