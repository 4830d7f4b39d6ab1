"""Symmetries and invariants that a map of matrices can have: the vocabulary of its declarations.

A symmetry relates the image of a transformed matrix to the image of the matrix. An invariant holds
of every image and can be measured. Each slot declares both for an m x n matrix;
`polarlight.properties` combines the declarations of a rule's slots, and tests hold them.
"""

from collections.abc import Mapping
from enum import StrEnum

from polarlight.linalg.band import REACH, extremes
from polarlight.linalg.coefficients import Schedule


class Symmetry(StrEnum):
    """Transformations of every gradient of a matrix.

    Permutations, signs and rotations of rows (LEFT) or columns (RIGHT) come out as they went in. A
    SHARED_SHIFT 1 a' and positive rescalings of rows or columns do not change the update.
    HORIZONTAL is a property of the update itself: its columns sum to zero.
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


Symmetries = frozenset[Symmetry]

LEFT_SIGNED: Symmetries = frozenset({Symmetry.LEFT_PERMUTATIONS, Symmetry.LEFT_SIGNS})
RIGHT_SIGNED: Symmetries = frozenset({Symmetry.RIGHT_PERMUTATIONS, Symmetry.RIGHT_SIGNS})
LEFT: Symmetries = LEFT_SIGNED | {Symmetry.LEFT_ROTATIONS}
RIGHT: Symmetries = RIGHT_SIGNED | {Symmetry.RIGHT_ROTATIONS}
ROTATIONS: Symmetries = LEFT | RIGHT
SIGNED: Symmetries = LEFT_SIGNED | RIGHT_SIGNED
ROWS: Symmetries = LEFT_SIGNED | RIGHT
"""Rows are units of their own, columns a space: permutations with signs, and rotations."""

SIZES_IGNORED: Symmetries = frozenset({Symmetry.ROW_RESCALING, Symmetry.COLUMN_RESCALING})
SHARED: Symmetries = frozenset({Symmetry.SHARED_SHIFT, Symmetry.HORIZONTAL})

_MIRRORED_SYMMETRY = {
    Symmetry.LEFT_PERMUTATIONS: Symmetry.RIGHT_PERMUTATIONS,
    Symmetry.LEFT_SIGNS: Symmetry.RIGHT_SIGNS,
    Symmetry.LEFT_ROTATIONS: Symmetry.RIGHT_ROTATIONS,
    Symmetry.ROW_RESCALING: Symmetry.COLUMN_RESCALING,
}
_MIRRORED_SYMMETRY |= {right: left for left, right in _MIRRORED_SYMMETRY.items()}


def mirror_symmetries(group: Symmetries) -> Symmetries:
    """Return the symmetries of M -> f(M')', as far as the vocabulary has words for them."""
    return frozenset(_MIRRORED_SYMMETRY[s] for s in group if s in _MIRRORED_SYMMETRY)


class Invariant(StrEnum):
    """Properties of the update D of a momentum M."""

    FINITE = "finite"
    MOVES = "zero only where the momentum is"
    ISOMETRY = "singular values equal"
    SIZE = "size"
    SPECTRAL = "singular vectors of the momentum"
    ROWS_SCALED = "singular vectors of the momentum with rows rescaled"
    COLUMNS_SCALED = "singular vectors of the momentum with columns rescaled"
    REPEATS = "what the rule makes of the momentum"
    EQUAL_ROWS = "rows of equal norm"
    EQUAL_COLUMNS = "columns of equal norm"
    CENTRED = "columns sum to zero"


LIMITS = {
    Invariant.FINITE: 0.0,
    Invariant.MOVES: 0.0,
    Invariant.ISOMETRY: 0.2,
    Invariant.SIZE: 0.15,
    Invariant.SPECTRAL: 0.05,
    Invariant.ROWS_SCALED: 0.05,
    Invariant.COLUMNS_SCALED: 0.05,
    Invariant.REPEATS: 0.05,
    Invariant.EQUAL_ROWS: 0.35,
    Invariant.EQUAL_COLUMNS: 0.35,
    Invariant.CENTRED: 0.05,
}
"""The largest value of each measure that counts as kept, unless the engine is less exact."""

APPROXIMATE = 0.8
"""For rows of Aurora's approximate solvers, of which 64 x 16 heads reach 0.42 in real runs."""

POWERS = 0.2
"""For singular vectors after a power of singular values, in which small ones may be the largest."""

SLACK = 1.1
"""Addition of rounding to bfloat16 to the spread that a schedule leaves in exact arithmetic."""

Invariants = Mapping[Invariant, float]
"""Declared invariants, each with the largest value of its measure that counts as kept."""

NO_INVARIANTS: Invariants = {}

_MIRRORED_INVARIANT = {
    Invariant.EQUAL_ROWS: Invariant.EQUAL_COLUMNS,
    Invariant.EQUAL_COLUMNS: Invariant.EQUAL_ROWS,
    Invariant.ROWS_SCALED: Invariant.COLUMNS_SCALED,
    Invariant.COLUMNS_SCALED: Invariant.ROWS_SCALED,
    Invariant.CENTRED: None,
}


def usual_limits(*kept: Invariant) -> Invariants:
    """Return these invariants with the limits of `LIMITS`."""
    return {invariant: LIMITS[invariant] for invariant in kept}


def mirror_invariants(kept: Invariants) -> Invariants:
    """Return the invariants of M -> f(M')', as far as the vocabulary has words for them."""
    mirrored = ((_MIRRORED_INVARIANT.get(name, name), limit) for name, limit in kept.items())
    return {name: limit for name, limit in mirrored if name is not None}


def polar_invariants(schedule: Schedule | None = None, *, scalar: bool = True) -> Invariants:
    """Return the invariants of a polar factor.

    Args:
        schedule: The polynomials that make it; None for an exact one.
        scalar: Whether the input is divided by a number, which keeps its singular vectors.

    The measure of ISOMETRY is the deviation of s^2 over its mean, for values within [a, b] at most
    (b^2 - a^2) / (2 a b). Singular values below REACH of the norm come out smaller than a; they are
    hardly weighted.
    """
    a, b = (1.0, 1.0) if schedule is None else extremes(schedule, REACH)
    spread, off = (b * b - a * a) / (2 * a * b), max(1 - a, b - 1)
    return {
        **(usual_limits(Invariant.SPECTRAL) if scalar else {}),
        Invariant.ISOMETRY: max(LIMITS[Invariant.ISOMETRY], SLACK * spread),
        Invariant.SIZE: max(LIMITS[Invariant.SIZE], SLACK * off),
    }


def balanced_invariants(polar: Invariants) -> Invariants:
    """Return the invariants of a balanced polar factor: rows about equal, the rest as `polar`."""
    kept = (Invariant.ISOMETRY, Invariant.SIZE)
    values: Invariants = {name: limit for name, limit in polar.items() if name in kept}
    return {Invariant.EQUAL_ROWS: APPROXIMATE, **values}


def rescaled_invariants(polar: Invariants) -> Invariants:
    """Return those of a balanced polar factor that is the polar factor of rescaled rows."""
    return {**usual_limits(Invariant.ROWS_SCALED), **balanced_invariants(polar)}
