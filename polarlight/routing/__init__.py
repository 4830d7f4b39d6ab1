"""Routing: the role of each parameter, the rule it gets, and the reason."""
