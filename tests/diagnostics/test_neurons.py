"""The neuron monitor, on an optimizer that starves a known share of rows."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight.diagnostics.neurons import NeuronMonitor


def monitored(rule, every=2, view=None, shape=(16, 4)):
    p = nn.Parameter(torch.zeros(shape))
    group = {"params": [("up", p)], "role": "gate_up", "view": view}
    optimizer = polarlight.SpectralOptimizer([group], rule=rule, momentum=0.0)
    seen = {}
    monitor = NeuronMonitor(seen.__setitem__, every=every)
    optimizer.observe(monitor)
    return optimizer, p, monitor, seen


def quarter_asleep(m=16, n=4):
    """A momentum of which a quarter of the rows is a thousand times smaller."""
    M = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    M[: m // 4] *= 1e-3
    return M


def step(optimizer, p, gradient):
    p.grad = gradient
    optimizer.step()


def test_muon_starves_what_the_momentum_starves_and_aurora_does_not():
    exact = polarlight.ExactPolar()
    records = {}
    for rule in (polarlight.muon(polar=exact), polarlight.aurora(polarlight.BalancedPolar(exact))):
        optimizer, p, _, seen = monitored(rule)
        step(optimizer, p, quarter_asleep())
        records[rule.name] = seen[1]["up"]
    for record in records.values():
        assert record["momentum"]["starved"] == {"0.01": 0.25, "0.1": 0.25, "0.25": 0.25}
    assert records["muon"]["update"]["starved"]["0.1"] == 0.25
    assert records["aurora"]["update"]["starved"]["0.25"] == 0
    assert records["aurora"]["row_norm_spread"] < 0.1 < records["muon"]["row_norm_spread"]


def test_it_looks_every_so_many_steps_and_in_full_when_asked():
    optimizer, p, monitor, seen = monitored(polarlight.muon(), every=2)
    for i in range(5):
        monitor.full = i == 3
        step(optimizer, p, quarter_asleep())
    assert list(seen) == [1, 3, 4, 5]
    assert "shares" not in seen[3]["up"]["update"]
    assert len(seen[4]["up"]["update"]["shares"]) == 16
    assert len(seen[4]["up"]["singular_values"]) == 4
    assert "shares" not in seen[5]["up"]["update"]
    assert monitor.seconds > 0


def test_adamw_is_watched_too():
    optimizer, p, _, seen = monitored(polarlight.AdamWRule())
    step(optimizer, p, quarter_asleep())
    # A first AdamW step is the sign of the gradient: perfectly even.
    assert seen[1]["up"]["update"]["spread"] == pytest.approx(0, abs=1e-5)
    assert seen[1]["up"]["momentum"]["starved"]["0.1"] == 0.25


def test_parts_of_a_view_are_numbered_and_wide_matrices_left_out():
    view = polarlight.RowBlocks((8, 8))
    optimizer, p, _, seen = monitored(polarlight.muon(), view=view)
    step(optimizer, p, quarter_asleep())
    assert set(seen[1]) == {"up[0]", "up[1]"}
    optimizer, p, _, seen = monitored(polarlight.muon(), shape=(4, 16))
    step(optimizer, p, torch.randn(4, 16))
    assert seen == {1: {}}


def test_embeddings_are_not_neurons():
    p = nn.Parameter(torch.zeros(16, 4))
    group = {"params": [("table", p)], "role": "embedding", "rule": polarlight.AdamWRule()}
    optimizer = polarlight.SpectralOptimizer([group], rule=polarlight.muon())
    seen = {}
    optimizer.observe(NeuronMonitor(seen.__setitem__))
    step(optimizer, p, torch.randn(16, 4))
    assert seen == {1: {}}


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        NeuronMonitor(print, every=0)
