"""Polarlight's own state under another rule, view, head or betas: what is unchanged goes over."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import polarlight as pl
from polarlight import SpectralOptimizer
from polarlight.migration import carry_over, from_file, load_carried, read_state_dict, to_file
from polarlight.migration.own import own_convention
from polarlight.stages.orientation import Columns, oriented
from tests.matrices import gaussian
from tests.migration.test_carrying import Net, train
from tests.nets import parameter, step

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"


def trained(make, steps=3):
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model)
    train(model, [optimizer], range(steps))
    return model, optimizer


def lines(report):
    return {line.name: line for line in report.lines}


def assert_same_state(old, new):
    """MuonEq's sum goes through the unit of an average: two roundings."""
    for group in new.param_groups:
        for p in group["params"]:
            for key, value in new.state[p].items():
                torch.testing.assert_close(value, old.state[p][key], rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    "make", [pl.Muon, pl.Aurora, pl.NorMuon, pl.SOAP, pl.KLSOAP, pl.PolarAdamW, pl.MuonEq]
)
def test_all_of_an_optimizers_state_goes_to_its_like(make):
    model, old = trained(make)
    new = make(model)
    report = carry_over(old, new)
    assert not any(line.fresh for line in report.lines), report
    assert_same_state(old, new)


def test_after_a_replaced_head_everything_else_goes_over():
    m = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 16))
    old = pl.Muon(m)
    m(torch.randint(16, (4,))).sum().backward()
    old.step()
    m[2] = nn.Linear(8, 4)
    new = pl.Aurora(m)
    report = carry_over(old, new)
    found = lines(report)
    assert not found["0.weight"].fresh
    assert found["1.weight"].carried == ("momentum_buffer",)
    assert found["2.weight"].fresh
    assert found["2.weight"].reason == "not in the old optimizers"
    assert report.left_behind == ("2.weight", "2.bias")
    assert "dropped, not in the new optimizer" in str(report)


@pytest.mark.parametrize("name", ["lm_head", "head"])
def test_a_saved_state_goes_to_a_model_with_another_head(name, tmp_path):
    """By name: one of another shape starts anew, and one that is gone is listed."""
    model, old = trained(pl.Muon)
    torch.save(to_file(read_state_dict(old.state_dict())), tmp_path / "carried.pt")
    carried = from_file(torch.load(tmp_path / "carried.pt", weights_only=True))
    changed = copy.deepcopy(model)
    del changed.lm_head
    setattr(changed, name, nn.Linear(8, 5, bias=False))
    new = pl.Muon(changed)
    report = load_carried(new, carried)
    head = lines(report)[f"{name}.weight"]
    assert head.fresh
    assert not head.carried
    expected = "its shape was (64, 8)" if name == "lm_head" else "not in the file"
    assert head.reason == expected
    assert report.left_behind == (() if name == "lm_head" else ("lm_head.weight",))
    named = dict(model.named_parameters())
    for parameter_name, p in changed.named_parameters():
        if parameter_name != f"{name}.weight":
            assert torch.equal(
                next(iter(v for k, v in new.state[p].items() if k != "step")),
                next(iter(v for k, v in old.state[named[parameter_name]].items() if k != "step")),
            )


