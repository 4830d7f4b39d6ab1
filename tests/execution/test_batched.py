"""The batched executor: what goes together, and how much at a time."""

from dataclasses import dataclass, replace

import pytest
import torch

import polarlight
from polarlight.execution import batched
from polarlight.execution.job import Job
from polarlight.linalg.slot import Function


@dataclass(frozen=True)
class Counting(Function):
    """A map that notes the shapes it is called with."""

    seen: list = None

    def __call__(self, M):
        self.seen.append(tuple(M.shape))
        return 2 * M

    def __hash__(self):
        return id(self.seen)


def rule_and_shapes():
    seen = []
    rule = replace(
        polarlight.rules.muon(), map=Counting(None, seen=seen), scale=polarlight.stages.Unscaled()
    )
    return rule, seen


def jobs(rule, shapes):
    return [Job(rule, torch.full(shape, float(i)), {}) for i, shape in enumerate(shapes)]


def test_equal_shapes_go_together_and_results_keep_their_order():
    rule, seen = rule_and_shapes()
    shapes = [(4, 2), (2, 4), (4, 2), (3, 4, 2), (2, 4)]
    directions = polarlight.Batched().directions(jobs(rule, shapes))
    assert seen == [(5, 4, 2), (2, 2, 4)]
    for i, (direction, shape) in enumerate(zip(directions, shapes, strict=True)):
        assert torch.equal(direction, torch.full(shape, 2.0 * i))


def test_rules_and_dtypes_are_not_mixed():
    rule, seen = rule_and_shapes()
    other, also_seen = rule_and_shapes()
    mixed = jobs(rule, [(4, 2)] * 2) + jobs(other, [(4, 2)] * 2)
    mixed += [Job(rule, torch.zeros(4, 2, dtype=torch.float64), {})]
    polarlight.Batched().directions(mixed)
    assert seen == [(2, 4, 2), (4, 2)]
    assert also_seen == [(2, 4, 2)]


def test_a_stack_stays_below_the_cap_but_for_a_single_job():
    rule, seen = rule_and_shapes()
    two = 2 * 4 * 2 * 4
    polarlight.Batched(max_bytes=two).directions(jobs(rule, [(4, 2)] * 5 + [(9, 4, 2)]))
    assert seen == [(2, 4, 2), (2, 4, 2), (4, 2), (9, 4, 2)]


def test_no_jobs_no_directions():
    assert polarlight.Batched().directions([]) == []


@pytest.mark.parametrize(
    ("bfloat16", "large"), [(False, [(8, 4), (8, 4)]), (True, [(2, 8, 4)])], ids=str
)
def test_on_a_cpu_small_matrices_fill_the_cache_and_large_ones_are_alone_in_float32(
    monkeypatch, bfloat16, large
):
    """A CPU that iterates in bfloat16 computes large ones two at a time."""
    monkeypatch.setattr(batched, "has_fast_bfloat16", lambda device_type: bfloat16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    rule, seen = rule_and_shapes()
    executor = polarlight.Batched(piece_on_cpu=4 * 4 * 2 * 4)  # four of 4 x 2
    executor.directions(jobs(rule, [(4, 2)] * 5 + [(6, 2)] * 9 + [(8, 4)] * 2))
    assert seen == [(4, 4, 2), (4, 2), (9, 6, 2), *large]
    assert polarlight.Batched().piece_on_cpu == 2**20


@pytest.mark.parametrize("cap", ["max_bytes", "piece_on_cpu"])
def test_a_negative_cap_is_named(cap):
    with pytest.raises(ValueError, match=f"{cap} must be >= 0, got -1"):
        polarlight.Batched(**{cap: -1})


def test_capped_stacks_bound_the_bytes_of_a_batch(monkeypatch):
    monkeypatch.setattr(batched, "MOST_BYTES_ON_CPU", 4 * 100)
    tensors = [torch.zeros(shape) for shape in [(8, 5), (4, 4), (8, 5), (30, 10), (4, 4), (8, 5)]]
    assert batched.step_stacks(tensors) == [[1, 4, 0], [2, 5], [3]]
    assert batched.step_stacks([]) == []


@pytest.mark.parametrize(("cores", "sizes"), [(1, [3, 3, 1]), (2, [2, 2, 3]), (4, [3, 3, 1])])
def test_a_cut_stack_of_equal_shapes_has_as_many_matrices_for_every_core(monkeypatch, cores, sizes):
    """A core takes a product of its own: two cores are busy for as long with three as with four."""
    monkeypatch.setattr(batched, "MOST_BYTES_ON_CPU", 3 * 32)  # three matrices of 4 x 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    stacks = batched.step_stacks([torch.zeros(4, 2)] * 7)
    assert [len(stack) for stack in stacks] == sizes
    assert sorted(i for stack in stacks for i in stack) == list(range(7))
    rule, seen = rule_and_shapes()
    polarlight.Batched(max_bytes=3 * 32).directions(jobs(rule, [(4, 2)] * 7))
    assert [shape[0] if len(shape) == 3 else 1 for shape in seen] == sizes


def test_batches_of_an_accelerator_end_where_a_shape_ends(monkeypatch):
    monkeypatch.setattr(batched, "MOST_BYTES", 10 * 32)  # ten matrices of 4 x 2
    shapes = [(4, 2)] * 6 + [(2, 4)] * 6 + [(8, 1)] * 3
    params = [torch.nn.Parameter(torch.ones(s, device="meta")) for s in shapes]
    stacks = batched.step_stacks(params)
    assert [[tuple(params[i].shape) for i in stack] for stack in stacks] == [
        [(2, 4)] * 6,
        [(4, 2)] * 6 + [(8, 1)] * 3,
    ]
    many = [torch.nn.Parameter(torch.ones(4, 2, device="meta")) for _ in range(23)]
    assert [len(stack) for stack in batched.step_stacks(many)] == [10, 10, 3]
