"""Invariants of the updates of a rule, combined from what its slots declare.

The last slot that shapes a matrix decides: a polar factor after row normalisation is a partial
isometry, row normalisation after a polar factor has equal rows. `diagnostics.rule_check` samples a
run for them. A measure (`properties/measures.py`) is zero when the invariant is kept exactly.
Limits leave room for rounding and for the polynomials of the rule's own engine: five of Jordan's
steps keep singular values within a factor of 1.7 of one another, and are not asked for more.
"""

import torch

from polarlight.linalg.properties import Invariant, Invariants, usual_limits
from polarlight.rule import Rule, UpdateRule
from polarlight.stages.side import Identity

ROUNDING = 8
"""How many epsilons of its dtype an engine may mix singular directions by."""

UNWEIGHTED = 0.4
"""For singular values where it is not known which directions the momentum determines."""

_OF_INPUT = {Invariant.SPECTRAL, Invariant.ROWS_SCALED, Invariant.COLUMNS_SCALED}
"""Invariants that compare a slot's result with its own input."""

_ROUNDED = _OF_INPUT | {Invariant.REPEATS}
"""Invariants that the rounding of an engine breaks a little."""

_CPU = torch.device("cpu")


def invariants(
    rule: Rule,
    m: int,
    n: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = _CPU,
) -> Invariants:
    """Return what a rule keeps on m x n matrices of a dtype on a device, with limits.

    `SPECTRAL` is about the balanced momentum, if the balance has no memory.
    """
    if not isinstance(rule, UpdateRule):
        return usual_limits(Invariant.FINITE, Invariant.MOVES)
    kept = _of_slots(rule, m, n)
    if Invariant.ISOMETRY in kept and not _OF_INPUT & kept.keys():
        kept = {**kept, Invariant.ISOMETRY: max(UNWEIGHTED, kept[Invariant.ISOMETRY])}
    if is_repeatable(rule, m, n):
        kept = {**kept, **usual_limits(Invariant.REPEATS)}
    moves = all(slot.moves(m, n) for slot in rule.slots)
    kept = {**kept, **usual_limits(Invariant.FINITE, *([Invariant.MOVES] if moves else []))}
    dtypes = {dtype, *(slot.iteration_dtype(m, n, dtype, device) for slot in rule.slots)}
    rounding = max(ROUNDING * torch.finfo(x).eps for x in dtypes)
    return {k: max(limit, rounding) if k in _ROUNDED else limit for k, limit in kept.items()}


def is_repeatable(rule: UpdateRule, m: int, n: int) -> bool:
    """Return whether an m x n direction can be computed again, without buffers."""
    return all(slot.repeatable(m, n) or slot.rescales_rows(m, n) for slot in rule.slots)


def _of_slots(rule: UpdateRule, m: int, n: int) -> Invariants:
    """Return what is left of the slots' own invariants after the last of them."""
    known = rule.balance is None or not rule.balance.buffer_shapes(torch.Size((m, n)))
    kept = usual_limits(Invariant.SPECTRAL) if known else {}
    for slot in (rule.map, *rule.post):
        if not slot.only_rescales(m, n):
            own = slot.invariants(m, n)
            spectral = Invariant.SPECTRAL in kept
            kept = own if spectral else {k: v for k, v in own.items() if k not in _OF_INPUT}
        elif not isinstance(slot.select(m, n), Identity):
            kept = {k: v for k, v in kept.items() if k != Invariant.SIZE}
    return kept