@pytest.mark.parametrize(
    ("old", "new", "carried", "fresh"),
    [
        (pl.rules.muon(), pl.rules.aurora(), {"momentum_buffer"}, {"row_scale", "row_size"}),
        (pl.rules.aurora(), pl.rules.muon(), {"momentum_buffer"}, set()),
        (
            pl.rules.aurora(),
            pl.rules.aurora(side=pl.stages.Side.LONG_AXIS),
            {"momentum_buffer", "row_scale"},
            set(),
        ),
        (
            pl.rules.aurora(),
            pl.rules.aurora(pl.rules.WarmPolar(pl.linalg.QDWH())),
            {"row_scale", "row_size"},
            set(),
        ),
        (pl.rules.normuon(), pl.rules.unormuon(), {"momentum_buffer", "row_second_moment"}, set()),
        (
            pl.rules.normuon(),
            oriented(pl.rules.normuon(), Columns()),
            {"momentum_buffer"},
            {"row_second"},
        ),
        (pl.rules.soap(), pl.rules.kl_soap(), set(), {"left_basis", "first_moment"}),
        (
            pl.rules.soap(),
            pl.rules.soap(betas=(0.9, 0.9)),
            {"left_basis", "first_moment", "step"},
            set(),
        ),
        (pl.rules.soap(), pl.rules.muon(), set(), {"momentum_buffer"}),
        (
            pl.rules.muon(),
            replace(pl.rules.muon(), momentum=pl.stages.InBfloat16()),
            {"momentum_buffer"},
            {"draws"},
        ),
    ],
    ids=lambda x: getattr(x, "name", None) or "-".join(sorted(x)) or "none",
)
def test_another_rule_gets_what_its_slots_have_in_common(old, new, carried, fresh):
    p = parameter(8, 4)
    before = SpectralOptimizer([("w", p)], rule=old)
    for seed in range(2):
        step(before, seed)
    (line,) = carry_over(before, SpectralOptimizer([("w", p)], rule=new)).lines
    assert carried <= set(line.carried), line
    assert bool(fresh) == bool(line.fresh)
    for part in fresh:
        assert any(part in name for name in line.fresh), line
    assert bool(line.reason) == bool(line.fresh)


@pytest.mark.parametrize(
    "momentum", [pl.stages.HeavyBall(), pl.stages.InBfloat16(pl.stages.HeavyBall())], ids=str
)
def test_a_sum_becomes_an_average_and_back(momentum):
    p = parameter(8, 4)
    sums = SpectralOptimizer([p], rule=replace(pl.rules.muon(), momentum=momentum), momentum=0.9)
    step(sums)
    average = SpectralOptimizer([p], rule=pl.rules.muon(), momentum=0.5)
    carry_over(sums, average)
    M = average.state[p]["momentum_buffer"]
    torch.testing.assert_close(M, 0.1 * sums.state[p]["momentum_buffer"].float())
    again = SpectralOptimizer([p], rule=replace(pl.rules.muon(), momentum=momentum), momentum=0.5)
    carry_over(average, again)
    torch.testing.assert_close(again.state[p]["momentum_buffer"].float(), 2 * M, rtol=0.01, atol=0)


def test_under_another_view_the_momentum_goes_over_and_statistics_of_rows_start_anew():
    p = parameter(8, 4)
    old = SpectralOptimizer([("w", p)], rule=pl.rules.normuon(), view=pl.view.Whole())
    step(old)
    new = SpectralOptimizer([("w", p)], rule=pl.rules.normuon(), view=pl.view.Heads(2))
    (line,) = carry_over(old, new).lines
    assert line.carried == ("momentum_buffer",)
    assert line.fresh == ("row_second_moment",)
    assert line.reason == "another view"


def test_state_of_0_1_0_is_read_from_its_text():
    p = parameter(8, 4)
    old = SpectralOptimizer([("w", p)], rule=pl.rules.normuon())
    step(old)
    saved = old.state_dict()
    groups = torch.load(FIXTURES / "NorMuon.pt", weights_only=True)["optimizer"]["param_groups"]
    text = next(g["rule"] for g in groups if g["rule"].startswith("UpdateRule"))
    saved["param_groups"][0] |= {"rule": text, "view": "None"}
    new = SpectralOptimizer([("w", p)], rule=pl.rules.unormuon())
    (line,) = load_carried(new, read_state_dict(saved)).lines
    assert set(line.carried) == {"momentum_buffer", "row_second_moment"}


