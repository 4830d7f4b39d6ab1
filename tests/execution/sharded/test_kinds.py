"""Kinds of matrices: what is counted once for all of a kind is what each of them has."""

import pytest
import torch

import polarlight
from benchmarks.plans_at_scale import MODELS, plans_of
from polarlight.execution.sharded.forecast import forecast
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.regions import overlap
from polarlight.linalg.slot import GRADIENT

LAYOUTS = [
    ((4,), (Split(0),)),
    ((4,), (None,)),
    ((2, 2), (None, Split(0))),
    ((2, 3), (Split(0), Split(1))),
    ((2, 2), (Split(0, 2), Split(0))),
]
SHAPES = [(10, 4), (8, 12, 4), (8, 12, 4), (1, 6), (10, 4)]


@pytest.mark.parametrize(("mesh", "splits"), LAYOUTS, ids=str)
@pytest.mark.parametrize("rule", ["normuon", "soap"])
def test_shares_are_the_entries_that_each_process_of_the_copy_exchanges(rule, mesh, splits):
    plan = plan_of(getattr(polarlight.rules, rule)(), mesh, splits)
    for number, (matrix, kind, owner) in enumerate(
        zip(plan.matrices, plan.kinds, plan.owners, strict=True)
    ):
        spec = plan.params[matrix.param]
        expected, extra, all_there = {}, {}, True
        for rank, where in enumerate(plan.coordinates):
            for name, block in matrix.blocks.items():
                layout = spec.layouts[name]
                count = overlap(block, layout.held(where))
                all_there &= rank != owner or count == block.numel
                of_owner, replicated_axes = plan.coordinates[owner], plan.replicated_of(number)
                if not count or any(where[k] != of_owner[k] for k in replicated_axes):
                    continue
                size = count * spec.dtypes[name].itemsize
                replicated = layout.copies > spec.layouts[""].copies
                sent = expected.setdefault(rank, [0, 0])
                sent[0] += 0 if replicated else size
                sent[1] += 0 if name == GRADIENT else size
                same = layout.copy_index(where) == layout.copy_index(plan.coordinates[owner])
                assert kind.sends(name, rank, owner) == same
                if replicated and same and rank != owner:
                    extra[rank] = extra.get(rank, 0) + size
        assert kind.shares(owner) == {rank: tuple(both) for rank, both in expected.items()}
        found = kind.extra_gathered(owner)
        assert {r: sum(n for by, n in found if by == r) for r, _ in found} == extra
        assert kind.has_all(owner) == all_there


def plan_of(rule, mesh, splits):
    tensors = [torch.empty(shape, device="meta") for shape in SHAPES]
    lay = lambda name, p: Layout(tuple(p.shape), mesh, splits)  # noqa: E731
    (plan,) = forecast([{"params": tensors, "rule": rule}], lay, Options())
    return plan


def test_equal_layers_have_the_same_kinds():
    (plan,) = plans_of(MODELS["dense-1.1b"](), "8")
    assert len({id(kind) for kind in plan.kinds}) == 3  # q, k, v and o are squares
    assert len(plan.kinds) == len(plan.matrices) == 16 * 7


def test_experts_that_lie_on_other_processes_are_of_another_kind():
    plan = plan_of(polarlight.rules.muon(), (4,), (Split(0),))
    of_stack = [kind for m, kind in zip(plan.matrices, plan.kinds, strict=True) if m.param == 1]
    assert [kind.whole_holders for kind in of_stack] == [(e // 2,) for e in range(8)]
