"""A map led a little away from, or towards, a second map of the same matrix, at its own size.

    Contra:         C = O - c X / op(X),                     O = inner(X)
    Interpolated:   C = O + w Y min(1, most |O| / |Y|),      Y = towards(X) - O
    both:           U = C |O| / |C|

X / op(X) has the singular vectors of a polar factor and the singular values s / s_1: Contra-Muon
shrinks the largest directions most. With the normalised momentum or a soft polar factor as
`towards`, an interpolation goes the other way.

Source: nilin/contra-muon and nilin.github.io/contra-muon-and-soft-muon (2026), in the track-3
records of modded-nanogpt from 11 on; the temper is record 38's.
Deviations: norms are those of X at unit scale, without an absolute floor.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from polarlight.linalg.cost import uniform_range
from polarlight.linalg.matrices import (
    at_least_float32,
    frobenius_norm,
    largest_entry,
    nonzero,
    unit_scale,
)
from polarlight.linalg.normalisation import Normalisation, Schatten4
from polarlight.linalg.precision import iteration_dtype
from polarlight.linalg.properties import (
    LEFT,
    NO_INVARIANTS,
    POWERS,
    ROTATIONS,
    Invariant,
    Invariants,
    Symmetries,
    Symmetry,
)
from polarlight.linalg.slot import Buffers, MatrixMap, Slot, Stage
from polarlight.registry import registered
from polarlight.stages.ramp import Moving, Number, counted, counter_shape


@registered("PowerIterationNorm")
@dataclass(frozen=True, slots=True)
class PowerIterationNorm:
    """Estimate of the largest singular value: |X v| after power iterations from v = 1.

    Args:
        rounds: Products with X'X, at least 1.

    Accuracy: never above the largest singular value; below it by as much as 1 leaves out its right
    singular vector.
    """

    rounds: int = 5

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")

    def __call__(self, X: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the estimate, [..., m, n] -> [..., 1, 1]."""
        v = X.new_ones(*X.shape[:-2], X.shape[-1], 1)  # [..., n, 1]
        for _ in uniform_range(self.rounds):
            v = X.mT @ (X @ v)
            v = v / nonzero(frobenius_norm(v))
        return frobenius_norm(X @ v)

    def __str__(self) -> str:
        return f"{self.rounds} power iterations"


Divisor = Normalisation | PowerIterationNorm


def size_of(X: Tensor, norm: Divisor) -> Tensor:
    """Return the norm of X, [..., m, n] -> [..., 1, 1], from products in the device's dtype."""
    return norm(X, iteration_dtype(X.dtype, X.device))


def resized(X: Tensor, like: Tensor, norm: Divisor) -> Tensor:
    """Return X multiplied by one number per matrix, so that its norm is that of `like`.

    Norms are taken at unit scale: a Schatten-4 norm has fourth powers in it.
    """
    to, of = (largest_entry(at_least_float32(M)) for M in (like, X))  # [..., 1, 1]
    wanted, present = size_of(like / nonzero(to), norm) * to, size_of(X / nonzero(of), norm) * of
    return X * (wanted / nonzero(present))


