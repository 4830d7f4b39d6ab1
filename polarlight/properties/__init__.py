"""Symmetries and invariants of the updates of a rule, declared and measurable."""

from polarlight.linalg.properties import Invariant, Symmetry
from polarlight.properties.invariants import invariants
from polarlight.properties.measures import measure
from polarlight.properties.symmetry import degree, symmetries

__all__ = ["Invariant", "Symmetry", "degree", "invariants", "measure", "symmetries"]
