"""Which symmetries each rule has: declared per slot, combined per rule, tested in both directions.

A rule is equivariant, f(g M) = g f(M), under what all of its slots are equivariant under, and
invariant, f(g M) = f(M), under what its first slot is. Momentum is linear and keeps everything. So
the declaration belongs to the slots, in `DECLARATIONS`: it needs no field on the rule, leaves
`repr` and fingerprints alone, and stays true when a slot is replaced. Some answers depend on the
shape (Aurora treats tall matrices only), hence the m and n. For a rule with memory the statement is
about whole runs: the transformation acts on every gradient.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import torch

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.chaotic import Chaotic
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.one_sided import OneSidedPolar
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import ZoloPD
from polarlight.rule import Rule, Slot, UpdateRule
from polarlight.rules.aurora import BalancedPolar
from polarlight.rules.aurora_exact import ExactBalanced
from polarlight.rules.aurora_paper import FeedbackPolar
from polarlight.rules.aurora_warm import WarmPolar
from polarlight.rules.freon import OwnSize, SizedPower
from polarlight.rules.polargrad import AveragedPolar, NuclearPolar
from polarlight.rules.riemannian_aurora import RiemannianPolar
from polarlight.stages.adam import AdamDirection
from polarlight.stages.centre import Centred
from polarlight.stages.equilibrate import (
    EquilibrateBoth,
    EquilibrateColumns,
    EquilibrateRows,
    PhaseSwitch,
)
from polarlight.stages.orientation import Columns, Oriented
from polarlight.stages.renormalise import KeepNorm, MatchRms, PolarNorm
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.second_moment import RowSecondMoment
from polarlight.stages.shampoo import Shampoo
from polarlight.stages.side import Identity, OnSide


class Symmetry(StrEnum):
    """What may be done to every gradient of a matrix.

    Permutations, signs and rotations of rows (LEFT) or columns (RIGHT) come out as they went in. A
    SHARED_SHIFT 1 a' and positive rescalings of rows or columns are not seen at all. HORIZONTAL
    says of the update itself that its columns sum to zero.
    """

    LEFT_PERMUTATIONS = "rows permuted"
    LEFT_SIGNS = "rows negated"
    LEFT_ROTATIONS = "rows rotated"
    RIGHT_PERMUTATIONS = "columns permuted"
    RIGHT_SIGNS = "columns negated"
    RIGHT_ROTATIONS = "columns rotated"
    SHARED_SHIFT = "shared shift ignored"
    HORIZONTAL = "columns sum to zero"
    ROW_RESCALING = "row sizes ignored"
    COLUMN_RESCALING = "column sizes ignored"


Group = frozenset[Symmetry]

_ROWS_PERMUTED = frozenset({Symmetry.LEFT_PERMUTATIONS})
LEFT_SIGNED: Group = _ROWS_PERMUTED | {Symmetry.LEFT_SIGNS}
RIGHT_SIGNED: Group = frozenset({Symmetry.RIGHT_PERMUTATIONS, Symmetry.RIGHT_SIGNS})
RIGHT: Group = RIGHT_SIGNED | {Symmetry.RIGHT_ROTATIONS}
LEFT: Group = LEFT_SIGNED | {Symmetry.LEFT_ROTATIONS}
ROTATIONS: Group = LEFT | RIGHT
SIGNED: Group = LEFT_SIGNED | RIGHT_SIGNED
ROWS: Group = LEFT_SIGNED | RIGHT
"""Rows are units of their own, columns a space: permutations with signs, and rotations."""

_NEGATED = frozenset({Symmetry.LEFT_SIGNS, Symmetry.RIGHT_SIGNS})
_IGNORED = frozenset({Symmetry.SHARED_SHIFT, Symmetry.ROW_RESCALING, Symmetry.COLUMN_RESCALING})
_SIZES_IGNORED = frozenset({Symmetry.ROW_RESCALING, Symmetry.COLUMN_RESCALING})
_OUTPUT = frozenset({Symmetry.HORIZONTAL})
_SHARED = frozenset({Symmetry.SHARED_SHIFT, Symmetry.HORIZONTAL})
_MIRROR = {
    Symmetry.LEFT_PERMUTATIONS: Symmetry.RIGHT_PERMUTATIONS,
    Symmetry.LEFT_SIGNS: Symmetry.RIGHT_SIGNS,
    Symmetry.LEFT_ROTATIONS: Symmetry.RIGHT_ROTATIONS,
    Symmetry.ROW_RESCALING: Symmetry.COLUMN_RESCALING,
}
_MIRROR |= {right: left for left, right in _MIRROR.items()}


def symmetries(rule: Rule, m: int, n: int) -> Group:
    """The symmetries of a rule on m x n matrices, up to its relative floors.

    Raises:
        ValueError: If a slot of the rule is not in `DECLARATIONS`.
    """
    if not isinstance(rule, UpdateRule):
        return SIGNED | _SIZES_IGNORED
    first, *rest = _slots(rule)
    group = of_slot(first, m, n)
    for slot in rest:
        following = of_slot(slot, m, n)
        both = (group & following) - _IGNORED - _OUTPUT
        group = both | (group & _IGNORED) | (following & _OUTPUT)
    return group


def degree(rule: Rule, m: int, n: int) -> float:
    """The d with f(c M) = c^d f(M) for all c > 0: 0 where the scale of gradients cancels."""
    if not isinstance(rule, UpdateRule):
        return 0.0
    product = 1.0
    for slot in _slots(rule):
        product *= _degree(slot, m, n)
    return product


def of_slot(slot: Slot, m: int, n: int) -> Group:
    """The symmetries of one slot.

    Raises:
        ValueError: If its type is not in `DECLARATIONS`.
    """
    if type(slot) not in DECLARATIONS:
        raise ValueError(
            f"{type(slot).__name__} declares no symmetries: add an entry for it to "
            "polarlight.properties.symmetry.DECLARATIONS"
        )
    return DECLARATIONS[type(slot)](slot, m, n)


def _slots(rule: UpdateRule) -> list[Slot]:
    return [*(() if rule.balance is None else (rule.balance,)), rule.map, *rule.post]


def _mirrored(group: Group) -> Group:
    """The group of f(M')', as far as the vocabulary has words for it."""
    return frozenset(_MIRROR[symmetry] for symmetry in group if symmetry in _MIRROR)


Declaration = Callable[[Any, int, int], Group]


def _always(group: Group) -> Declaration:
    return lambda slot, m, n: group


def _polynomial(slot: Any, m: int, n: int) -> Group:
    """Divided by a number, all; by numbers per row or column of the short side, less there."""
    if slot.normalisation.scalar:
        return ROTATIONS
    return LEFT | RIGHT_SIGNED if m > n else LEFT_SIGNED | RIGHT


def _balanced(slot: Any, m: int, n: int) -> Group:
    return (of_slot(slot.polar, m, n) & ROWS) | {Symmetry.ROW_RESCALING}


def _feedback(slot: Any, m: int, n: int) -> Group:
    """The first scaling is |M_i|^-(1 - damping), so that sizes matter unless damping is zero."""
    group = of_slot(slot.polar, m, n) & ROWS
    return group if slot.damping else group | {Symmetry.ROW_RESCALING}


def _rotated_adam(slot: Any, m: int, n: int) -> Group:
    """Adam in bases that turn with the gradient, on the sides that have bases.

    The first gradient chooses min(m, n) vectors of each. Where the longer side needs two or more
    beyond them, these are somebody else's choice and do not turn with it.
    """
    if min(m, n) > slot.max_side:
        return SIGNED | _SIZES_IGNORED
    turning, fixed = (LEFT, RIGHT_SIGNED) if m < n else (RIGHT, LEFT_SIGNED)
    if max(m, n) > slot.max_side:
        return turning | fixed
    return ROTATIONS if abs(m - n) <= 1 else turning | (fixed & _NEGATED)


def _on_side(slot: OnSide, m: int, n: int) -> Group:
    if not slot.side.touches(m, n):
        return of_slot(slot.otherwise, m, n)
    return of_slot(slot.then, m, n) if m > n else _mirrored(of_slot(slot.then, n, m))


def _centred(slot: Centred, m: int, n: int) -> Group:
    """Projections commute with what acts on columns and with permutations of rows."""
    kept = _ROWS_PERMUTED | RIGHT | {Symmetry.COLUMN_RESCALING}
    return (of_slot(slot.inner, m, n) & kept) | _SHARED


def _oriented(slot: Oriented, m: int, n: int) -> Group:
    """In pairs, rows alone are no units any more, and columns act on both halves alike.

    A map that takes nothing but lengths from its rows does not see the sign of half a row.
    """
    p, q = slot.orientation.shape(torch.Size((m, n)))
    inner = of_slot(slot.inner, p, q)
    if isinstance(slot.orientation, Columns):
        return _mirrored(inner)
    group = inner & (RIGHT | _SHARED | {Symmetry.COLUMN_RESCALING})
    lengths_only = isinstance(slot.inner, EquilibrateRows)
    return group | {Symmetry.LEFT_SIGNS} if lengths_only else group


DECLARATIONS: dict[type, Declaration] = {
    **dict.fromkeys(
        (AutoPolar, ExactPolar, EigenPolar, RegularisedPolar, OneSidedPolar, QDWH, ZoloPD),
        _always(ROTATIONS),
    ),
    **dict.fromkeys((ExactPower, RationalPower, SizedPower, Chaotic), _always(ROTATIONS)),
    **dict.fromkeys((MatchRms, PolarNorm, Identity, Shampoo), _always(ROTATIONS)),
    **dict.fromkeys((NewtonSchulz, GramNewtonSchulz), _polynomial),
    **dict.fromkeys((BalancedPolar, WarmPolar), _balanced),
    **dict.fromkeys(
        (NuclearPolar, AveragedPolar), lambda slot, m, n: of_slot(slot.polar, m, n) & ROTATIONS
    ),
    EquilibrateRows: _always(ROWS | {Symmetry.ROW_RESCALING}),
    EquilibrateColumns: _always(LEFT | RIGHT_SIGNED | {Symmetry.COLUMN_RESCALING}),
    EquilibrateBoth: _always(SIGNED),
    RowSecondMoment: _always(ROWS | {Symmetry.ROW_RESCALING}),
    AdamDirection: _always(SIGNED | _SIZES_IGNORED),
    FeedbackPolar: _feedback,
    **dict.fromkeys(
        (RiemannianPolar, ExactBalanced), lambda slot, m, n: of_slot(slot.polar, m, n) & ROWS
    ),
    RotatedAdam: _rotated_adam,
    PhaseSwitch: lambda slot, m, n: of_slot(slot.first, m, n) & of_slot(slot.then, m, n),
    KeepNorm: lambda slot, m, n: of_slot(slot.inner, m, n) - _IGNORED,
    OnSide: _on_side,
    Centred: _centred,
    Oriented: _oriented,
}
"""(slot, m, n) -> the symmetries of a slot of that type; extend it for slots of your own."""

_DEGREES: Mapping[type, Callable[[Any, int, int], float]] = {
    NuclearPolar: lambda slot, m, n: slot.power,
    AveragedPolar: lambda slot, m, n: 1.0,
    SizedPower: lambda slot, m, n: slot.power.exponent if isinstance(slot.size, OwnSize) else 0.0,
    Identity: lambda slot, m, n: 1.0,
    KeepNorm: lambda slot, m, n: 1.0,
    Centred: lambda slot, m, n: _degree(slot.inner, m, n),
    Oriented: lambda slot, m, n: _degree(slot.inner, *slot.orientation.shape(torch.Size((m, n)))),
    OnSide: lambda slot, m, n: _degree(slot.chosen(m, n), max(m, n), min(m, n)),
}


def _degree(slot: Slot, m: int, n: int) -> float:
    """The degree of one slot; 0 unless it is one of the few that keep a size."""
    declared = _DEGREES.get(type(slot))
    return 0.0 if declared is None else declared(slot, m, n)
