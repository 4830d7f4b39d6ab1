"""Execution: the place and batch in which directions are computed."""
