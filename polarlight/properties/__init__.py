"""Symmetries and invariants of the updates of a rule, declared and measurable."""
