"""Activations before the down projection, on models with neurons that say nothing."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import polarlight
from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import Mlp, ModelConfig

NAME = "model.layers.0.mlp.down_proj"


def model(mlp=Mlp.SWIGLU):
    config = ModelConfig(vocab_size=16, width=8, layers=1, heads=2, mlp=mlp)
    return GPT(config, seed=0)


def train(net, steps, monitor=None, forward=None):
    optimizer = polarlight.Muon(net, lr=0.0, aux_lr=0.0)
    if monitor is not None:
        optimizer.observe(monitor)
    tokens = torch.arange(16).reshape(2, 8)
    for _ in range(steps):
        (net if forward is None else forward)(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_neuron_is_dead_if_nothing_comes_out_of_it():
    net = model()
    with torch.no_grad():
        net.model.layers[0].mlp.up_proj.weight[:8] = 0  # a quarter of 32
    monitor = ActivationMonitor(net, every=2)
    train(net, 4, monitor)
    assert monitor.watched == (NAME,)
    assert [step for step, _ in monitor.history] == [1, 3]
    record = monitor.history[0][1][NAME]
    assert record["dead"]["0.01"] == pytest.approx(0.25)
    assert record["mean"] > 0
    # Equal weights, equal batches: what was added up was cleared in between.
    assert monitor.history[1][1][NAME] == record


@pytest.mark.parametrize("wrap", [parametrizations.orthogonal, parametrizations.weight_norm])
def test_a_reparametrized_layer_is_hooked(wrap):
    net = model()
    wrap(net.model.layers[0].mlp.down_proj)
    monitor = ActivationMonitor(net, every=1)
    train(net, 1, monitor)
    assert monitor.watched == (NAME,)
    assert monitor.history[0][1][NAME]["mean"] > 0


def test_closed_gates_are_counted_per_neuron():
    net = model()
    mlp = net.model.layers[0].mlp
    with torch.no_grad():
        mlp.gate_proj.weight.zero_()
        net.model.layers[0].post_attention_layernorm.weight.fill_(1)
    seen = {}
    monitor = ActivationMonitor(net, seen.__setitem__, every=1)
    handle = mlp.gate_proj.register_forward_hook(lambda *_: None)  # others may hook as well
    train(net, 1, monitor)
    handle.remove()
    assert seen[1][NAME]["gate"] == {"closed": 0, "open": 0, "always_closed": 0}
    with torch.no_grad():
        mlp.gate_proj.bias = nn.Parameter(torch.zeros(32))
        mlp.gate_proj.bias[:16] = -5
        mlp.gate_proj.bias[16:24] = 5
    net(torch.arange(16).reshape(2, 8))
    monitor.end()
    assert seen[1][NAME]["gate"] == {"closed": 0.5, "open": 0.25, "always_closed": 0.5}


def test_forward_passes_without_gradients_do_not_count():
    net, seen = model(), {}
    monitor = ActivationMonitor(net, seen.__setitem__, every=1)
    tokens = torch.arange(16).reshape(2, 8)
    net(tokens, tokens)
    monitor.begin()
    monitor.end()
    net(tokens, tokens)
    with torch.no_grad():
        net(torch.zeros_like(tokens), tokens)
    monitor.begin()
    monitor.end()
    assert seen[2] == seen[1]
    assert monitor.seconds > 0


def test_resume_can_force_an_observed_step():
    monitor = ActivationMonitor(model(), every=4)
    monitor.resume(5)
    assert not monitor.begin()
    monitor.resume(6, full=True)
    assert monitor.begin()
    assert monitor.step == 7


def test_squared_relu_has_no_gate():
    net = model(Mlp.RELU2)
    monitor = ActivationMonitor(net)
    train(net, 1, monitor)
    assert "gate" not in monitor.history[0][1][NAME]


def test_closing_removes_the_hooks_and_nothing_else_changes():
    net = model()
    tokens = torch.arange(16).reshape(2, 8)
    before = net(tokens)
    monitor = ActivationMonitor(net)
    assert torch.equal(net(tokens), before)
    assert not any("magnitude" in name for name in net.state_dict())
    monitor.close()
    assert not net.model.layers[0].mlp.down_proj._forward_pre_hooks


def test_a_model_without_a_down_projection_is_refused():
    with pytest.raises(ValueError, match="no linear down projection"):
        ActivationMonitor(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        ActivationMonitor(model(), every=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_a_compiled_model_records_the_same_without_breaking_its_graph():
    records = {}
    for compiled in (False, True):
        net = model()
        monitor = ActivationMonitor(net, every=2)
        forward = torch.compile(net, fullgraph=True) if compiled else net
        torch._dynamo.utils.counters.clear()
        train(net, 5, monitor, forward)
        records[compiled] = monitor.history
    assert [step for step, _ in records[True]] == [1, 3, 5]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    for (_, plain), (_, fused) in zip(records[False], records[True], strict=True):
        assert fused[NAME]["mean"] == pytest.approx(plain[NAME]["mean"], rel=1e-5)
        assert fused[NAME]["dead"] == plain[NAME]["dead"]
