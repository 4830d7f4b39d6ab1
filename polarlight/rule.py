"""The vocabulary: what happens to a matrix, as a value with named slots.

    gradient --momentum--> M --balance--> M' --map--> U --post...--> U' --scale--> direction

The momentum slot is elementwise and belongs to the optimizer; everything after it is done by an
executor on whole matrices [..., m, n]. A slot is either a pure `MatrixMap` or a `Stage`, a map with
memory. Every slot maps zero to zero, writes to nothing it is given except a stage's own buffers,
and does not depend on the scale of the gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import frexp
from typing import Any, ClassVar, Protocol, TypeGuard, cast, runtime_checkable

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.row_sums import HERE, NeedsAllRowsError, Rows, on_rows
from polarlight.lookup import check_objects_in

MatrixMap = Callable[[Tensor], Tensor]
"""[..., m, n] -> [..., m, n]; never writes to its input."""

Scale = Callable[[int, int], float]
"""(fan_out, fan_in) -> the factor on the result."""

Buffers = Mapping[str, Tensor]
"""A stage's memory by name; each tensor has the batch dimensions of the matrix and two more."""

MOMENTUM = "momentum_buffer"
"""The state of a parameter that belongs to the momentum slot."""

HOST_COUNTER = "step"
"""A buffer of this name lies on the host, as torch's own optimizers keep theirs: it counts calls.

A stage may branch on it without waiting for the device: that is for work that is done every so many
steps and too dear to do in each. torch leaves a `step` on the host when it loads a state dict.
"""


@runtime_checkable
class Stage(Protocol):
    """A map with memory."""

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Shapes [..., p, q] of the buffers that a matrix [..., m, n] needs; they start at zero."""

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """[..., m, n] -> [..., m, n]; writes its own buffers in place and nothing else."""


Slot = MatrixMap | Stage


class Averaging(Protocol):
    """One step of a momentum."""

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float
    ) -> list[Tensor]:
        """Updates the buffers in place, never the gradients; the result is read-only."""


@runtime_checkable
class Momentum(Averaging, Protocol):
    """How gradients become the matrix that a rule maps.

    Attributes:
        buffered: Whether each parameter needs a `momentum_buffer`.
        averages: Whether a gradient equal to the buffer leaves the buffer as it is, to the bit.
    """

    buffered: ClassVar[bool]
    averages: ClassVar[bool]


@runtime_checkable
class Remembering(Protocol):
    """A momentum whose buffer is not just like the parameter, or that has more memory beside it."""

    @property
    def beside(self) -> tuple[str, ...]:
        """What it keeps beside the `momentum_buffer`: restored where a gradient is not finite."""

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """All it keeps for one parameter, by name, `momentum_buffer` included."""

    def bound(self, states: Sequence[Mapping[str, Tensor]]) -> Averaging:
        """The momentum with what it keeps beside the buffers, one mapping per parameter."""


def _remembers(momentum: Momentum) -> TypeGuard[Remembering]:
    """As `is_stage`."""
    return hasattr(momentum, "bound")


def momentum_state(momentum: Momentum, parameter: Tensor) -> dict[str, Tensor]:
    """What a momentum keeps for one parameter, by name."""
    if _remembers(momentum):
        return momentum.new_state(parameter)
    if not momentum.buffered:
        return {}
    return {MOMENTUM: torch.zeros_like(parameter, memory_format=torch.preserve_format)}


def bound(momentum: Momentum, states: Sequence[Mapping[str, Tensor]]) -> Averaging:
    """A momentum with what it keeps of these parameters beside their buffers, if anything."""
    return momentum.bound(states) if _remembers(momentum) else momentum


@runtime_checkable
class ByShape(Protocol):
    """A slot that leaves the work to another one, chosen by the matrix's shape."""

    def chosen(self, m: int, n: int) -> Slot:
        """The slot for m x n matrices."""