def next_step(optimizer, p, g):
    before = p.detach().clone()
    p.grad = g.clone()
    optimizer.step()
    moved, _ = p.detach() - before, p.data.copy_(before)
    return moved


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.99), (0.95, 0.999), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("t", [1, 10, 100, 1000])
@pytest.mark.parametrize("source", ["torch", "polarlight"])
def test_other_betas_keep_adamws_corrected_moments(t, betas, source):
    p = nn.Parameter(torch.zeros(64, 16))
    old = adamw_after(t, p, source)
    new = SpectralOptimizer([p], lr=1e-3, momentum=betas[0], rule=pl.rules.AdamWRule(betas[1]))
    carry_over(old, new)
    state, saved = new.state[p], old.state[p]
    assert state["step"] == t
    for key, beta, was in (("exp_avg", betas[0], 0.9), ("exp_avg_sq", betas[1], 0.999)):
        torch.testing.assert_close(state[key] / (1 - beta**t), saved[key] / (1 - was**t))


@pytest.mark.parametrize("t", [1, 10, 100, 1000])
@pytest.mark.parametrize("source", ["torch", "polarlight"])
def test_the_next_step_of_a_head_is_as_long_as_adamws_was(t, source):
    """torch's betas to ours; the gradient has the size of those before."""
    p = nn.Parameter(torch.zeros(512, 128))
    old = adamw_after(t, p, source)
    new = SpectralOptimizer([p], lr=1e-3, momentum=0.9, rule=pl.rules.AdamWRule(0.95))
    carry_over(old, new)
    g = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).sign()
    expected, found = next_step(old, p, g), next_step(new, p, g)
    assert (found - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.99), (0.95, 0.9999)], ids=str)
