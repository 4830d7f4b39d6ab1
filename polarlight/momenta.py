"""The momenta of parameters that are stepped at once: what their rules map.

On a CPU they are made a few at a time, and each few are laid at once to where the executor reads
them, in the dtype that it reads: what is read a second time still lies in the cache.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from polarlight import movement, nonfinite
from polarlight.execution.job import MakesRoom
from polarlight.execution.work import local
from polarlight.groups import Group
from polarlight.nonfinite import Finite
from polarlight.rule import MOMENTUM, bound
from polarlight.view import Whole

IN_CACHE = 2 * 2**20
"""Bytes of gradients of which momenta are made at a time: half of a core's cache, or two."""


def momenta_of(
    group: Group,
    params: list[Tensor],
    states: Sequence[dict[str, Tensor]],
    finite: Finite,
    executor: object,
) -> list[Tensor]:
    """One matrix per parameter, after the buffers have been updated.

    Args:
        group: The param group; its rule maps matrices.
        params: Some of its parameters.
        states: The state of each.
        finite: Flags beside them, or None.
        executor: Who reads the result, in its own dtype; None if others want to see it as well.
    """
    momentum, beta = group["rule"].momentum, group["momentum"]
    buffers = [local(state[MOMENTUM]) for state in states if momentum.buffered]
    gradients = movement.gradients(group, params)
    places = _room(group, params, executor) if finite is None else None
    if places is None:
        return nonfinite.momenta(momentum, states, gradients, buffers, beta, finite)
    for few in _few_at_a_time(gradients):
        made = bound(momentum, states[few])(gradients[few], buffers[few], beta)
        torch._foreach_copy_(places[few], made)
    return places


def _room(group: Group, params: Sequence[Tensor], executor: object) -> list[Tensor] | None:
    """Where the executor wants the matrices, if it cares; they are float32 until then."""
    plain = group["view"] is None or group["view"] == Whole()
    if not plain or not isinstance(executor, MakesRoom):
        return None
    return executor.room(group["rule"], params)


def _few_at_a_time(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Neighbours that fit the cache together; one that does not goes alone."""
    start = size = 0
    for i, x in enumerate(tensors):
        if size and size + x.nbytes > IN_CACHE:
            yield slice(start, i)
            start, size = i, 0
        size += x.nbytes
    yield slice(start, len(tensors))
