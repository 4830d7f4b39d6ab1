"""Tests of gradients for NaN and Inf: overflowing sums and squares, other processes."""

import math

import pytest
import torch

import polarlight
from polarlight.execution.sharded import collectives
from polarlight.optimizer.gradient_guard import (
    finite_flags,
    finite_of,
    finite_on_host,
    gradients_by_device,
    is_host_readable,
    nonfinite_indices,
)
from polarlight.rules import AdamWRule

GUARD = "polarlight.optimizer.gradient_guard"
HUGE = torch.full((4,), 3e38)
CASES = [torch.ones(3), HUGE, torch.tensor([1.0, math.nan]), torch.tensor([-math.inf])]


def test_finite_flags_test_entries_or_the_sum_of_their_squares():
    assert finite_flags(CASES, squares=False).tolist() == [True, True, False, False]
    assert finite_flags(CASES, squares=True).tolist() == [True, False, False, False]


def test_half_precision_and_double_are_squared_in_a_dtype_that_holds_it():
    wide = [
        torch.full((4,), 6e4, dtype=torch.float16),
        torch.full((4,), 1e100, dtype=torch.float64),
    ]
    wide.append(torch.full((4,), 1e18, dtype=torch.bfloat16))
    for g in wide:
        assert finite_flags([g.clone()], squares=True).tolist() == [True]


@pytest.mark.parametrize("squares", [False, True])
def test_a_shard_without_entries_is_finite(squares):
    assert finite_flags([torch.ones(0, 3)], squares).tolist() == [True]


@pytest.mark.parametrize("squares", [False, True])
def test_finite_on_host_equals_finite_flags(squares):
    assert finite_on_host(CASES, squares) == finite_flags(CASES, squares).tolist()
    assert finite_on_host(CASES[:1] * 2, squares) == [True, True]


def test_a_finite_sum_spares_the_host_the_test_of_entries(monkeypatch):
    asked = []
    monkeypatch.setattr(f"{GUARD}.finite_flags", lambda *_: asked.append(1) or torch.tensor([]))
    assert finite_on_host([torch.ones(3)] * 2, squares=False) == [True, True]
    assert not asked
    finite_on_host([torch.ones(3)], squares=True)
    finite_on_host([HUGE], squares=False)
    monkeypatch.setattr(f"{GUARD}.is_host_readable", lambda device: False)
    finite_on_host([torch.ones(3)], squares=False)
    assert len(asked) == 3


def test_the_host_reads_its_own_memory_and_not_while_compiling(monkeypatch):
    assert is_host_readable(torch.device("cpu"))
    assert not is_host_readable(torch.device("cuda", 0))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not is_host_readable(torch.device("cpu"))
    assert not is_host_readable(torch.device("cuda", 0))


def test_gradients_are_gathered_by_device_and_missing_ones_left_out():
    devices = ["cpu", "meta", "cpu", "cpu"]
    params = [torch.nn.Parameter(torch.ones(2, device=d)) for d in devices]
    for p in (params[0], params[1], params[3]):
        p.grad = torch.ones_like(p)
    found = {str(d): (here, len(gs)) for d, here, gs in gradients_by_device(params, [0, 1, 2, 3])}
    assert found == {"cpu": ([0, 3], 2), "meta": ([1], 1)}


@pytest.mark.parametrize(("rule", "bad"), [(polarlight.rules.muon(), [1]), (AdamWRule(), [0, 1])])
def test_elementwise_rules_square_their_gradients(rule, bad):
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    for p, g in zip(params, (3e38, math.inf, 1.0), strict=True):
        p.grad = torch.full((4,), g)
    assert nonfinite_indices({"params": params, "rule": rule}, [0, 1, 2]) == bad


@pytest.mark.parametrize("squares", [False, True])
def test_flags_of_several_groups_come_in_the_order_asked_for(squares):
    rules = [AdamWRule() if squares else polarlight.rules.muon(), polarlight.rules.muon()]
    groups = [{"params": gradients([1.0, math.nan, 3e38]), "rule": rule} for rule in rules]
    found = finite_of(groups, [(1, 2), (0, 1), (0, 2), (1, 0), (0, 0)])
    assert found.tolist() == [True, False, not squares, True, True]


def gradients(values):
    params = [torch.nn.Parameter(torch.ones(2)) for _ in values]
    for p, value in zip(params, values, strict=True):
        p.grad = torch.full((2,), value)
    return params


def test_nothing_is_compared_with_other_processes_where_nothing_is_shared(monkeypatch):
    def refuse(*_):
        raise AssertionError("a collective")

    monkeypatch.setattr(collectives, "reduce_max", refuse)
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.full((2, 2), math.nan)
    optimizer = polarlight.SpectralOptimizer([p], rule=polarlight.rules.muon())
    optimizer.step()
    assert list(optimizer.skipped().values()) == [1]
