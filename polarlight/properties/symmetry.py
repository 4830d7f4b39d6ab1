"""Symmetries of a rule, combined from what its slots declare.

A rule is equivariant, f(g M) = g f(M), under what all of its slots are equivariant under, and
invariant, f(g M) = f(M), under what its first slot is. Momentum is linear and keeps everything.
Some answers depend on the shape (Aurora treats tall matrices only), hence the m and n. For a rule
with memory the statement is about whole runs: the transformation acts on every gradient. Tests hold
every declaration in both directions.
"""

from polarlight.linalg.properties import SHARED, SIGNED, SIZES_IGNORED, Symmetries, Symmetry
from polarlight.rule import Rule, UpdateRule

_INPUT = SIZES_IGNORED | {Symmetry.SHARED_SHIFT}
_OUTPUT = SHARED - {Symmetry.SHARED_SHIFT}


def symmetries(rule: Rule, m: int, n: int) -> Symmetries:
    """Return the symmetries of a rule on m x n matrices, up to its relative floors."""
    if not isinstance(rule, UpdateRule):
        return SIGNED | SIZES_IGNORED
    first, *rest = rule.slots
    group = first.symmetries(m, n)
    for slot in rest:
        following = slot.symmetries(m, n)
        both = (group & following) - _INPUT - _OUTPUT
        group = both | (group & _INPUT) | (following & _OUTPUT)
    return group


def degree(rule: Rule, m: int, n: int) -> float:
    """Return the d with f(c M) = c^d f(M) for all c > 0: 0 where the scale of gradients cancels."""
    if not isinstance(rule, UpdateRule):
        return 0.0
    product = 1.0
    for slot in rule.slots:
        product *= slot.degree(m, n)
    return product
