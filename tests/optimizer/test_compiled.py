"""Inputs of a compiled step from outside of its graph: decided rules, exact products."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import polarlight
from polarlight import SpectralOptimizer
from polarlight.linalg.properties import NO_INVARIANTS
from polarlight.linalg.slot import Stage
from polarlight.rule import HOST_COUNTER
from polarlight.stages import OnSide, Side
from tests.matrices import gaussian
from tests.releases import needs_compiled_steps
from tests.reliability.test_surroundings import set_to, settings

pytestmark = [
    needs_compiled_steps,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own
    pytest.mark.filterwarnings("ignore:Logical operators:UserWarning"),
]

TALL, WIDE = (8, 4), (4, 8)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def optimizer_of(rule, shapes=(TALL, WIDE)):
    """An optimizer with a tensor learning rate, and its weights."""
    weights = [
        nn.Parameter(gaussian(*s, seed=i, dtype=torch.float32)) for i, s in enumerate(shapes)
    ]
    return SpectralOptimizer(weights, torch.tensor(0.02), rule=rule), weights


def set_gradients(weights, step):
    for i, w in enumerate(weights):
        w.grad = gaussian(*w.shape, seed=100 * step + i, dtype=torch.float32)


def scheduled_steps(rule, steps, spoil=lambda weights, t: None, shapes=(TALL, WIDE)):
    """Graphs made up to each compiled step under a scheduler, and the distance from eager steps."""
    eager, expected = optimizer_of(rule, shapes)
    optimizer, weights = optimizer_of(rule, shapes)
    step = torch.compile(optimizer.step, backend="eager")
    seen = []
    for t in range(steps):
        for same in (expected, weights):
            set_gradients(same, t)
            spoil(same, t)
        eager.step()
        step()
        seen.append(counters["stats"]["unique_graphs"])
        for group in (*eager.param_groups, *optimizer.param_groups):
            group["lr"].mul_(0.9)
    pairs = zip(weights, expected, strict=True)
    return seen, max((p - q).abs().max().item() for p, q in pairs)


@dataclass(frozen=True, slots=True)
class EveryThird(Stage):
    """The normalized momentum of every third step, kept in between: counts on the host."""

    decided: bool | None = None

    def buffer_shapes(self, shape):
        kept = {HOST_COUNTER: (1, 1), "kept": tuple(shape[-2:])}
        return {name: torch.Size((*shape[:-2], *size)) for name, size in kept.items()}

    def at_step(self, t):
        return EveryThird(t % 3 == 0)

    def __call__(self, X, buffers):
        step = buffers[HOST_COUNTER]
        if self.decided if self.decided is not None else bool((step % 3 == 0).all()):
            norm = X.square().sum(dim=(-2, -1), keepdim=True).sqrt()
            buffers["kept"].copy_(torch.where(norm > 0, X / norm, 0.0))
        step.add_(1)
        return buffers["kept"].clone()

    def symmetries(self, m, n):
        return frozenset()

    def invariants(self, m, n):
        return NO_INVARIANTS


MUON = polarlight.rules.muon()
COUNTING = {  # the steps in which a kind of step comes for the first time
    "soap": (polarlight.rules.soap(every=10), [0, 1, 10]),  # start, neither, refresh
    "in a wrapping slot": (replace(MUON, map=OnSide(Side.TALL, EveryThird())), [0, 1]),
}
MORE = {
    "kl_soap": (polarlight.rules.kl_soap(), [0, 1]),
    "a map": (replace(MUON, map=EveryThird()), [0, 1]),
    "a balance": (replace(MUON, balance=EveryThird()), [0, 1]),
    "after the map": (replace(MUON, post=(EveryThird(),)), [0, 1]),
}


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        *(pytest.param(*case, id=name) for name, case in COUNTING.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in MORE.items()),
    ],
)
def test_each_kind_of_step_by_a_host_counter_is_one_graph_and_none_later(rule, first):
    seen, distance = scheduled_steps(rule, steps=22, shapes=(TALL,))
    # A graph is made in the first step of its kind; no step is two.
    assert seen == [sum(t <= now for t in first) for now in range(22)]
    assert distance < 1e-5  # float32 rounding over 22 steps of 0.02


def without_gradient(weights, t):
    """No gradient for one matrix in the first two steps: its count stays behind."""
    if t < 2:
        weights[0].grad = None


def not_finite(weights, t):
    """A bad gradient of one matrix at its start, in between, and at its refresh."""
    if t in (0, 3, 4):
        weights[0].grad[0, 0] = torch.nan


@pytest.mark.parametrize(
    "spoil", [pytest.param(without_gradient, marks=pytest.mark.slow), not_finite]
)
@pytest.mark.parametrize(
    ("rule", "combinations"),
    [
        pytest.param(replace(MUON, map=EveryThird()), 5, id="a map"),
        pytest.param(polarlight.rules.soap(every=3), 6, id="soap", marks=pytest.mark.slow),
    ],
)
def test_matrices_with_different_counts_do_in_a_graph_what_each_is_due(rule, combinations, spoil):
    """One graph per combination: a kind that two matrices share must not hide a change of one."""
    seen, distance = scheduled_steps(rule, steps=7, spoil=spoil)
    assert distance < 1e-5
    assert seen[-1] <= combinations


def test_a_rule_without_a_host_counter_is_itself_at_every_step():
    for rule in (MUON, polarlight.rules.aurora(), polarlight.rules.shampoo()):
        assert rule.at_step(0) is rule


def test_at_step_keeps_every_other_slot_and_field():
    soap = replace(polarlight.rules.soap(every=3), balance=MUON.map, post=(MUON.map,))
    kinds = [soap.at_step(t) for t in range(7)]
    assert len(set(kinds)) == 3
    assert kinds[1] == kinds[2] == kinds[4] == kinds[5]
    assert kinds[3] == kinds[6]
    for kind in kinds:
        assert (kind.balance, kind.post, kind.scale) == (soap.balance, soap.post, soap.scale)
        assert kind.map.buffer_shapes(torch.Size(TALL)) == soap.map.buffer_shapes(torch.Size(TALL))
        assert kind.map.betas == soap.map.betas


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(polarlight.rules.soap(), marks=pytest.mark.slow, id="soap"),
        pytest.param(MUON, id="muon"),
    ],
)
def test_a_graph_is_compiled_and_run_at_full_precision_outside_of_autocast(rule):
    seen = []

    def note():
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))

    def backend(graph, inputs):
        note()
        return lambda *args: note() or graph(*args)

    optimizer, weights = optimizer_of(rule)
    step = torch.compile(optimizer.step, backend=backend)
    with set_to("high"):
        before = settings()
        for t in range(2):
            set_gradients(weights, t)
            with torch.autocast("cpu", torch.bfloat16):
                step()
        assert settings() == before
    assert len(seen) >= 3  # one compilation, two runs
    assert set(seen) == {("highest", False)}


def test_a_compiled_step_that_raises_puts_the_precision_back():
    def backend(graph, inputs):
        def run(*args):
            raise ArithmeticError

        return run

    optimizer, weights = optimizer_of(polarlight.rules.row_norm())
    set_gradients(weights, 0)
    with set_to("medium"):
        before = settings()
        with pytest.raises(ArithmeticError):
            torch.compile(optimizer.step, backend=backend)()
        assert settings() == before
