"""What each rule promises of its updates: declared per slot, combined per rule, and measurable.

The last slot that shapes a matrix decides: a polar factor after row normalisation is a partial
isometry, row normalisation after a polar factor has equal rows. `diagnostics.rule_check` samples a
run for them. A measure is zero when the promise is kept exactly. Limits leave room for rounding to
bfloat16 and for the polynomials of the rule's own engine: five of Jordan's steps keep singular
values within a factor of 1.7 of one another, and are not asked for more.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.chaotic import Chaotic
from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.matrices import unit_scale
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.rows import row_norms
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import ZoloPD
from polarlight.rule import Rule, Slot, UpdateRule
from polarlight.rules.aurora import BalancedPolar
from polarlight.rules.aurora_exact import ExactBalanced
from polarlight.rules.aurora_paper import FeedbackPolar
from polarlight.rules.aurora_warm import WarmPolar
from polarlight.rules.freon import SizedPower
from polarlight.rules.polargrad import NuclearPolar
from polarlight.rules.riemannian_aurora import RiemannianPolar
from polarlight.stages.centre import Centred
from polarlight.stages.equilibrate import EquilibrateColumns, EquilibrateRows
from polarlight.stages.orientation import Columns, Oriented
from polarlight.stages.renormalise import KeepNorm, MatchRms, PolarNorm
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.stages.second_moment import RowSecondMoment
from polarlight.stages.side import Identity, OnSide


class Promise(StrEnum):
    """What holds of the update D of a momentum M."""

    FINITE = "finite"
    MOVES = "zero only where the momentum is"
    ISOMETRY = "singular values equal"
    SPECTRAL = "singular vectors of the momentum"
    EQUAL_ROWS = "rows of equal norm"
    EQUAL_COLUMNS = "columns of equal norm"
    CENTRED = "columns sum to zero"


LIMITS = {
    Promise.FINITE: 0.0,
    Promise.MOVES: 0.0,
    Promise.ISOMETRY: 0.3,
    Promise.SPECTRAL: 0.15,
    Promise.EQUAL_ROWS: 0.35,
    Promise.EQUAL_COLUMNS: 0.35,
    Promise.CENTRED: 0.05,
}
"""The largest value of each measure that counts as kept, unless the engine is less exact."""

SLACK = 1.1
"""What rounding to bfloat16 may add to the spread that a schedule leaves in exact arithmetic."""

REACH = 1e-2
"""The least singular value, over the norm, that a schedule is held to."""

PROBES = 8
"""Vectors that symmetry is tried on."""

Kept = Mapping[Promise, float]
"""What is promised, and up to which value its measure counts as kept."""

_MIRROR = {
    Promise.EQUAL_ROWS: Promise.EQUAL_COLUMNS,
    Promise.EQUAL_COLUMNS: Promise.EQUAL_ROWS,
    Promise.CENTRED: None,
}
_NUMBERS = (MatchRms, PolarNorm, Identity)
"""Slots that multiply a matrix by a number at most, and so keep what was promised before them."""


def promises(rule: Rule, m: int, n: int) -> Kept:
    """What a rule promises on m x n matrices; slots of unknown type promise nothing."""
    slots = _slots(rule) if isinstance(rule, UpdateRule) else ()
    kept = _up_to(Promise.SPECTRAL)
    for slot in slots:
        if not isinstance(_inner(slot, m, n), _NUMBERS):
            own = _of_slot(slot, m, n)
            kept = own if Promise.SPECTRAL in kept else _without(Promise.SPECTRAL, own)
    at_once = not any(isinstance(slot, RotatedAdam) for slot in slots)
    always = _up_to(Promise.FINITE, *([Promise.MOVES] if at_once else []))
    return {**kept, **always} if slots else always


def _up_to(*kept: Promise) -> Kept:
    """These promises with the usual limits."""
    return {promise: LIMITS[promise] for promise in kept}


def _without(dropped: Promise, kept: Kept) -> Kept:
    return {promise: limit for promise, limit in kept.items() if promise != dropped}


def _slots(rule: UpdateRule) -> list[Slot]:
    before = [] if rule.balance is None else [rule.balance]
    return [*before, rule.map, *rule.post]


def measure(promise: Promise, M: Tensor, D: Tensor) -> Tensor:
    """How far the update D of M, both [..., m, n], is from keeping the promise; a device scalar."""
    return _MEASURES[promise](unit_scale(M), unit_scale(D))


def _inner(slot: Slot, m: int, n: int) -> Slot:
    return slot.chosen(m, n) if isinstance(slot, OnSide) else slot


def _of_slot(slot: Slot, m: int, n: int) -> Kept:
    declared = _DECLARED.get(type(slot))
    return {} if declared is None else declared(slot, m, n)


def _mirrored(kept: Kept) -> Kept:
    mirrored = ((_MIRROR.get(promise, promise), limit) for promise, limit in kept.items())
    return {promise: limit for promise, limit in mirrored if promise is not None}


def _on_side(slot: OnSide, m: int, n: int) -> Kept:
    if not slot.side.touches(m, n):
        return _of_slot(slot.otherwise, m, n)
    return _of_slot(slot.then, m, n) if m > n else _mirrored(_of_slot(slot.then, n, m))


def _oriented(slot: Oriented, m: int, n: int) -> Kept:
    p, q = slot.orientation.shape(torch.Size((m, n)))
    inner = _of_slot(slot.inner, p, q)
    return _mirrored(inner) if isinstance(slot.orientation, Columns) else {}


def _keep_norm(slot: KeepNorm, m: int, n: int) -> Kept:
    """Without memory, a second moment of rows makes them even; with it, only on average."""
    inner = slot.inner
    even = isinstance(inner, RowSecondMoment) and inner.beta2 == 0
    return _up_to(Promise.EQUAL_ROWS) if even else {}


def _polar(slot: Slot, m: int, n: int) -> Kept:
    return {**_up_to(Promise.SPECTRAL), Promise.ISOMETRY: _isometry_limit(slot)}


def _balanced(slot: Slot, m: int, n: int) -> Kept:
    return {**_up_to(Promise.EQUAL_ROWS), Promise.ISOMETRY: _isometry_limit(slot)}


def _isometry_limit(slot: Slot) -> float:
    """LIMITS, or what the schedule of the slot's engine leaves."""
    schedule = getattr(getattr(slot, "polar", slot), "schedule", None)
    left = SLACK * _spread(schedule) if isinstance(schedule, Schedule) else 0.0
    return max(LIMITS[Promise.ISOMETRY], left)


