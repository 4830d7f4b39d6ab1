"""bfloat16 weights that are rounded at random: small updates arrive, and runs go on bit for bit."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.optimizer import gradient_guard, with_stochastic_rounding
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian

RULES = {
    "muon": SHIPPED["muon"],
    "aurora": SHIPPED["aurora"],
    "bfloat16-momentum": replace(SHIPPED["muon"], momentum=polarlight.stages.InBfloat16()),
    "soap": SHIPPED["soap"],
    "adamw": AdamWRule(),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def optimizer_of(rule, count=2, dtype=torch.bfloat16, at_random=True, **options):
    parameters = [nn.Parameter(gaussian(8, 4, seed=i, dtype=dtype)) for i in range(count)]
    optimizer = SpectralOptimizer(parameters, rule=rule, **{"lr": 0.01} | options)
    return with_stochastic_rounding(optimizer) if at_random else optimizer


def parameters_of(optimizer):
    return optimizer.param_groups[0]["params"]


def train(optimizer, steps, start=0):
    for step in range(start, start + steps):
        for i, p in enumerate(parameters_of(optimizer)):
            p.grad = gaussian(*p.shape, seed=100 * step + i, dtype=p.dtype)
        optimizer.step()
    return optimizer


def snapshot(optimizer):
    return [
        {"weight": p.detach().clone()} | {k: v.clone() for k, v in optimizer.state[p].items()}
        for p in parameters_of(optimizer)
    ]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype, name
            assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float lr", "tensor lr"])
@pytest.mark.parametrize("rule", [SHIPPED["muon"], AdamWRule()], ids=["muon", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 2.0], ids=["no decay", "decay"])
def test_updates_too_small_for_the_dtype_arrive_on_average(rule, tensor_lr, decay):
    """Each step is a twentieth of a unit in the last place; 64 x 64 entries average the noise."""
    moved = []
    for dtype in (torch.bfloat16, torch.float32):
        p = nn.Parameter(torch.full((64, 64), 1.5, dtype=dtype))
        lr = 4e-4 * (64 if rule.name == "muon" else 1)  # its update of ones has entries of 1/64
        lr = torch.tensor(lr) if tensor_lr else lr
        optimizer = SpectralOptimizer([p], rule=rule, lr=lr, weight_decay=decay, momentum=0.0)
        with_stochastic_rounding(optimizer)
        for _ in range(50):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved.append(float((p.detach().double() - 1.5).mean()))
    # the deviation of an entry is below two units, 2^-6, and that of their mean 64 times smaller
    assert moved[0] == pytest.approx(moved[1], abs=5 * 2**-6 / 64)
    assert abs(moved[1]) > 10 * 2**-6 / 64


def test_updates_too_small_for_the_dtype_are_lost_when_rounded_to_nearest():
    p = nn.Parameter(torch.full((64, 64), 1.5, dtype=torch.bfloat16))
    optimizer = SpectralOptimizer([p], rule=AdamWRule(), lr=4e-4)
    for _ in range(50):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.equal(p.detach(), torch.full_like(p, 1.5))


@rules
def test_a_resumed_run_is_the_straight_one_bit_for_bit(rule):
    straight = train(optimizer_of(rule), 3)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = optimizer_of(rule)
    for p, q in zip(parameters_of(resumed), parameters_of(straight), strict=True):
        p.data.copy_(q.detach())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(7)  # no generator is used
    assert_same(snapshot(train(resumed, 3, start=3)), snapshot(train(straight, 3, start=3)))
    assert [int(s["weight_draws"]) for s in snapshot(resumed)] == [6, 6]


@rules
def test_copies_of_an_optimizer_round_equally(rule):
    optimizer = train(optimizer_of(rule), 2)
    twin = copy.deepcopy(optimizer)
    assert_same(snapshot(train(twin, 2, start=2)), snapshot(train(optimizer, 2, start=2)))


@rules
@pytest.mark.parametrize("where", ["host", "device"])
def test_a_skipped_parameter_keeps_every_bit_and_its_rounding_step(rule, where, monkeypatch):
    if where == "device":
        monkeypatch.setattr(gradient_guard, "is_host_readable", lambda device: False)
    optimizer = train(optimizer_of(rule, weight_decay=0.5), 2)
    before = snapshot(optimizer)
    for p in parameters_of(optimizer):
        p.grad = torch.ones_like(p)
    parameters_of(optimizer)[0].grad[0, 0] = torch.nan
    optimizer.step()
    after = snapshot(optimizer)
    assert_same(after[:1], before[:1])
    assert not torch.equal(after[1]["weight"], before[1]["weight"])
    assert int(after[1]["weight_draws"]) == 3


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_stochastic_rounding_leaves_other_dtypes_alone(rule, dtype):
    found, plain = (optimizer_of(rule, dtype=dtype, at_random=on) for on in (True, False))
    assert_same(snapshot(train(found, 3)), snapshot(train(plain, 3)))


def test_moments_of_adamw_are_wide_and_gradients_are_not_written():
    optimizer = optimizer_of(AdamWRule(), count=1)
    (p,) = parameters_of(optimizer)
    p.grad = gaussian(8, 4, dtype=torch.bfloat16)
    before = p.grad.clone()
    optimizer.step()
    assert torch.equal(p.grad, before)
    assert {k: v.dtype for k, v in optimizer.state[p].items()} == {
        "step": torch.float32,
        "exp_avg": torch.float32,
        "exp_avg_sq": torch.float32,
        "weight_draws": torch.int32,
    }


@rules
def test_stochastic_rounding_can_begin_in_the_middle_of_a_run(rule):
    optimizer = train(optimizer_of(rule, at_random=False), 2)
    with_stochastic_rounding(optimizer)
    train(optimizer, 2, start=2)
    assert [int(s["weight_draws"]) for s in snapshot(optimizer)] == [2, 2]
    for p in parameters_of(optimizer):
        assert p.dtype == torch.bfloat16
        assert p.isfinite().all()


def test_added_groups_and_single_groups_can_round_stochastically():
    optimizer = optimizer_of(SHIPPED["muon"], count=1)
    late = nn.Parameter(gaussian(4, 4, dtype=torch.bfloat16))
    optimizer.add_param_group({"params": [late]})
    own = nn.Parameter(gaussian(4, 4, dtype=torch.bfloat16))
    other = nn.Parameter(gaussian(4, 4, dtype=torch.bfloat16))
    mixed = SpectralOptimizer(
        [{"params": [own], "stochastic_rounding": True}, {"params": [other]}], rule=SHIPPED["muon"]
    )
    for p, o in ((late, optimizer), (own, mixed), (other, mixed)):
        p.grad = torch.ones_like(p)
        o.step()
    assert "weight_draws" in optimizer.state[late]
    assert "weight_draws" in mixed.state[own]
    assert "weight_draws" not in mixed.state[other]


def test_a_model_in_bfloat16_trains_as_well_as_one_in_float32():
    """At a learning rate at which rounding to nearest stands still."""
    losses = {}
    for name, dtype, at_random in [
        ("float32", torch.float32, False),
        ("at random", torch.bfloat16, True),
        ("to nearest", torch.bfloat16, False),
    ]:
        X = gaussian(64, 8, dtype=torch.float32)
        Y = X @ gaussian(8, 8, seed=1, dtype=torch.float32).mT
        W = nn.Parameter(torch.full((8, 8), 4.0, dtype=dtype))
        optimizer = SpectralOptimizer([W], rule=AdamWRule(), lr=4e-3)
        if at_random:
            with_stochastic_rounding(optimizer)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (X @ W.float().mT - Y).square().mean()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["at random"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["to nearest"] > 1.5 * losses["float32"]
