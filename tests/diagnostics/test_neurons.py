"""The neuron monitor, on an optimizer that starves a known share of rows."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight.diagnostics.neurons import NeuronMonitor
from tests.releases import needs_compiled_steps


def monitored(rule, every=2, view=None, shape=(16, 4)):
    p = nn.Parameter(torch.zeros(shape))
    group = {"params": [("up", p)], "role": "gate_up", "view": view}
    optimizer = polarlight.SpectralOptimizer([group], rule=rule, momentum=0.0)
    seen = {}
    monitor = NeuronMonitor(seen.__setitem__, every=every)
    optimizer.observe(monitor)
    return optimizer, p, monitor, seen


def quarter_starved(m=16, n=4):
    """A momentum of which a quarter of the rows is a thousand times smaller."""
    M = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    M[: m // 4] *= 1e-3
    return M


def step(optimizer, p, gradient):
    p.grad = gradient
    optimizer.step()


def test_muon_starves_what_the_momentum_starves_and_aurora_does_not():
    exact = polarlight.linalg.ExactPolar()
    records = {}
    for rule in (
        polarlight.rules.muon(polar=exact),
        polarlight.rules.aurora(polarlight.rules.BalancedPolar(exact)),
    ):
        optimizer, p, _, seen = monitored(rule)
        step(optimizer, p, quarter_starved())
        records[rule.name] = seen[1]["up"]
    for record in records.values():
        assert record["momentum"]["starved"] == {"0.01": 0.25, "0.1": 0.25, "0.25": 0.25}
    assert records["muon"]["update"]["starved"]["0.1"] == 0.25
    assert records["aurora"]["update"]["starved"]["0.25"] == 0
    assert records["aurora"]["row_norm_spread"] < 0.1 < records["muon"]["row_norm_spread"]


def test_the_monitor_observes_every_n_steps_and_in_full_on_request():
    optimizer, p, monitor, seen = monitored(polarlight.rules.muon(), every=2)
    for i in range(5):
        monitor.full = i == 3
        step(optimizer, p, quarter_starved())
    assert list(seen) == [1, 3, 4, 5]
    assert "shares" not in seen[3]["up"]["update"]
    assert len(seen[4]["up"]["update"]["shares"]) == 16
    assert len(seen[4]["up"]["singular_values"]) == 4
    assert "shares" not in seen[5]["up"]["update"]
    assert monitor.seconds > 0


def test_adamw_is_watched_too():
    optimizer, p, _, seen = monitored(polarlight.rules.AdamWRule())
    step(optimizer, p, quarter_starved())
    # A first AdamW step is the sign of the gradient: perfectly even.
    assert seen[1]["up"]["update"]["spread"] == pytest.approx(0, abs=1e-5)
    assert seen[1]["up"]["momentum"]["starved"]["0.1"] == 0.25


def test_parts_of_a_view_are_numbered_and_wide_matrices_left_out():
    view = polarlight.view.RowBlocks((8, 8))
    optimizer, p, _, seen = monitored(polarlight.rules.muon(), view=view)
    step(optimizer, p, quarter_starved())
    assert set(seen[1]) == {"up[0]", "up[1]"}
    optimizer, p, _, seen = monitored(polarlight.rules.muon(), shape=(4, 16))
    step(optimizer, p, torch.randn(4, 16))
    assert seen == {1: {}}


def test_embeddings_are_not_neurons():
    p = nn.Parameter(torch.zeros(16, 4))
    group = {"params": [("table", p)], "role": "embedding", "rule": polarlight.rules.AdamWRule()}
    optimizer = polarlight.SpectralOptimizer([group], rule=polarlight.rules.muon())
    seen = {}
    optimizer.observe(NeuronMonitor(seen.__setitem__))
    step(optimizer, p, torch.randn(16, 4))
    assert seen == {1: {}}


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        NeuronMonitor(print, every=0)


def gated(rule, monitor, names=("mlp.gate_proj.weight", "mlp.up_proj.weight")):
    """An optimizer of a gate and an up matrix, watched."""
    params = [(name, nn.Parameter(torch.zeros(16, 4))) for name in names]
    optimizer = polarlight.SpectralOptimizer(params, rule=rule, momentum=0.0)
    optimizer.observe(monitor)
    return optimizer, [p for _, p in params]


def starving(rows, seed=0):
    """A momentum of which these rows are a thousand times smaller."""
    M = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    M[rows] *= 1e-3
    return M


EXACT = polarlight.rules.muon(polar=polarlight.linalg.ExactPolar())


def test_a_gated_neuron_is_starved_only_if_both_its_rows_are():
    monitor = NeuronMonitor(every=1)
    optimizer, (gate, up) = gated(EXACT, monitor)
    gate.grad, up.grad = starving([0, 1, 2, 3]), starving([2, 3, 4, 5], seed=1)
    optimizer.step()
    ((_, records),) = monitor.history
    for record in records.values():
        assert record["update"]["starved"]["0.1"] == pytest.approx(4 / 16)
        assert record["pair"]["update"]["0.1"] == pytest.approx(2 / 16)


def test_a_fused_gate_and_up_projection_is_a_pair_and_a_single_one_is_not():
    view = polarlight.view.RowBlocks((8, 8))
    optimizer, p, _, seen = monitored(polarlight.rules.muon(), view=view)
    step(optimizer, p, quarter_starved())
    assert seen[1]["up[0]"]["pair"] == seen[1]["up[1]"]["pair"]
    optimizer, p, _, seen = monitored(polarlight.rules.muon())
    step(optimizer, p, quarter_starved())
    assert "pair" not in seen[1]["up"]


def test_persistence_separates_recovered_rows_from_starved_ones():
    monitor = NeuronMonitor(every=1)
    optimizer, (gate, up) = gated(EXACT, monitor)
    for rows in ([0, 1, 2, 3], [2, 3], [2, 3, 4]):
        gate.grad = up.grad = starving(rows)
        optimizer.step()
    told = [records["mlp.up_proj.weight"]["update"] for _, records in monitor.history]
    assert [16 * r["starved"]["0.1"] for r in told] == [4, 2, 3]
    assert [16 * r["ever"]["0.1"] for r in told] == [4, 4, 5]
    assert [16 * r["stayed"]["0.1"] for r in told] == [4, 2, 3]  # 2 and 3 since ever, 4 since now


def test_persistence_and_turns_survive_a_checkpoint():
    whole, first = NeuronMonitor(every=1, spectra=1), NeuronMonitor(every=1, spectra=1)
    for monitor in (whole, first):
        optimizer, params = gated(EXACT, monitor)
        for rows in ([0, 1, 2, 3], [2, 3]):
            for p in params:
                p.grad = starving(rows)
            optimizer.step()
    second = NeuronMonitor(every=1, spectra=1)
    second.load_state_dict(first.state_dict())
    for monitor in (whole, second):
        optimizer, params = gated(EXACT, monitor)
        for p in params:
            p.grad = starving([3])
        optimizer.step()
    assert second.history[-1] == whole.history[-1]


def test_singular_values_are_computed_for_a_few_matrices_in_turn():
    monitor = NeuronMonitor(every=1, spectra=1)
    optimizer, params = gated(EXACT, monitor)
    for _ in range(4):
        for p in params:
            p.grad = starving([])
        optimizer.step()
    asked = [[("alignment" in r) for r in records.values()] for _, records in monitor.history]
    assert asked == [[True, True], [False, True], [True, False], [False, True]]


def test_columns_of_a_wide_matrix_are_its_neurons():
    for columns, names in ((False, set()), (True, {"mlp.down_proj.weight"})):
        monitor = NeuronMonitor(every=1, columns=columns)
        p = nn.Parameter(torch.zeros(4, 16))
        optimizer = polarlight.SpectralOptimizer([("mlp.down_proj.weight", p)], rule=EXACT)
        optimizer.observe(monitor)
        step(optimizer, p, starving([0, 1]).mT.contiguous())
        ((_, records),) = monitor.history
        assert set(records) == names
    assert records["mlp.down_proj.weight"]["momentum"]["starved"]["0.1"] == pytest.approx(2 / 16)


def test_held_steps_are_transferred_together_and_in_order():
    monitor = NeuronMonitor(every=1, hold=3)
    optimizer, params = gated(EXACT, monitor)
    lengths = []
    for _ in range(4):
        for p in params:
            p.grad = starving([0])
        optimizer.step()
        lengths.append(len(monitor.history))
    assert lengths == [0, 0, 3, 3]
    monitor.flush()
    assert [s for s, _ in monitor.history] == [1, 2, 3, 4]


def test_the_monitor_waits_for_the_device_once_per_observed_step(monkeypatch):
    """`.tolist()` and `.item()` are the transfers; a look of two matrices needs one."""
    transfers = []
    for name in ("tolist", "item"):
        original = getattr(torch.Tensor, name)
        counted = lambda x, original=original: transfers.append(x) or original(x)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, counted)
    monitor = NeuronMonitor(every=1)
    optimizer, params = gated(EXACT, monitor)
    optimizer.nonfinite = polarlight.NonFinite.PROPAGATE  # which asks for one of its own
    for p in params:
        p.grad = starving([0])
    optimizer.step()
    assert len(transfers) == 1


@pytest.mark.slow
@needs_compiled_steps
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_step_is_observed_like_a_plain_one():
    histories = {}
    for compiled in (False, True):
        monitor = NeuronMonitor(every=3)
        optimizer, params = gated(polarlight.rules.muon(), monitor)
        take = torch.compile(lambda o=optimizer: o.step()) if compiled else optimizer.step
        for i in range(7):
            for p in params:
                p.grad = starving([0], seed=i)
            take()
        histories[compiled] = monitor.history
    assert [s for s, _ in histories[True]] == [1, 4, 7]
    for (_, plain), (_, fused) in zip(histories[False], histories[True], strict=True):
        for name, record in plain.items():
            assert fused[name]["update"]["starved"] == record["update"]["starved"]
            assert fused[name]["update"]["spread"] == pytest.approx(record["update"]["spread"])