@lru_cache
def _spread(schedule: Schedule, points: int = 2000) -> float:
    """The most that `_isometry` can come to for the singular values that a schedule puts out.

    The measure is the deviation of s^2 over its mean, both weighted by s^2. Of values within [a, b]
    it is greatest for two of them, a and b, with weights for which it is (b^2 - a^2) / (2 a b).
    Singular values below REACH of the norm come out smaller than a; they are hardly weighted.
    """
    values = [schedule(REACH ** (i / points)) for i in range(points + 1)]
    a, b = min(values), max(values)
    return (b * b - a * a) / (2 * a * b)


_DECLARED: dict[type, Callable[[Any, int, int], Kept]] = {
    **dict.fromkeys(
        (
            AutoPolar,
            ExactPolar,
            EigenPolar,
            NewtonSchulz,
            GramNewtonSchulz,
            QDWH,
            ZoloPD,
            NuclearPolar,
        ),
        _polar,
    ),
    **dict.fromkeys(
        (ExactPower, RationalPower, SizedPower, Chaotic, RegularisedPolar),
        lambda slot, m, n: _up_to(Promise.SPECTRAL),
    ),
    **dict.fromkeys((BalancedPolar, WarmPolar, FeedbackPolar, RiemannianPolar), _balanced),
    ExactBalanced: lambda slot, m, n: _up_to(Promise.EQUAL_ROWS, Promise.ISOMETRY),
    EquilibrateRows: lambda slot, m, n: _up_to(Promise.EQUAL_ROWS),
    EquilibrateColumns: lambda slot, m, n: _up_to(Promise.EQUAL_COLUMNS),
    KeepNorm: _keep_norm,
    Centred: lambda slot, m, n: _up_to(Promise.CENTRED),
    Oriented: _oriented,
    OnSide: _on_side,
}


def _finite(M: Tensor, D: Tensor) -> Tensor:
    return (~D.isfinite()).any().float()


def _moves(M: Tensor, D: Tensor) -> Tensor:
    moved, asked = ((X != 0).any(dim=-1).any(dim=-1) for X in (D, M))
    return (asked & ~moved).any().float()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """|a| / |b| per matrix, the largest of the batch; zero where b is zero."""
    top, bottom = (torch.linalg.matrix_norm(x) for x in (a, b))
    result: Tensor = (top / torch.where(bottom == 0, 1.0, bottom)).amax()
    return result


def _tall(X: Tensor) -> Tensor:
    return X if X.shape[-2] >= X.shape[-1] else X.mT


def _isometry(M: Tensor, D: Tensor) -> Tensor:
    """|D D'D / c^2 - D| / |D|, c the best such number: directions that hardly move count little."""
    D = _tall(D)
    cube = D @ (D.mT @ D)
    size = (cube * D).sum(dim=(-2, -1), keepdim=True)
    square = D.square().sum(dim=(-2, -1), keepdim=True)
    return _ratio(cube * (square / torch.where(size == 0, 1.0, size)) - D, D)


def _spectral(M: Tensor, D: Tensor) -> Tensor:
    """How far M'D and MD' are from symmetric, as some fixed vectors see it.

    Both are, where M and D have the same singular vectors. One of them is not enough: a polar
    factor of each half of a tall matrix has a symmetric M'D.
    """
    return torch.maximum(_antisymmetry(M, D), _antisymmetry(M.mT, D.mT))


def _antisymmetry(M: Tensor, D: Tensor) -> Tensor:
    """|(A - A') X| / |A X| for A = M D'."""
    i, j = (torch.arange(k, dtype=M.dtype, device=M.device) for k in (M.shape[-2], PROBES))
    X = torch.sin(i[:, None].square() * (j + 1) + 1)
    product = M @ (D.mT @ X)
    return _ratio(product - D @ (M.mT @ X), product)


def _equal_rows(M: Tensor, D: Tensor) -> Tensor:
    """Standard deviation over mean of the norms of rows, those that are zero left out."""
    norms = row_norms(D).squeeze(-1)
    count = (norms != 0).sum(dim=-1).clamp(min=1)
    mean = norms.sum(dim=-1) / count
    variance = norms.square().sum(dim=-1) / count - mean.square()
    deviation = variance.clamp(min=0).sqrt()
    return (deviation / torch.where(mean == 0, 1.0, mean)).amax()


def _centred(M: Tensor, D: Tensor) -> Tensor:
    return _ratio(D.mean(dim=-2, keepdim=True) * D.shape[-2] ** 0.5, D)


_MEASURES: dict[Promise, Callable[[Tensor, Tensor], Tensor]] = {
    Promise.FINITE: _finite,
    Promise.MOVES: _moves,
    Promise.ISOMETRY: _isometry,
    Promise.SPECTRAL: _spectral,
    Promise.EQUAL_ROWS: _equal_rows,
    Promise.EQUAL_COLUMNS: lambda M, D: _equal_rows(M.mT, D.mT),
    Promise.CENTRED: _centred,
}
