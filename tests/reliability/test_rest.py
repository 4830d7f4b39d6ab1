"""Rest: gradients that stay zero, for every rule and executor; gradients that only shrink go on."""

import copy
import math
from dataclasses import replace

import pytest
import torch

import polarlight
from polarlight import SpectralOptimizer
from polarlight.linalg import rest
from polarlight.linalg.rest import FLOOR, SIZES
from polarlight.rules import kl_soap, polar_adamw, shampoo, soap
from polarlight.view import Heads, Whole
from tests.contracts.catalogue import SHIPPED
from tests.releases import needs_torchs_muon

ORDINARY, ZEROS = 20, 400
EXECUTORS = [polarlight.OneByOne(), polarlight.Batched(), polarlight.Sharded()]
SOME = {name: SHIPPED[name] for name in ("muon", "muoneq", "aurora", "polar_adamw", "soap")}
# Decay rates under which the quotient of Adam's moments does not shrink by itself.
ODD = {
    "polar_adamw": polar_adamw(betas=(0.95, 0.9)),
    "soap": soap(betas=(0.95, 0.9), every=1),
    "kl_soap": kl_soap(every=2),
    "shampoo": shampoo(betas=(0.95, 0.8)),
}


def gradients(shape, dtype=torch.float32, size=0.01, ordinary=ORDINARY, zeros=ZEROS):
    """Ordinary gradients, then zeros."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(ordinary):
        yield (size * torch.randn(shape, generator=generator)).to(dtype)
    for _ in range(zeros):
        yield torch.zeros(shape, dtype=dtype)


def moves(p, optimizer, found):
    """The length of every step."""
    lengths = []
    for g in found:
        p.grad, before = g, p.detach().clone()
        optimizer.step()
        lengths.append((p.detach() - before).double().norm().item())
    return lengths


def run(
    rule, shape=(8, 8), dtype=torch.float32, *, momentum=0.9, size=0.01, zeros=ZEROS, **options
):
    p = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = SpectralOptimizer(
        [p], lr=0.02, momentum=momentum, rule=rule, view=Whole(), **options
    )
    return moves(p, optimizer, gradients(shape, dtype, size, zeros=zeros))


def steps_taken(lengths):
    """Count steps after the last ordinary one that exceed a hundredth of it."""
    ordinary = lengths[ORDINARY - 1]
    return sum(length > 0.01 * ordinary for length in lengths[ORDINARY:])


def longest(beta, floor=FLOOR):
    """Steps until a momentum has shrunk to the floor, one more to look ahead, one to be seen."""
    return math.ceil(math.log(floor) / math.log(beta)) + 2


HIGH = 2.0**-5
SOON = 80
"""Zeros after which a momentum of 0.95 is below the high floor: 68 steps, and one to look ahead."""


@pytest.fixture
def high_floor(monkeypatch):
    """A floor that is reached sooner; rest itself is the same."""
    monkeypatch.setattr(rest, "FLOOR", HIGH)


@pytest.mark.usefixtures("high_floor")
@pytest.mark.parametrize("executor", EXECUTORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("rule", SOME.values(), ids=SOME)
def test_every_executor_comes_to_rest(rule, executor):
    assert not any(run(rule, executor=executor, zeros=SOON)[-10:])


@pytest.mark.parametrize(
    ("floor", "zeros"), [(HIGH, SOON), pytest.param(FLOOR, 1500, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rule", SHIPPED.values(), ids=SHIPPED)
def test_every_rule_comes_to_rest_when_gradients_stay_zero(rule, floor, zeros, monkeypatch):
    """A higher floor is reached sooner; some rules are run to the real one above."""
    monkeypatch.setattr(rest, "FLOOR", floor)
    lengths = run(rule, (2, 12, 4), zeros=zeros)
    slowest = longest(0.95, floor)  # the slowest momentum of any rule's own
    assert steps_taken(lengths) <= slowest < zeros
    assert not any(lengths[ORDINARY + slowest :])


@pytest.mark.parametrize(
    ("floor", "zeros"), [(2.0**-12, 250), pytest.param(FLOOR, 600, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rule", ODD.values(), ids=ODD)
def test_adams_quotient_comes_to_rest_where_it_does_not_shrink(rule, floor, zeros, monkeypatch):
    monkeypatch.setattr(rest, "FLOOR", floor)
    assert not any(run(rule, zeros=zeros)[-zeros // 3 :])


@needs_torchs_muon
def test_updates_stop_within_one_and_a_half_times_torchs_steps():
    """torch's floor is 1e-7 of a norm, whatever the gradients: 363 steps for some, 0 for others."""
    p = torch.nn.Parameter(torch.zeros(8, 8))
    found = gradients((8, 8), zeros=400)
    theirs = moves(p, torch.optim.Muon([p], lr=0.02, weight_decay=0.0), found)
    ours = run(polarlight.rules.muon(), momentum=0.95, zeros=400)
    assert 0 < steps_taken(ours) <= longest(0.95)
    assert steps_taken(ours) <= 1.5 * steps_taken(theirs)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("make", [polarlight.rules.muon, polarlight.rules.muoneq])
