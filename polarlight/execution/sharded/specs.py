"""Specification of parameters and of their matrices, as plans see them: shapes, layouts, dtypes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch

from polarlight.execution.job import common_batch
from polarlight.execution.param_task import Member, is_sharded
from polarlight.execution.sharded.collectives import ProcessMesh, layout_of, replicated_layout
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.regions import StridedBlock, batch_block, split_view, vector_block
from polarlight.linalg.slot import GRADIENT
from polarlight.registry import stable_text
from polarlight.rule import HOST_COUNTER, UpdateRule
from polarlight.view import MatrixView

MATRIX = ""
"""Key of the matrix itself beside its buffers: momentum when gathered, direction when scattered."""


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One parameter of a plan: its rule, view, and the layouts and dtypes of its tensors.

    Attributes:
        name: The parameter's name, for messages.
        rule: The update rule of its matrices.
        view: The view that splits the parameter into matrices.
        layouts: Layout of the momentum (`MATRIX`) and of every buffer that is not on the host.
        dtypes: Dtype of each of these.
    """

    name: str
    rule: UpdateRule
    view: MatrixView
    layouts: Mapping[str, Layout]
    dtypes: Mapping[str, torch.dtype]

    def __str__(self) -> str:
        """Return name, layouts, dtypes, view and rule, in a text that is equal everywhere."""
        placed = (f"{n or 'matrix'} {self.layouts[n]} {self.dtypes[n]}" for n in self.layouts)
        return f"{self.name}: {', '.join(placed)}; {self.view!r}; {_rule_text(self.rule)}"


@lru_cache(maxsize=256)
def _rule_text(rule: UpdateRule) -> str:
    """Return the text of a rule, equal on all processes; cached."""
    return stable_text(rule)


def param_spec(
    member: Member, mesh: ProcessMesh, momentum_dtype: torch.dtype | None = None
) -> ParamSpec:
    """Return a member's `ParamSpec`: layouts and dtypes of its momentum and device buffers.

    Args:
        member: The parameter.
        mesh: The processes that share it.
        momentum_dtype: Dtype of its momentum; by default the parameter's.
    """
    p, rule = member.parameter, member.rule
    assert isinstance(rule, UpdateRule)
    # Buffers that are sent with the momentum: all but the host counter, and the gradient in a step
    # where the rule reads it and the member has it.
    parts = member.view.shapes(p.shape)
    names = dict.fromkeys(name for part in parts for name in rule.buffer_shapes(part))
    sent = [n for n in names if n != HOST_COUNTER and (n != GRADIENT or n in member.state)]
    tensors = {MATRIX: p, **{name: member.state[name] for name in sent}}
    layouts = {
        name: layout_of(x, member.name) if is_sharded(p) else replicated_layout(x.shape, mesh)
        for name, x in tensors.items()
    }
    dtypes = {name: x.dtype for name, x in tensors.items()} | {MATRIX: momentum_dtype or p.dtype}
    if GRADIENT not in layouts and rule.reads_gradient(parts):
        layouts[GRADIENT], dtypes[GRADIENT] = layouts[MATRIX], p.dtype
    return ParamSpec(member.name, rule, member.view, layouts, dtypes)


@dataclass(frozen=True, slots=True)
class MatrixPart:
    """Rows, or columns, of a matrix that one of several processes of a node computes.

    Attributes:
        shape: (m, n) of the whole matrix.
        place: Number of the part, from 0.
        count: Number of parts.
        by_columns: True for columns of the matrix.
        common: Names of the buffers that all parts have in full, and for which they find the same
            values: the two numbers of `linalg/rest.py`, row moments of a part of the columns.
    """

    shape: tuple[int, int]
    place: int
    count: int
    by_columns: bool
    common: frozenset[str]


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """One matrix of a plan: its parameter's number, and its block and shape in every tensor.

    Attributes:
        param: Number of its parameter in the plan.
        blocks: Its entries in the momentum and in every buffer that travels with it.
        shapes: Shapes of the matrix and its buffers, as the rule sees them.
        counter: Its entry in the counter on the host; None if the rule has none.
        part: The part of a matrix that it is; None for a whole one.
    """

    param: int
    blocks: Mapping[str, StridedBlock]
    shapes: Mapping[str, tuple[int, int]]
    counter: StridedBlock | None
    part: MatrixPart | None = None

    def is_written(self, name: str) -> bool:
        """Return whether a step writes the matrix's tensor `name`, so that its owner returns it.

        Gradients are only read. Buffers that parts have in common are sent by the first one alone.
        """
        part = self.part
        repeated = part is not None and part.place > 0 and name in part.common
        return name != GRADIENT and not repeated


def matrix_specs(param_number: int, spec: ParamSpec) -> Iterator[MatrixSpec]:
    """Yield the matrices of a parameter, with block and shape in each tensor, in view order."""
    shape = torch.Size(spec.layouts[MATRIX].shape)
    if not prod(shape):
        return
    try:
        positions = split_view(spec.view, shape)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}; only one process can hold it") from None
    parts = spec.view.shapes(shape)
    batch_dims = len(common_batch(spec.view, shape))
    offsets = _buffer_offsets(spec.rule, parts, batch_dims)
    for position in positions:
        blocks, shapes = {MATRIX: position.block}, {MATRIX: position.block.size}
        buffer_shapes = spec.rule.buffer_shapes(torch.Size(position.block.size))
        for name, (p, q) in buffer_shapes.items():
            shapes[name] = (p, q)
            if name == GRADIENT:  # laid out as the momentum
                blocks[name] = position.block
            elif len(parts) == 1:  # a buffer [*batch, p, q]
                blocks[name] = batch_block(position.index, (p, q))
            else:  # a vector [*batch, n] per expert, or one vector [n] for all matrices
                batch_index = position.index if batch_dims else ()
                first = 0 if batch_index else position.flat
                start = offsets[position.part].get(name, 0) + first * p * q
                blocks[name] = vector_block(batch_index, start, p * q)
        counter = blocks.pop(HOST_COUNTER, None)
        yield MatrixSpec(param_number, blocks, shapes, counter)


def _buffer_offsets(
    rule: UpdateRule, parts: Iterable[torch.Size], batch_dims: int
) -> list[dict[str, int]]:
    """Return, per part of a view, {buffer: first entry of the part in the vector of all parts}."""
    offsets: list[dict[str, int]] = []
    taken: dict[str, int] = {}
    for part in parts:
        offsets.append(dict(taken))
        for name, buffer in rule.buffer_shapes(part).items():
            taken[name] = taken.get(name, 0) + buffer[batch_dims:].numel()
    return offsets
