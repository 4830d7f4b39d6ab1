"""The vocabulary: what happens to a matrix, as a value with named slots.

    gradient --momentum--> M --balance--> M' --map--> U --post...--> U' --scale--> direction

The momentum slot is elementwise and belongs to the optimizer; everything after it is done by an
executor on whole matrices [..., m, n]. A slot is either a pure `MatrixMap` or a `Stage`, a map with
memory (`linalg/slot.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import frexp
from typing import Any, Protocol

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.rest import SIZES, sizes_shape, unit_scale_or_zero_, zero_at_rest
from polarlight.linalg.row_sums import Rows
from polarlight.linalg.slot import GRADIENT, Buffers, Slot
from polarlight.lookup import check_objects_in
from polarlight.registry import loadable, stable_text

Numbers = tuple[float, float]
"""A number as it was and as it is."""

Scale = Callable[[int, int], float]
"""(fan_out, fan_in) -> the factor on the result."""

MOMENTUM = "momentum_buffer"
"""The state of a parameter that belongs to the momentum slot."""

HOST_COUNTER = "step"
"""A buffer of this name lies on the host and counts calls: a stage may branch on it there.

A stage that does overrides `at_step`, so that a compiled step needs no branch.
"""


class Averaging(Protocol):
    """One step of a momentum."""

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float | Tensor
    ) -> list[Tensor]:
        """Update the buffers in place, never the gradients; the result is read-only.

        The decay is a tensor [] where a step is compiled: a graph takes a number for a constant.
        """


class Momentum(ABC):
    """Elementwise accumulation of gradients into the matrix that a rule maps, on shards."""

    __slots__ = ()

    @property
    def buffered(self) -> bool:
        """True if each parameter needs a `momentum_buffer`."""
        return True

    @property
    @abstractmethod
    def is_ema(self) -> bool:
        """True if a gradient equal to the buffer leaves the buffer unchanged, to the bit."""

    @property
    def extra_state(self) -> tuple[str, ...]:
        """Names of the state kept beside the `momentum_buffer`."""
        return ()

    @abstractmethod
    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float | Tensor
    ) -> list[Tensor]:
        """Update the buffers in place, never the gradients; the result is read-only."""

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of one parameter by name, `momentum_buffer` included."""
        if not self.buffered:
            return {}
        return {MOMENTUM: torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def bind_state(self, states: Sequence[Mapping[str, Tensor]]) -> Averaging:
        """Return the momentum with its extra state, one mapping per parameter."""
        return self

    def loaded(self, buffers: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the buffers that a step updates, on the gradients' devices; by default themselves.

        Where a tensor is another one, the step copies it back when it is updated.
        """
        return buffers

    def shard_error(self, shape: torch.Size, shard: torch.Size) -> str:
        """Return why this momentum cannot be kept for such a shard; empty if it can."""
        return ""

    def store(self, state: Mapping[str, Tensor], M: Tensor) -> tuple[str, ...]:
        """Write a floating-point momentum into one parameter's state; return the keys written."""
        state[MOMENTUM].copy_(M)
        return (MOMENTUM,)


@loadable
@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRule:
    """One method, as a value: compare, print, and vary it with `dataclasses.replace`.

    Attributes:
        name: Short name for tables and profiles.
        momentum: Turns gradients into M.
        map: The heart: usually a polar factor.
        scale: Factor from (fan_out, fan_in) that makes one learning rate fit all shapes.
        balance: Applied before the map.
        post: Applied after it, in order.
    """

    name: str
    momentum: Momentum
    map: Slot
    scale: Scale
    balance: Slot | None = None
    post: tuple[Slot, ...] = ()

    def __post_init__(self) -> None:
        check_objects_in(self, {"map": "polar"})
        for slot in self.slots:
            if not isinstance(slot, Slot):
                raise TypeError(
                    f"a slot of rule {self.name!r} must be a MatrixMap or a Stage, got {slot!r}; "
                    "wrap a plain function: polarlight.linalg.Function(f)"
                )
        for shape in (torch.Size((2, 1)), torch.Size((1, 2))):
            names = [name for slot in self.slots for name in slot.buffer_shapes(shape)]
            names = [name for name in names if name != GRADIENT]  # which several may ask for
            if len(names) != len(set(names)):
                raise ValueError(f"rule {self.name!r} has two stages with equal buffers: {names}")
        stable_text(self)  # refuses what other processes could not compare with theirs

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots after the momentum, in the order in which they are applied."""
        return (*(() if self.balance is None else (self.balance,)), self.map, *self.post)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return all buffers that a matrix of this shape needs: the stages', and its sizes.

        `GRADIENT` among them is no state: see `linalg/slot.py`.
        """
        shapes = {SIZES: sizes_shape(shape)} if self.momentum.buffered else {}
        for slot in self.slots:
            shapes |= slot.buffer_shapes(shape)
        return shapes

    def reads_gradient(self, shapes: Iterable[torch.Size]) -> bool:
        """Return whether a stage asks for the gradient of matrices of one of these shapes."""
        return any(GRADIENT in slot.buffer_shapes(s) for s in set(shapes) for slot in self.slots)

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return the dtype in which `direction` may be handed its matrix, without other values."""
        return self.slots[0].input_dtype(dtype, device)

    def at_step(self, t: int) -> "UpdateRule":
        """Return the rule with every branch on a host counter decided for the count t.

        The rule itself if it has none; see `Slot.at_step`.
        """
        decided = [slot.at_step(t) for slot in self.slots]
        if all(x is slot for x, slot in zip(decided, self.slots, strict=True)):
            return self
        balance = None if self.balance is None else decided.pop(0)
        return replace(self, balance=balance, map=decided[0], post=tuple(decided[1:]))

    def engine(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """Return in words what computes the map of an m x n matrix."""
        return self.map.describe(m, n, dtype, device)

    def update_rms(self, m: int, n: int) -> float | None:
        """Return the root mean square entry of a direction, for full-rank m x n momenta.

        Returns:
            The number; None if it depends on the momentum, or the matrix is empty.
        """
        if not m or not n:
            return None
        rms: float | None = None
        for slot in self.slots:
            rms = slot.output_rms(m, n, rms)
        return None if rms is None else self.scale(m, n) * rms

    @isolated
    def direction_on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """Return the rows of `direction` that belong to the rows X; all holders must ask at once.

        Raises:
            NeedsAllRowsError: If that takes more than sums, for this rule or this shape.
        """
        m, n = rows.count(X), X.shape[-1]
        if self.momentum.buffered and SIZES in buffers:
            X = zero_at_rest(X, buffers[SIZES], self.input_dtype(X.dtype, X.device), rows)
        for slot in self.slots:
            X = slot.apply_on_rows(X, rows, buffers)
        return X * self.scale(m, n)

    @isolated
    def direction_on_columns(self, X: Tensor, columns: Rows, buffers: Buffers) -> Tensor:
        """Return the columns of `direction` that belong to the columns X; as `direction_on_rows`.

        Args:
            X: Some columns of the matrix, [..., m, c].
            columns: Rows of the transpose, of which X.mT are some.
            buffers: The stages' buffers; of those with n columns, the columns of X. The others are
                written alike by all holders.

        Raises:
            NeedsAllRowsError: If that takes more than sums, for this rule or this shape.
        """
        m, n = X.shape[-2], columns.count(X.mT)
        if self.momentum.buffered and SIZES in buffers:
            dtype = self.input_dtype(X.dtype, X.device)
            X = zero_at_rest(X, buffers[SIZES], dtype, columns)
        for slot in self.slots:
            X = slot.apply_on_columns(X, columns, buffers)
        return X * self.scale(m, n)

    @isolated
    def direction(self, M: Tensor, buffers: Buffers, *, scratch: bool = False) -> Tensor:
        """Return what is multiplied by -lr, [..., m, n]; writes the stages' buffers.

        In float32 or wider where a slot follows the map or the scale would round.

        Args:
            M: What is mapped.
            buffers: The stages' buffers.
            scratch: Whether M may be overwritten.
        """
        first, *others = self.slots
        sizes = buffers.get(SIZES) if self.momentum.buffered else None
        narrow = first.input_dtype(torch.float32, M.device)
        if narrow == torch.bfloat16 and M.dtype != torch.float64 and M.numel():
            X = unit_scale_or_zero_(M.to(narrow, copy=not scratch), sizes)
            U = first.apply_prescaled(X, buffers)
            U = at_least_float32(U) if others else U.to(M.dtype)
        else:
            X = M if sizes is None else zero_at_rest(M, sizes, M.dtype, scratch=scratch)
            U = first.apply(X, buffers)
        for slot in others:
            U = slot.apply(U, buffers)
        return _times(U, self.scale(*M.shape[-2:]))


def _times(U: Tensor, factor: float) -> Tensor:
    """Return U times a factor, in at least float32 where that would round."""
    if factor == 1:
        return U
    exact = frexp(factor)[0] == 0.5  # a power of two rounds nothing
    wide = U if exact else at_least_float32(U)
    # A second float32 tensor of a large matrix costs a CPU as much as several products.
    return U * factor if wide is U else wide.mul_(factor)


class ElementwiseRule(ABC):
    """A rule that sees entries, not matrices: for vectors, embeddings and baselines."""

    __slots__ = ()

    name: str
    """Short name for tables and profiles."""

    @property
    def has_step_finite(self) -> bool:
        """True if `step_finite` skips parameters without a host sync."""
        return False

    @abstractmethod
    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return zero state for one parameter."""

    @abstractmethod
    def step(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        *,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float | Tensor,
    ) -> None:
        """Update parameters and states in place; never writes to the gradients."""

    def step_finite(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        finite: list[Tensor],
        *,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float | Tensor,
    ) -> None:
        """Do `step`, but change nothing of the parameters whose flag, bool [], is False.

        Raises:
            NotImplementedError: Unless `has_step_finite`.
        """
        raise NotImplementedError(f"{self.name} has no step that leaves parameters out")

    def adapted_state(
        self, state: Mapping[str, Tensor], fields: Mapping[str, Any], momenta: Numbers
    ) -> dict[str, Tensor]:
        """Return what is to be replaced in a state that was saved under other numbers.

        Args:
            state: The state of one parameter.
            fields: Fields of this class that it was saved under.
            momenta: The group's `momentum`, as saved and now.
        """
        return {}

    @abstractmethod
    def momentum_and_direction(
        self, state: Mapping[str, Tensor], momentum: float
    ) -> tuple[Tensor, Tensor]:
        """Return the first moment, and what the last step multiplied by -lr; for diagnostics."""


Rule = UpdateRule | ElementwiseRule
