"""The two kinds of slot, a map and a stage, and what each says about itself.

A `MatrixMap` is a pure function of a matrix; a `Stage` also has buffers. Either states its
symmetries and invariants, or it cannot be made. Everything else has a default: no buffers, the
dtype of its input, an update whose size depends on the input, no computation on a part of the rows.
Both map zero to zero, write to nothing they are given except a stage's own buffers, and do not
depend on the scale of the gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import sqrt
from typing import Any, Self

import torch
from torch import Tensor

from polarlight.linalg.properties import (
    NO_INVARIANTS,
    POWERS,
    ROTATIONS,
    SIGNED,
    SIZES_IGNORED,
    Invariant,
    Invariants,
    Symmetries,
)
from polarlight.linalg.row_sums import ALL_ROWS, NeedsAllRowsError, Rows
from polarlight.registry import registered

Buffers = Mapping[str, Tensor]
"""A stage's memory by name; each tensor has the batch dimensions of the matrix and two more."""

GRADIENT = "gradient"
"""Name in `buffer_shapes` by which a stage asks for the gradient of the step, beside its input.

It comes with the matrix and is read-only: no state is kept for it, and nothing is sent back. Where
a rule is called without one, `gradient_of` takes the input for it.
"""


class Slot(ABC):
    """A part of a rule that maps matrices [..., m, n] -> [..., m, n]."""

    __slots__ = ()

    @abstractmethod
    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the symmetries on m x n matrices, up to relative floors and rounding."""

    @abstractmethod
    def invariants(self, m: int, n: int) -> Invariants:
        """Return what holds of every image of an m x n matrix, with limits; may be empty."""

    @abstractmethod
    def apply(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the image of X; a stage updates its buffers in place."""

    @abstractmethod
    def apply_on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return the rows of the image that belong to the rows X of the matrix.

        Per-row buffers come with the rows.

        Raises:
            NeedsAllRowsError: If sums over rows are not all that it needs of the others.
        """

    def apply_on_columns(self, X: Tensor, columns: Rows, buffers: Buffers) -> Tensor:
        """Return the columns of the image that belong to the columns X of the matrix.

        `columns` are the rows of the transpose; per-column buffers come with the columns. Default:
        not possible.

        Raises:
            NeedsAllRowsError: If sums over columns are not all that it needs of the others.
        """
        raise NeedsAllRowsError(f"{self} cannot be computed on a part of the columns")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return the shapes [..., p, q] of the buffers of a matrix [..., m, n]; they start at 0."""
        return {}

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return the dtype in which a matrix of `dtype` may be handed over without a change.

        Bfloat16 in place of float32 promises that X is brought to unit scale before anything else:
        the slot is then called by `apply_prescaled`.
        """
        return dtype

    def apply_prescaled(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return `apply` of an X at unit scale that may be overwritten."""
        return self.apply(X, buffers)

    def select(self, m: int, n: int) -> "Slot":
        """Return the slot that does the work for m x n matrices."""
        return self

    def describe(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """Return in words what computes an m x n matrix of this dtype on this device."""
        worker = self.select(m, n)
        return str(self) if worker is self else worker.describe(m, n, dtype, device)

    def degree(self, m: int, n: int) -> float:
        """Return the d with f(c M) = c^d f(M) for all c > 0; 0 where the scale cancels."""
        return 0.0

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return the root mean square of the image's entries for full-rank m x n input.

        Args:
            m: Rows.
            n: Columns.
            incoming: The same of the input, if it is known.

        Returns:
            The number; None if it depends on the input.
        """
        return None

    def only_rescales(self, m: int, n: int) -> bool:
        """Return whether it multiplies an m x n matrix by a number at most."""
        return False

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype whose rounding an image has, for m x n input of `dtype`.

        Default: the coarsest of the slots in fields; `dtype` without any.
        """
        inner = [x.iteration_dtype(m, n, dtype, device) for x in self._slots_in_fields().values()]
        return max(inner, key=lambda d: torch.finfo(d).eps, default=dtype)

    def repeatable(self, m: int, n: int) -> bool:
        """Return whether two computations of an image agree to a few epsilons."""
        return not self.buffer_shapes(torch.Size((m, n)))

    def rescales_rows(self, m: int, n: int) -> bool:
        """Return whether it only multiplies rows by numbers that it remembers."""
        return False

    def moves(self, m: int, n: int) -> bool:
        """Return whether the image of a nonzero m x n matrix is nonzero from the first call on."""
        return True

    def at_step(self, t: int) -> Self:
        """Return the slot with every branch on a host counter decided for the count t.

        A graph of `torch.compile` cannot branch on a buffer. Slots in fields are decided too. Few
        different slots may come of all t, as each makes a graph. Default: no branch, itself.
        """
        inner = self._slots_in_fields()
        decided = {name: x.at_step(t) for name, x in inner.items()}
        changed = {name: x for name, x in decided.items() if x is not inner[name]}
        whole: Any = self
        return replace(whole, **changed) if changed else self

    def _slots_in_fields(self) -> dict[str, "Slot"]:
        """Return the slots that this one computes by, by the name of their field."""
        names: list[str] = [f.name for f in fields(self)] if is_dataclass(self) else []
        return {name: x for name in names if isinstance(x := getattr(self, name), Slot)}


def gradient_of(X: Tensor, buffers: Buffers) -> Tensor:
    """Return the gradient [..., m, n] beside the input X; X itself where none was passed."""
    return buffers.get(GRADIENT, X)


class MatrixMap(Slot):
    """A slot without memory: a pure function of a matrix."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, M: Tensor) -> Tensor:
        """Return the image of M, [..., m, n] -> [..., m, n]; never writes to M."""

    def on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return the rows of the image that belong to the rows X of the matrix.

        Raises:
            NeedsAllRowsError: If that takes more than sums for a matrix of this shape.
        """
        return self(X) if rows is ALL_ROWS else self._on_rows(X, rows)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        raise NeedsAllRowsError(f"{self} cannot be computed on a part of the rows")

    def call_prescaled(self, X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """Return `on_rows` of an X that may be overwritten, largest row norm in `ORDINARY`.

        Maps that scale their input first are spared that pass over it.
        """
        return self.on_rows(X, rows)

    def apply(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the image of X; there are no buffers."""
        return self(X)

    def apply_prescaled(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return `call_prescaled`; there are no buffers."""
        return self.call_prescaled(X)

    def apply_on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return `on_rows`; there are no buffers."""
        return self.on_rows(X, rows)


class Stage(Slot):
    """A slot with memory between steps."""

    __slots__ = ()

    @abstractmethod
    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return the shapes [..., p, q] of the buffers of a matrix [..., m, n]; they start at 0."""

    @abstractmethod
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the image of X, [..., m, n] -> [..., m, n]; writes its own buffers in place."""

    def on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return the rows of the image that belong to the rows X; per-row buffers come with them.

        Raises:
            NeedsAllRowsError: If that takes more than sums for a matrix of this shape.
        """
        return self(X, buffers) if rows is ALL_ROWS else self._on_rows(X, rows, buffers)

    def _on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        raise NeedsAllRowsError(f"{self} cannot be computed on a part of the rows")

    def apply(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the image of X."""
        return self(X, buffers)

    def apply_on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return `on_rows`."""
        return self.on_rows(X, rows, buffers)


class PolarMap(MatrixMap):
    """A map whose image is a polar factor: equal singular values for full-rank input."""

    __slots__ = ()

    def output_rms(self, m: int, n: int, incoming: float | None) -> float | None:
        """Return 1 / sqrt(max(m, n)): the Frobenius norm is sqrt(min(m, n))."""
        return polar_rms(m, n)


class Transposable(MatrixMap):
    """A map that commutes with transposition: f(M.mT) = f(M).mT."""

    __slots__ = ()

    def apply_on_columns(self, X: Tensor, columns: Rows, buffers: Buffers) -> Tensor:
        """Return the columns of the image: rows of the image of the transpose."""
        return self.on_rows(X.mT, columns).mT


class Rescaling(Transposable):
    """A map that multiplies each matrix by a number, the same for its transpose."""

    __slots__ = ()

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return all rotations."""
        return ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return none of its own."""
        return NO_INVARIANTS

    def only_rescales(self, m: int, n: int) -> bool:
        """Return True."""
        return True


class SpectralFunction(Slot):
    """A slot that keeps the singular vectors of its input and changes the singular values."""

    __slots__ = ()

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return all rotations."""
        return ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return `SPECTRAL`, with the limit for powers of singular values."""
        return {Invariant.SPECTRAL: POWERS}


class Entrywise(Slot):
    """A slot that divides every entry by a size of its own."""

    __slots__ = ()

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return permutations, signs and rescalings of rows and columns."""
        return SIGNED | SIZES_IGNORED

    def invariants(self, m: int, n: int) -> Invariants:
        """Return none."""
        return NO_INVARIANTS


def polar_rms(m: int, n: int) -> float:
    """Return the root mean square entry of an m x n polar factor of full rank."""
    return 1 / sqrt(max(m, n))


@registered("Function")
@dataclass(frozen=True)
class Function(MatrixMap):
    """A plain function as a slot: `UpdateRule(map=Function(f), ...)`.

    Args:
        function: Pure function [..., m, n] -> [..., m, n].
        declared_symmetries: What it is equivariant or invariant under, for every shape.
        declared_invariants: What holds of every image, by measure and limit.
        declared_degree: The d with f(c M) = c^d f(M); 0 where the scale of M cancels.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import Function
        >>> Function(torch.sign)(torch.tensor([[-2.0, 3.0]]))
        tensor([[-1.,  1.]])
    """

    function: Callable[[Tensor], Tensor]
    declared_symmetries: Symmetries = frozenset()
    declared_invariants: Mapping[Invariant, float] = field(default_factory=dict, hash=False)
    declared_degree: float = 0.0

    def __call__(self, M: Tensor) -> Tensor:
        """Return the function of M."""
        return self.function(M)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return self.declared_symmetries

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return self.declared_invariants

    def degree(self, m: int, n: int) -> float:
        """Return the declared degree."""
        return self.declared_degree

    def __str__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))
