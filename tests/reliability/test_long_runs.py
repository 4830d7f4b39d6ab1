"""Thousands of steps of every rule: no drift, nothing grows, two halves are the whole."""

import ctypes
import gc
import io

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


class Allocated(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library: ten counts, two of them of bytes in use."""

    _fields_ = (
        ("before", ctypes.c_size_t * 4),
        ("mapped", ctypes.c_size_t),
        ("unused", ctypes.c_size_t * 2),
        ("from_heaps", ctypes.c_size_t),
        ("after", ctypes.c_size_t * 2),
    )


mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
if mallinfo is not None:
    mallinfo.restype = Allocated
counted = pytest.mark.skipif(mallinfo is None, reason="counted by the GNU C library from 2.33")


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
    """Mebibytes allocated and not freed; resident pages are used again, and show less."""
    now = mallinfo()
    return (now.from_heaps + now.mapped) / 2**20


@counted
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


@counted
def test_the_measure_of_memory_sees_what_takes_the_place_of_something_freed():
    torch.ones(2**22)  # once freed, blocks up to its size come from the heap: glibc's rule
    blocks = [torch.ones(2**21) for _ in range(32)]
    del blocks[:-1]  # the last stays, so that the heap cannot give back what lies below it
    before = memory_used()
    kept = torch.ones(2**24)
    assert 63 < memory_used() - before < 70
    del kept
    assert memory_used() < before + 1


@lengths
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_two_halves_are_the_whole(rule, steps):
    steps = steps // 4 if steps > 1000 else steps // 16
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