def test_rest_comes_when_the_momentum_has_shrunk_to_the_floor(make, momentum):
    arrives = longest(momentum) < ZEROS
    zeros = longest(momentum) + 20 if arrives else 100
    taken = steps_taken(run(make(), momentum=momentum, zeros=zeros))
    if arrives:
        # Before it rises for the last time the momentum may fall a little.
        assert longest(momentum) - 2 / (1 - momentum) <= taken <= longest(momentum)
    else:
        assert taken == zeros


@pytest.mark.parametrize("exponent", [-100, 100])
@pytest.mark.parametrize("floor", [HIGH, pytest.param(FLOOR, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["muon", "muoneq", "polar_adamw"])
def test_the_scale_of_all_gradients_changes_no_step_on_the_way_to_rest(
    name, floor, exponent, monkeypatch
):
    monkeypatch.setattr(rest, "FLOOR", floor)
    rule = replace(SHIPPED[name], map=polarlight.linalg.ExactPolar())
    zeros = SOON if floor == HIGH else ZEROS
    plain, scaled = (run(rule, size=size, zeros=zeros) for size in (0.5, 0.5 * 2.0**exponent))
    assert 0 < steps_taken(plain) < zeros
    assert steps_taken(scaled) == steps_taken(plain)
    torch.testing.assert_close(torch.tensor(scaled), torch.tensor(plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [polarlight.rules.muon, polarlight.rules.muoneq])
def test_momenta_in_half_precision_come_to_rest(make, dtype):
    assert not any(run(make(), dtype=dtype, zeros=longest(0.9) + 50)[-50:])


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_momentum_kept_in_bfloat16_comes_to_rest(stochastic):
    kept = polarlight.stages.InBfloat16(polarlight.stages.EMA(), stochastic=stochastic)
    rule = replace(polarlight.rules.muon(), momentum=kept)
    assert not any(run(rule, zeros=longest(0.9) + 50)[-50:])


@pytest.mark.parametrize("name", ["muon", "muoneq", "aurora", "polar_adamw"])
def test_gradients_that_shrink_over_many_decades_still_update(name):
    """By 6 % per step and never zero: 2e-11 of the first after 400 steps."""
    p = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = SpectralOptimizer([p], lr=0.02, momentum=0.9, rule=SHIPPED[name])
    generator = torch.Generator().manual_seed(0)
    found = (0.94**t * torch.randn(8, 8, generator=generator) for t in range(400))
    lengths = moves(p, optimizer, found)
    assert min(lengths[ORDINARY:]) > 0.1 * lengths[ORDINARY]


def test_a_spike_does_not_stop_what_comes_after_it():
    p = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = SpectralOptimizer([p], lr=0.02, momentum=0.9, rule=polarlight.rules.muon())
    generator = torch.Generator().manual_seed(0)
    sizes = [1.0] * 20 + [1e20] + [1.0] * 600
    lengths = moves(p, optimizer, (s * torch.randn(8, 8, generator=generator) for s in sizes))
    # The momentum itself remembers the spike for ln(1e20) / ln(1 / 0.9) = 437 steps.
    assert min(lengths[-100:]) > 0.5 * lengths[10]


def test_a_gradient_ends_the_rest_at_once_however_small():
    p = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = SpectralOptimizer([p], lr=0.02, momentum=0.9, rule=polarlight.rules.muon())
    assert moves(p, optimizer, gradients((8, 8)))[-1] == 0
    (length,) = moves(p, optimizer, [1e-12 * torch.eye(8)])
    assert length == pytest.approx(0.02 * 8**0.5, rel=0.05)


def test_an_expert_rests_while_others_update():
    p = torch.nn.Parameter(torch.zeros(3, 8, 4))
    optimizer = SpectralOptimizer([p], momentum=0.9, rule=polarlight.rules.muon(), view=Whole())
    for t, g in enumerate(gradients((3, 8, 4), ordinary=250, zeros=0)):
        p.grad, before = g, p.detach().clone()
        if t >= ORDINARY:
            p.grad[1] = 0
        optimizer.step()
    moved = (p.detach() - before).norm(dim=(-2, -1))
    assert moved[1] == 0
    assert (moved[[0, 2]] > 0.01).all()


def test_a_head_rests_while_others_update():
    p = torch.nn.Parameter(torch.zeros(12, 4))
    optimizer = SpectralOptimizer([p], momentum=0.9, rule=polarlight.rules.muon(), view=Heads(3))
    for t, g in enumerate(gradients((12, 4), ordinary=250, zeros=0)):
        p.grad, before = g, p.detach().clone()
        if t >= ORDINARY:
            p.grad[4:8] = 0
        optimizer.step()
    moved = (p.detach() - before).view(3, -1).norm(dim=-1)
    assert moved[1] == 0
    assert (moved[[0, 2]] > 0.01).all()


@needs_torchs_muon
def test_weight_decay_at_rest_equals_torchs():
    ends = []
    for make in (polarlight.Muon, torch.optim.Muon):
        p = torch.nn.Parameter(torch.ones(8, 8))
        optimizer = make([p], lr=0.02, momentum=0.9, weight_decay=0.1)
        moves(p, optimizer, gradients((8, 8), zeros=300))
        p.grad, before = torch.zeros(8, 8), p.detach().clone()
        optimizer.step()
        ends.append((p.detach(), before))
    for after, before in ends:
        torch.testing.assert_close(after, before * (1 - 0.02 * 0.1))


@pytest.mark.usefixtures("high_floor")
@pytest.mark.parametrize("name", SOME)
def test_rest_survives_a_checkpoint(name):
    p = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = SpectralOptimizer([p], lr=0.02, momentum=0.9, rule=SHIPPED[name])
    moves(p, optimizer, gradients((8, 8), zeros=SOON))
    again = SpectralOptimizer([p], rule=SHIPPED[name])
    again.load_state_dict(optimizer.state_dict())
    assert moves(p, again, [torch.zeros(8, 8)]) == [0]


@pytest.mark.usefixtures("high_floor")
@pytest.mark.parametrize("name", SOME)
def test_a_state_without_sizes_loads_and_resumes(name):
    """As older versions saved it."""
    p = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = SpectralOptimizer([p], lr=0.02, momentum=0.9, rule=SHIPPED[name])
    moves(p, optimizer, gradients((8, 8), zeros=0))
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0][SIZES]
    twin = torch.nn.Parameter(p.detach().clone())
    again = SpectralOptimizer([twin], rule=SHIPPED[name])
    again.load_state_dict(saved)
    more = list(gradients((8, 8), ordinary=5, zeros=0))
    assert moves(twin, again, more) == moves(p, optimizer, more)
    assert not any(moves(twin, again, gradients((8, 8), ordinary=0, zeros=SOON))[-10:])
