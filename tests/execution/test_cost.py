"""Counts of a rule's direction: as if every iteration ran, from few operations."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polarlight import rules
from polarlight.execution.cost import flops, rowwise_cost
from polarlight.linalg import cost
from polarlight.linalg.cost import counted, uniform_range
from tests.contracts.catalogue import RULES, SHIPPED
from tests.in_turn import in_turn

EXACT = rules.aurora(rules.ExactBalanced())
LONG = {
    "riemannian-as-shipped": rules.aurora(rules.RiemannianPolar()),
    "release-of-9": rules.aurora(rules.BalancedPolar(rounds=9)),
    "paper-of-9": rules.aurora(rules.FeedbackPolar(rounds=9)),
}
"""Solvers of more iterations than the catalogue gives them."""
EVERY = RULES | {f"{name}-shipped": rule for name, rule in SHIPPED.items()} | LONG
SHAPES = [(12, 4), (4, 12), (300, 100), (64, 64)]
MOST = 1000
"""Operations of one count; the exact solver takes 741 on a wide matrix."""


class Dispatched(TorchDispatchMode):
    """Counts what reaches the operators."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


def counts(rule, shape):
    """Return both counts of a rule, not from the cache; neither may dispatch many operations."""
    found = []
    for count in (partial(flops, rule, *shape), partial(rowwise_cost, rule, *shape, shape[0] // 2)):
        with Dispatched() as dispatched:
            found.append(count.func.__wrapped__(*count.args))
        assert dispatched.operations <= MOST
    return found


@pytest.mark.parametrize(("rule", "shape"), in_turn(EVERY, SHAPES, 1))
def test_a_count_of_few_operations_is_that_of_all_iterations(rule, shape, monkeypatch):
    """To the bit: flops are whole numbers below 2^53, or thirds of them that are rounded."""
    repeated, first_of = [], cost._Operations.first_of

    def noted(operations, times):
        repeated.append(times > 1)
        return first_of(operations, times)

    monkeypatch.setattr(cost._Operations, "first_of", noted)
    found = counts(rule, shape)
    if any(repeated):
        monkeypatch.setattr(cost._Operations, "first_of", lambda _, times: range(times))
        monkeypatch.setitem(globals(), "MOST", float("inf"))
        assert counts(rule, shape) == found


def test_the_exact_solver_is_counted_by_few_operations():
    assert counts(EXACT, (12, 4)) == [1989931, None]


@pytest.mark.slow
def test_all_iterations_of_the_exact_solver_dispatch_fifty_times_as_many(monkeypatch):
    monkeypatch.setattr(cost._Operations, "first_of", lambda _, times: range(times))
    with Dispatched() as dispatched:
        assert flops.__wrapped__(EXACT, 12, 4) == 1989931
    assert dispatched.operations > 50 * MOST  # 58,625 on torch 2.13


def test_loops_inside_loops_multiply():
    """Of no, one and several iterations; the sums of rows are multiplied as well."""
    A = torch.empty(3, 3, device="meta")

    def loop():
        for _ in uniform_range(5):
            for times in (0, 1, 4):
                for _ in uniform_range(times):
                    cost.note_summed(A @ A)

    count = counted(loop, 3, 3)
    assert (count.flops, count.summed) == (25 * 54, 25 * 36)


def test_outside_of_a_count_every_iteration_runs():
    assert list(uniform_range(3)) == [0, 1, 2]