@runtime_checkable
class Describes(Protocol):
    """A slot whose work depends on dtype and device as well, and that can say how."""

    def described(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """What computes an m x n matrix of this dtype on this device, in words."""


def described(slot: Slot, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
    """What computes an m x n matrix, in words."""
    worker = slot.chosen(m, n) if isinstance(slot, ByShape) else slot
    return worker.described(m, n, dtype, device) if isinstance(worker, Describes) else str(worker)


@runtime_checkable
class Reads(Protocol):
    """A slot that looks at its matrix in a narrower dtype, and gives its result in that one too."""

    def reads(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """The dtype that a matrix is brought to first; it may as well be handed over in it."""


def reads(slot: object, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which dtype the slot may be handed a matrix, so that less memory is moved."""
    return cast(Reads, slot).reads(dtype, device) if hasattr(slot, "reads") else dtype


def is_stage(slot: Slot) -> TypeGuard[Stage]:
    """Whether it is a stage: as `isinstance`, which is slow enough to be felt for every matrix."""
    return hasattr(slot, "buffer_shapes")


def apply(slot: Slot, X: Tensor, buffers: Buffers) -> Tensor:
    """The slot's result, whichever kind it is."""
    return slot(X, buffers) if is_stage(slot) else cast(MatrixMap, slot)(X)


def buffer_shapes(slot: Slot, shape: torch.Size) -> dict[str, torch.Size]:
    """The slot's buffers; a pure map has none."""
    return slot.buffer_shapes(shape) if is_stage(slot) else {}


def apply_on_rows(slot: Slot, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
    """The slot's result for a part of the rows; per-row buffers come with the rows.

    Raises:
        NeedsAllRowsError: If sums over rows are not all that it needs of the others.
    """
    if not is_stage(slot):
        return on_rows(cast(MatrixMap, slot), X, rows)
    if rows is HERE:
        return slot(X, buffers)
    stage: Any = slot
    if not hasattr(stage, "on_rows"):
        raise NeedsAllRowsError(f"{slot} cannot be computed on a part of the rows")
    result: Tensor = stage.on_rows(X, rows, buffers)
    return result


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
        for shape in (torch.Size((2, 1)), torch.Size((1, 2))):
            names = [name for slot in self._slots for name in buffer_shapes(slot, shape)]
            if len(names) != len(set(names)):
                raise ValueError(f"rule {self.name!r} has two stages with equal buffers: {names}")

    @property
    def _slots(self) -> tuple[Slot, ...]:
        return (*(() if self.balance is None else (self.balance,)), self.map, *self.post)

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """All buffers that the stages need for a matrix of this shape."""
        shapes: dict[str, torch.Size] = {}
        for slot in self._slots:
            shapes |= buffer_shapes(slot, shape)
        return shapes

    def reads(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """The dtype in which `direction` may be handed its matrix, without a change in values.

        Its own where other slots follow the first: they would compute in the narrower one.
        """
        first, *others = self._slots
        return dtype if others else reads(first, dtype, device)

    def engine(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """What computes the map of an m x n matrix, in words."""
        return described(self.map, m, n, dtype, device)

    def direction_on_rows(self, X: Tensor, rows: Rows, buffers: Buffers) -> Tensor:
        """The rows of `direction` that belong to the rows X; all holders must ask at once.

        Raises:
            NeedsAllRowsError: If that takes more than sums, for this rule or this shape.
        """
        m, n = rows.count(X), X.shape[-1]
        for slot in self._slots:
            X = apply_on_rows(slot, X, rows, buffers)
        return X * self.scale(m, n)

    def direction(self, M: Tensor, buffers: Buffers) -> Tensor:
        """What is multiplied by -lr, [..., m, n] -> [..., m, n]; writes the stages' buffers."""
        for slot in self._slots:
            M = apply(slot, M, buffers)
        factor = self.scale(*M.shape[-2:])
        if factor == 1:
            return M
        exact = frexp(factor)[0] == 0.5  # a power of two rounds nothing
        return (M if exact else at_least_float32(M)) * factor


@runtime_checkable
class ElementwiseRule(Protocol):
    """A rule that sees entries, not matrices: for vectors, embeddings and baselines."""

    @property
    def name(self) -> str:
        """Short name for tables and profiles."""

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Zero state for one parameter."""

    def step(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        *,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float,
    ) -> None:
        """Moves the parameters and their states in place; never writes to the gradients."""

    def momentum_and_direction(
        self, state: Mapping[str, Tensor], momentum: float
    ) -> tuple[Tensor, Tensor]:
        """First moment, and what the last step multiplied by -lr; for diagnostics."""


@runtime_checkable
class SkippingRule(ElementwiseRule, Protocol):
    """An elementwise rule that can leave parameters out of a step without asking the host."""

    def step_finite(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        finite: list[Tensor],
        *,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float,
    ) -> None:
        """As `step`, but changes nothing of the parameters whose flag, bool [], is False."""


Rule = UpdateRule | ElementwiseRule
