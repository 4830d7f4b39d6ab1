"""The matrices of parameters, and where they and their buffers lie in the state."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from polarlight.execution.job import stacked
from polarlight.execution.sharded.layouts import Layout
from polarlight.execution.sharded.regions import Block, Place, at, matrices, vector
from polarlight.rule import HOST_COUNTER, UpdateRule
from polarlight.view import MatrixView

MOMENTUM = ""
"""The name under which what the rule maps travels, and the direction back; buffers have theirs."""


@dataclass(frozen=True, slots=True)
class Item:
    """A parameter, as far as plans know it.

    Attributes:
        name: For messages.
        rule: What happens to its matrices.
        view: Which these are.
        layouts: Of the momentum and of every buffer that is not on the host.
        dtypes: Of the same.
    """

    name: str
    rule: UpdateRule
    view: MatrixView
    layouts: Mapping[str, Layout]
    dtypes: Mapping[str, torch.dtype]

    def __str__(self) -> str:
        layout, dtype = self.layouts[MOMENTUM], self.dtypes[MOMENTUM]
        return f"{self.name} {layout} {dtype} {self.view!r} {self.rule!r}"


@dataclass(frozen=True, slots=True)
class Unit:
    """One matrix.

    Attributes:
        item: Number of its parameter.
        blocks: Its entries in the momentum and in every buffer that travels.
        shapes: The matrix's and the buffers', as the rule sees them.
        counter: Its entry in the buffer on the host; None where the rule has none.
    """

    item: int
    blocks: Mapping[str, Block]
    shapes: Mapping[str, tuple[int, int]]
    counter: Block | None


def units_of(number: int, item: Item) -> Iterator[Unit]:
    """The matrices of a parameter."""
    shape = item.layouts[MOMENTUM].shape
    if not prod(shape):
        return
    try:
        places = matrices(item.view, shape)
    except ValueError as error:
        raise ValueError(f"{item.name}: {error}; only one process can hold it") from None
    parts = item.view.shapes(torch.Size(shape))
    depth = len(stacked(item.view, torch.Size(shape)))
    starts: list[dict[str, int]] = []
    taken: dict[str, int] = {}
    for part in parts:
        starts.append(dict(taken))
        for name, buffer in item.rule.buffer_shapes(part).items():
            taken[name] = taken.get(name, 0) + buffer[depth:].numel()
    for place in places:
        stack = place.index if depth else ()
        yield _unit(number, item, place, stack, starts[place.part] if len(parts) > 1 else None)


def _unit(
    number: int,
    item: Item,
    place: Place,
    stack: tuple[int, ...],
    starts: Mapping[str, int] | None,
) -> Unit:
    """A matrix; its buffers lie in batches, or in vectors from `starts` on, one per stack."""
    blocks, shapes = {MOMENTUM: place.block}, {MOMENTUM: place.block.size}
    for name, (p, q) in item.rule.buffer_shapes(torch.Size(place.block.size)).items():
        shapes[name] = (p, q)
        if starts is None:
            blocks[name] = at(place.index, (p, q))
        else:
            flat = 0 if stack else place.flat
            blocks[name] = vector(stack, starts.get(name, 0) + flat * p * q, p * q)
    counter = blocks.pop(HOST_COUNTER, None)
    return Unit(number, blocks, shapes, counter)
