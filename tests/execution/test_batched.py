"""The batched executor: what goes together, and how much at a time."""

from dataclasses import dataclass, replace

import pytest
import torch

import polarlight
from polarlight.execution import batched
from polarlight.execution.job import Job


@dataclass(frozen=True)
class Counting:
    """A map that notes the shapes it is called with."""

    seen: list = None

    def __call__(self, M):
        self.seen.append(tuple(M.shape))
        return 2 * M

    def __hash__(self):
        return id(self.seen)


def rule_and_shapes():
    seen = []
    rule = replace(polarlight.muon(), map=Counting(seen), scale=polarlight.Unscaled())
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


def test_matrices_are_made_where_they_would_be_copied_to():
    rule, seen = rule_and_shapes()
    executor = polarlight.Batched()
    like = [torch.zeros(shape) for shape in [(2, 4), (2, 4), (4, 2), (2, 4)]]
    room = executor.room(rule, like)
    assert [place.shape for place in room] == [x.shape for x in like]
    for i, place in enumerate(room):
        place.fill_(float(i))
    stack = batched._stacked(room[:2], torch.float32)
    assert stack.data_ptr() == room[0].data_ptr()
    directions = executor.directions([Job(rule, place, {}) for place in room])
    assert seen == [(3, 2, 4), (4, 2)]
    assert [D.unique().tolist() for D in directions] == [[0.0], [2.0], [4.0], [6.0]]


def test_room_is_made_in_the_dtype_that_is_read():
    rule = polarlight.muon(polar=polarlight.AutoPolar(dtype=torch.bfloat16))
    room = polarlight.Batched().room(rule, [torch.zeros(4, 2)] * 2)
    assert [place.dtype for place in room] == [torch.bfloat16] * 2


NO_ROOM = {
    "a batch": torch.zeros(3, 4, 2),
    "narrow": torch.zeros(4, 2, dtype=torch.bfloat16),
    "wide": torch.zeros(4, 2, dtype=torch.float64),
    "elsewhere": torch.zeros(4, 2, device="meta"),
    "goes alone": torch.zeros(512, 512),
}


@pytest.mark.parametrize("other", NO_ROOM.values(), ids=NO_ROOM)
def test_no_room_is_made_where_nothing_would_be_copied(other):
    rule, _ = rule_and_shapes()
    assert polarlight.Batched().room(rule, [torch.zeros(4, 2), other]) is None


def test_no_room_is_made_beyond_the_cap_or_in_a_graph(monkeypatch):
    rule, _ = rule_and_shapes()
    like = [torch.zeros(4, 2)] * 2
    assert polarlight.Batched(max_bytes=31).room(rule, like) is None
    assert polarlight.Batched(max_bytes=32).room(rule, like) is not None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert polarlight.Batched().room(rule, like) is None


SLICES = {
    "in order": (lambda x: list(x), True),
    "in a graph": (lambda x: list(x), None),
    "swapped": (lambda x: [x[1], x[0], x[2]], False),
    "some": (lambda x: [x[0], x[1]], False),
    "the same one": (lambda x: [x[0]] * 3, False),
    "of two": (lambda x: [x[0], x.clone()[1], x[2]], False),
    "none": (lambda x: [y.clone() for y in x], False),
}


@pytest.mark.parametrize(("cut", "taken"), SLICES.values(), ids=SLICES)
def test_only_a_whole_stack_is_taken_as_it_lies(monkeypatch, cut, taken):
    x = torch.arange(24.0).view(3, 4, 2).clone()
    if taken is None:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    matrices = cut(x)
    stack = batched._stacked(matrices, torch.float32)
    assert torch.equal(stack, torch.stack(matrices))
    assert (stack.data_ptr() == x.data_ptr()) == bool(taken)


def test_a_stack_that_lies_otherwise_is_copied():
    x = torch.arange(24.0).view(2, 4, 3).transpose(0, 2)
    assert batched._stacked(list(x), torch.float32).is_contiguous()
    assert torch.equal(batched._stacked(list(x), torch.float32), x)


def test_no_jobs_no_directions():
    assert polarlight.Batched().directions([]) == []


def test_a_negative_cap_is_named():
    with pytest.raises(ValueError, match="max_bytes must be >= 0, got -1"):
        polarlight.Batched(max_bytes=-1)


def test_a_step_is_cut_into_parts_of_bounded_size(monkeypatch):
    monkeypatch.setattr(batched, "MOST_BYTES_ON_CPU", 4 * 100)
    tensors = [torch.zeros(shape) for shape in [(8, 5), (4, 4), (8, 5), (30, 10), (4, 4), (8, 5)]]
    parts = list(batched.stacks(tensors))
    assert parts == [[1, 4, 0], [2, 5], [3]]
    assert list(batched.stacks([])) == []