@registered("Normalised")
@dataclass(frozen=True, slots=True)
class Normalised(MatrixMap):
    """X over one of its norms, [..., m, n] -> [..., m, n]; zero stays zero."""

    norm: Divisor = Schatten4()

    def __call__(self, M: Tensor) -> Tensor:
        """Return the normalised matrix."""
        X = unit_scale(M)
        return (X / nonzero(size_of(X, self.norm))).to(M.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return rotations; of the rows alone under power iterations."""
        return _kept_by(self.norm)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return {Invariant.SPECTRAL: POWERS}

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the norm's products."""
        return iteration_dtype(dtype, device)

    def only_rescales(self, m: int, n: int) -> bool:
        """Return True: a matrix is multiplied by a number."""
        return True


@registered("Contra", stateful=True, may_differ=("inner", "contra", "norm", "size"))
@dataclass(frozen=True, slots=True)
class Contra(Stage):
    """A slot minus a fraction of its normalised input, at the slot's size.

    Shapes: [..., m, n] -> [..., m, n]. State: that of the inner slot; `contra_calls` [..., 1, 1] if
    `contra` moves.

    Args:
        inner: The slot, a polar factor.
        contra: c, the part of the normalised input that is subtracted.
        norm: op, which divides the input: a Schatten norm, or power iterations.
        size: The norm of the inner slot's result that is kept.
    """

    inner: Slot
    contra: Number = 0.2
    norm: Divisor = Schatten4()
    size: Divisor = Schatten4()

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return those of the inner slot, and the counter."""
        return self.inner.buffer_shapes(shape) | counter_shape(self.contra, "contra_calls", shape)

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the image of X; counts the call."""
        mapped = at_least_float32(self.inner.apply(X, buffers))
        c = counted(self.contra, "contra_calls", buffers)
        bent = mapped - c * Normalised(self.norm)(at_least_float32(X))
        return resized(bent, mapped, self.size).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the inner slot's, as far as the norm has them."""
        return self.inner.symmetries(m, n) & _kept_by(self.norm)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the singular vectors, where the inner slot keeps them."""
        return _spectral(self.inner.invariants(m, n))

    def repeatable(self, m: int, n: int) -> bool:
        """Return whether nothing moves and the inner slot is."""
        return not isinstance(self.contra, Moving) and self.inner.repeatable(m, n)

    def moves(self, m: int, n: int) -> bool:
        """Return whether the inner slot moves at once."""
        return self.inner.moves(m, n)

    def __str__(self) -> str:
        return f"{self.inner}, minus {self.contra} of the input"


@registered(
    "Interpolated", stateful=True, may_differ=("inner", "towards", "weight", "most", "size")
)
@dataclass(frozen=True, slots=True)
class Interpolated(Stage):
    """A slot led towards a second map of its input, at the slot's size.

    Shapes: [..., m, n] -> [..., m, n]. State: that of the inner slot; `calls_<name>` [..., 1, 1] if
    the weight moves.

    Args:
        inner: The slot.
        towards: The other map.
        weight: 0 is the slot, 1 the direction of the other map.
        most: Largest size of the difference, over that of the slot's result.
        size: The norm of the inner slot's result that is kept.
        name: Tells apart the counters of two interpolations in one rule.
    """

    inner: Slot
    towards: MatrixMap
    weight: Number
    most: float = inf
    size: Divisor = Schatten4()
    name: str = "interpolated"

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(f"most must be > 0, got {self.most}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return those of the inner slot, and the counter."""
        counter = counter_shape(self.weight, f"calls_{self.name}", shape)
        return self.inner.buffer_shapes(shape) | counter

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the image of X; counts the call."""
        mapped = at_least_float32(self.inner.apply(X, buffers))
        apart = self.towards(at_least_float32(X)) - mapped
        if self.most < inf:
            share = self.most * size_of(mapped, self.size) / nonzero(size_of(apart, self.size))
            apart = apart * share.clamp_max(1)
        weight = counted(self.weight, f"calls_{self.name}", buffers)
        return resized(mapped + weight * apart, mapped, self.size).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return those of both maps."""
        return self.inner.symmetries(m, n) & self.towards.symmetries(m, n)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the singular vectors, where both keep them."""
        both = Invariant.SPECTRAL in self.towards.invariants(m, n)
        return _spectral(self.inner.invariants(m, n)) if both else NO_INVARIANTS

    def repeatable(self, m: int, n: int) -> bool:
        """Return whether nothing moves and the inner slot is."""
        return not isinstance(self.weight, Moving) and self.inner.repeatable(m, n)

    def moves(self, m: int, n: int) -> bool:
        """Return whether the inner slot moves at once."""
        return self.inner.moves(m, n)

    def __str__(self) -> str:
        return f"{self.inner}, {self.weight} of the way to {self.towards}"


def _kept_by(norm: Divisor) -> Symmetries:
    """Return the symmetries of a division by a norm."""
    if isinstance(norm, PowerIterationNorm):
        return LEFT | {Symmetry.RIGHT_PERMUTATIONS}
    return ROTATIONS


def _spectral(invariants: Invariants) -> Invariants:
    """Return the singular vectors alone, at the limit for powers of singular values."""
    return {Invariant.SPECTRAL: POWERS} if Invariant.SPECTRAL in invariants else NO_INVARIANTS