@pytest.mark.parametrize("t", [1, 10, 100, 1000])
def test_beyond_the_weight_of_the_new_gradient_other_betas_change_nothing(t, betas):
    """Of any size: each beta weighs the new gradient by w = (1 - beta) / (1 - beta^(t + 1)).

    The step is (1 - w1) m + w1 g over the root of (1 - w2) v + w2 g^2, with m and v, the corrected
    moments, those of the old optimizer.
    """
    p = nn.Parameter(torch.zeros(64, 16, dtype=torch.float64))
    old = adamw_after(t, p, "polarlight")
    m, v = (
        old.state[p][key] / (1 - beta**t) for key, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999))
    )
    new = SpectralOptimizer([p], lr=1e-3, momentum=betas[0], rule=pl.rules.AdamWRule(betas[1]))
    carry_over(old, new)
    g = gaussian(64, 16, seed=t) * torch.logspace(-3, 3, 16, dtype=torch.float64)
    w1, w2 = ((1 - beta) / (1 - beta ** (t + 1)) for beta in betas)
    expected = -1e-3 * ((1 - w1) * m + w1 * g) / ((1 - w2) * v + w2 * g.square()).sqrt()
    # Counts are float32, so that beta^t has a few of its roundings; eps is 1e-8 of v = 1.
    torch.testing.assert_close(next_step(new, p, g), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("t", [1, 10, 100, 1000])
def test_from_torchs_beta2_to_ours_each_entry_of_the_next_step_is_within_one_percent(t):
    """If its squared gradient q = g^2 / v lies in 0.61 to 1.39; for q = 0 it is 2.6 % longer."""
    p = nn.Parameter(torch.zeros(64, 16, dtype=torch.float64))
    old = adamw_after(t, p, "polarlight")  # v = 1
    new = SpectralOptimizer([p], lr=1e-3, momentum=0.9, rule=pl.rules.AdamWRule(0.95))
    carry_over(old, new)
    state, saved = copy.deepcopy((new.state_dict(), old.state_dict()))
    for q, lower, upper in ((0.61, 1, 1.01), (1, 0.9999, 1.0001), (1.39, 0.99, 1), (0, 1, 1.026)):
        new.load_state_dict(copy.deepcopy(state))
        old.load_state_dict(copy.deepcopy(saved))
        g = torch.full_like(p, q**0.5)
        ratio = next_step(new, p, g) / next_step(old, p, g)
        assert lower <= ratio.min() <= ratio.max() <= upper


def adamw_after(t, p, source):
    """AdamW at torch's default betas after t gradients with entries of size 1."""
    if source == "torch":
        old = torch.optim.AdamW([p], lr=1e-3, weight_decay=0.0)
    else:
        rule = pl.rules.AdamWRule(0.999, 1e-8)
        old = SpectralOptimizer([p], lr=1e-3, momentum=0.9, rule=rule)
    generator = torch.Generator().manual_seed(t)
    for _ in range(t):
        p.grad = torch.randn(p.shape, generator=generator).sign().to(p.dtype)
        old.step()
    return old


def test_a_pair_of_lora_factors_keeps_its_state():
    pair = [("a", parameter(2, 8)), ("b", parameter(6, 2))]
    old = SpectralOptimizer(pair, rule=pl.rules.LoraProduct())
    step(old)
    new = SpectralOptimizer(pair, rule=pl.rules.LoraProduct(nesterov=False))
    report = carry_over(old, new)
    assert {line.carried for line in report.lines} == {("momentum_buffer", "direction")}
    for _, p in pair:
        assert torch.equal(new.state[p]["direction"], old.state[p]["direction"])


def test_files_of_the_first_format_are_read():
    record = {"momentum": torch.ones(2, 2), "step": 0, "beta1": 0.0, "reason": ""}
    content = {"format": "polarlight carried state", "version": 1, "parameters": {"w": record}}
    assert torch.equal(from_file(content)["w"].momentum, torch.ones(2, 2))
    adam = record | {"second_moment": torch.ones(2, 2), "step": 3, "beta1": 0.9}
    carried = from_file(content | {"parameters": {"w": adam}})
    rule = pl.rules.AdamWRule(0.99)
    new = SpectralOptimizer([("w", parameter(2, 2))], rule=rule, momentum=0.5)
    load_carried(new, carried)  # beta2 was not written: nothing is rescaled
    (state,) = new.state.values()
    assert torch.equal(state["exp_avg_sq"], torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"version 3, this polarlight reads \(1, 2\)"):
        from_file(content | {"version": 3})


@pytest.mark.parametrize("change", ["rule", "groups", "shape"])
def test_a_state_of_another_rule_raises_with_a_fix_that_works(change):
    old = SpectralOptimizer([("w", parameter(8, 4)), ("x", parameter(4, 4))], rule=pl.rules.muon())
    step(old)
    saved = old.state_dict()
    rule = pl.rules.aurora() if change == "rule" else pl.rules.muon()
    w = ("w", parameter(*((6, 4) if change == "shape" else (8, 4))))
    x = ("x", parameter(4, 4))
    groups = [{"params": [w]}, {"params": [x]}] if change == "groups" else [w, x]
    new = SpectralOptimizer(groups, rule=rule)
    with pytest.raises(ValueError, match=r"load_carried\(new, read_state_dict\(state_dict\)\)"):
        new.load_state_dict(saved)
    load_carried(new, read_state_dict(saved))
    momentum = new.state[x[1]]["momentum_buffer"]
    assert torch.equal(momentum, saved["state"][1]["momentum_buffer"])


def test_a_scale_that_is_a_plain_function_and_a_foreign_state_are_no_obstacle():
    p, v = parameter(8, 4), parameter(4)
    plain = replace(pl.rules.muon(), scale=lambda m, n: 1.0)
    groups = [{"params": [("w", p)], "rule": plain}]
    old = SpectralOptimizer([*groups, {"params": [("v", v)], "rule": pl.rules.AdamWRule()}])
    old.state[v]["z"] = torch.zeros(4)  # as a wrapper does before the first step
    assert own_convention(old.param_groups[0]) == ""
    new = SpectralOptimizer(
        [
            {"params": [("w", p)], "rule": pl.rules.muon()},
            {"params": [("v", v)], "rule": pl.rules.AdamWRule()},
        ]
    )
    report = lines(carry_over(old, new))
    assert report["v"].reason == "its state is not AdamW's: it was never stepped"
