"""Sharded execution: layouts, plans, and what is sent between processes."""
