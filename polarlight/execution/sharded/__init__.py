"""Sharded execution: layouts, plans, and the exchange of shards between processes."""
