"""Thousands of steps of every rule: no drift, nothing grows, two halves are the whole."""

import gc
import io
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian

RULES = dict(SHIPPED)
RULES |= {
    "adamw": AdamWRule(),
    "aurora-warm": polarlight.rules.aurora(polarlight.rules.WarmPolar()),
}
TARGET = gaussian(8, 4, dtype=torch.float32)
lengths = pytest.mark.parametrize("steps", [200, pytest.param(20_000, marks=pytest.mark.slow)])


linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="read from /proc")


def fresh(rule):
    p = nn.Parameter(torch.zeros(8, 4))
    return SpectralOptimizer([p], rule=rule, weight_decay=0.0), p


def descend(optimizer, p, steps, start=0, total=None):
    """Least squares with noise that depends on the step; lr falls linearly to zero."""
    for step in range(start, start + steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / (total or steps))
        noise = torch.sin(torch.arange(32.0).view(8, 4) * (step + 1)) * 0.1
        p.grad = p.detach() - TARGET + noise
        optimizer.step()


@pytest.fixture
def new_objects():
    """`gc.get_objects` leaves out what existed before: millions of objects in a whole suite."""
    gc.collect()
    gc.freeze()


def live_tensors():
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def memory_used():
    """Mebibytes, now: the largest so far would hide what grows below an earlier test's peak."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@linux
@lengths
@pytest.mark.usefixtures("new_objects")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_long_run_arrives_stays_finite_and_keeps_its_memory(rule, steps):
    optimizer, p = fresh(rule)
    descend(optimizer, p, steps // 10, total=steps)
    tensors, memory = live_tensors(), memory_used()
    descend(optimizer, p, steps - steps // 10, start=steps // 10, total=steps)
    assert (p - TARGET).norm() < 0.1 * TARGET.norm()  # the noise alone moves the minimum by a few %
    state = optimizer.state[p]
    assert all(x.isfinite().all() for x in state.values())
    if "row_scale" in state:
        assert state["row_scale"].abs().max() < 1e3 * state["row_scale"].abs().min()
    assert live_tensors() <= tensors + 5
    assert memory_used() < memory + 20


@linux
def test_the_measure_of_memory_sees_what_is_kept():
    before = memory_used()
    kept = torch.ones(2**24)  # beyond 32 MiB the C library reuses no block that was freed
    assert 60 < memory_used() - before < 120
    del kept


@lengths
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_two_halves_are_the_whole(rule, steps):
    steps = steps // 4 if steps > 1000 else steps // 8
    whole, p = fresh(rule)
    descend(whole, p, 2 * steps, total=2 * steps)
    first, q = fresh(rule)
    descend(first, q, steps, total=2 * steps)
    file = io.BytesIO()
    torch.save({"state": first.state_dict(), "weight": q.detach()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second, r = fresh(rule)
    with torch.no_grad():
        r.copy_(loaded["weight"])
    second.load_state_dict(loaded["state"])
    descend(second, r, steps, start=steps, total=2 * steps)
    assert torch.equal(r, p)
    for key, value in whole.state[p].items():
        assert torch.equal(second.state[r][key], value), key
