"""Momenta, made a few at a time, and where the executor wants them."""

from dataclasses import replace

import pytest
import torch

import polarlight
from polarlight import momenta
from polarlight.momenta import momenta_of
from tests.matrices import gaussian

SHAPES = [(8, 4), (8, 4), (4, 8), (8, 4), (6, 6)]
MOMENTUMS = [
    polarlight.EMA(),
    polarlight.EMA(nesterov=False),
    polarlight.HeavyBall(),
    polarlight.RawGradient(),
    polarlight.InBfloat16(),
]


def prepared(momentum, steps=1):
    """An optimizer after some steps, and its group."""
    params = [
        torch.nn.Parameter(gaussian(*shape, seed=i).float()) for i, shape in enumerate(SHAPES)
    ]
    rule = replace(polarlight.muon(), momentum=momentum)
    optimizer = polarlight.SpectralOptimizer(params, rule=rule)
    for step in range(steps + 1):
        for i, p in enumerate(params):
            p.grad = gaussian(*p.shape, seed=100 * step + i).float()
        if step < steps:
            optimizer.step()
    return optimizer, optimizer.param_groups[0]


@pytest.mark.parametrize("few", [1, 2 * 8 * 4 * 4, 2**20])
@pytest.mark.parametrize("momentum", MOMENTUMS, ids=str)
def test_they_are_the_same_few_at_a_time_and_in_the_executors_room(monkeypatch, momentum, few):
    monkeypatch.setattr(momenta, "IN_CACHE", few)
    results, states = [], []
    for executor in (None, polarlight.Batched()):
        optimizer, group = prepared(momentum)
        state = [optimizer.state[p] for p in group["params"]]
        results.append(momenta_of(group, group["params"], state, None, executor))
        states.append(state)
    assert [M.shape for M in results[1]] == [torch.Size(shape) for shape in SHAPES]
    assert all(map(torch.equal, *results))
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_few_are_neighbours_that_fit_the_cache(monkeypatch):
    monkeypatch.setattr(momenta, "IN_CACHE", 40)
    tensors = [torch.zeros(n) for n in (5, 5, 1, 20, 3, 3)]
    slices = list(momenta._few_at_a_time(tensors))
    assert [tensors[few] for few in slices] == [
        tensors[:2],
        tensors[2:3],
        tensors[3:4],
        tensors[4:],
    ]


class Elsewhere:
    """An executor that would make room, and computes nothing."""

    def __init__(self):
        self.asked = 0

    def room(self, rule, like):
        self.asked += 1
        return [torch.empty_like(p) for p in like]


@pytest.mark.parametrize("view", [None, polarlight.Whole()])
def test_an_executor_of_ones_own_may_make_room(view):
    optimizer, group = prepared(polarlight.EMA())
    state = [optimizer.state[p] for p in group["params"]]
    executor, group = Elsewhere(), group | {"view": view}
    momenta_of(group, group["params"], state, None, executor)
    assert executor.asked == 1


@pytest.mark.parametrize("without", ["whole", "finite"])
def test_it_is_not_asked_for_parts_or_where_some_are_left_out(without):
    optimizer, group = prepared(polarlight.EMA())
    state = [optimizer.state[p] for p in group["params"]]
    finite = [torch.tensor(True)] * len(SHAPES) if without == "finite" else None
    if without == "whole":
        group = group | {"view": polarlight.Transposed()}
    executor = Elsewhere()
    momenta_of(group, group["params"], state, finite, executor)
    assert executor.asked == 0


def test_a_step_in_small_parts_moves_weights_alike(monkeypatch):
    moved = []
    for few in (1, 2**30):
        monkeypatch.setattr(momenta, "IN_CACHE", few)
        _, group = prepared(polarlight.EMA(), steps=3)
        moved.append([p.detach() for p in group["params"]])
    assert all(map(torch.equal, *moved))
