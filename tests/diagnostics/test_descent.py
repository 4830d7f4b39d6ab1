"""Second derivatives along an update, on losses whose Hessian is known."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight.diagnostics.descent import DescentPotential, descent
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import ModelConfig


def quadratic():
    """1/2 |S (W - T)|^2 with S = diag(1, 2, 3): H D = S^2 D."""
    generator = torch.Generator().manual_seed(0)
    W = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
    S = torch.diag(torch.tensor([1.0, 2, 3], dtype=torch.float64))
    return W, S, lambda: 0.5 * (S @ W).square().sum()


def test_numbers_of_a_quadratic_loss():
    W, S, loss = quadratic()
    D = torch.ones_like(W)
    record = descent(loss, {"W": (W, D)})["W"]
    slope, curvature = (S @ S @ W.detach()).sum(), (S @ S @ D).sum()
    assert record["slope"] == pytest.approx(float(slope))
    assert record["curvature"] == pytest.approx(float(curvature))
    assert record["potential"] == pytest.approx(float(slope**2 / curvature))
    # A step of the best length lowers a quadratic loss by half the potential.
    before = loss().item()
    with torch.no_grad():
        W -= record["best_step"] * D
    assert before - loss().item() == pytest.approx(float(record["potential"]) / 2)


def test_a_saddle_has_no_potential():
    W = nn.Parameter(torch.ones(2, 1))
    record = descent(lambda: -W.square().sum(), {"W": (W, W.detach())})["W"]
    assert record["curvature"] < 0
    assert record["potential"].isnan()


def test_all_together_contain_what_lies_between_the_blocks():
    a, b = (nn.Parameter(torch.ones(1, 1)) for _ in range(2))
    records = descent(lambda: (a + b).square().sum(), {"a": (a, a.detach()), "b": (b, b.detach())})
    assert records["a"]["curvature"] == 2
    assert records["all"]["curvature"] == 8  # [1 1] [[2 2] [2 2]] [1 1]'


@pytest.mark.parametrize(
    "rule", [polarlight.rules.muon(), polarlight.rules.AdamWRule()], ids=lambda r: r.name
)
def test_the_probe_measures_before_the_step_and_changes_nothing(rule):
    plain, _ = _three_steps(rule, watched=False)
    W, probe = _three_steps(rule, watched=True)
    assert torch.equal(W, plain)
    assert [step for step, _ in probe.history] == [1, 3]
    assert set(probe.history[0][1]) == {"W", "all"}
    start, _, loss = quadratic()
    loss().backward()
    # The first step's slope is taken where the run started.
    direction = (start.detach() - _one_step(rule)) / 0.1
    expected = (start.grad * direction).sum()
    assert probe.history[0][1]["W"]["slope"] == pytest.approx(float(expected), rel=1e-6)


def _three_steps(rule, *, watched, steps=3):
    W, _, loss = quadratic()
    group = {"params": [("W", W)], "role": "hidden"}
    optimizer = polarlight.SpectralOptimizer([group], lr=0.1, rule=rule)
    probe = DescentPotential(loss, every=2)
    if watched:
        optimizer.observe(probe)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return W.detach(), probe


def _one_step(rule):
    return _three_steps(rule, watched=False, steps=1)[0]


def test_a_language_model_with_attention():
    net = GPT(ModelConfig(vocab_size=16, width=8, layers=1, heads=2), seed=0)
    tokens = torch.arange(16).reshape(2, 8)
    optimizer = polarlight.Aurora(net, lr=0.01, aux_lr=1e-3)
    probe = DescentPotential(lambda: net(tokens, tokens))
    optimizer.observe(probe)
    net(tokens, tokens).backward()
    optimizer.step()
    ((_, records),) = probe.history
    assert len(records) == 7 + 1  # four of attention, three of the MLP, all of them
    assert all(record["slope"] > 0 for record in records.values())  # it goes downhill


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        DescentPotential(lambda: torch.zeros(()), every=0)
