"""Layer-wise learning-rate decay: rates per block, groups split without loss, bad input refused."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight.routing import layerwise_lr_decay


def model(blocks=3):
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
    parts = {"embed": nn.Embedding(6, 8), "layers": layers, "norm": nn.LayerNorm(8)}
    return nn.ModuleDict(parts | {"head": nn.Linear(8, 6, bias=False)})


def rates(groups):
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_rates_fall_by_one_factor_per_block_toward_the_input():
    found = rates(
        layerwise_lr_decay(polarlight.Muon(model(), lr=0.02, aux_lr=1.0).param_groups, 0.5)
    )
    assert found["layers.2.weight"] == 0.01
    assert found["layers.1.weight"] == 0.005
    assert found["layers.0.weight"] == 0.0025
    assert found["layers.0.bias"] == 0.125
    assert found["embed.weight"] == 0.5**4
    assert found["head.weight"] == found["norm.weight"] == 1.0


def test_every_parameter_stays_with_its_name_rule_and_view():
    net = model()
    before = polarlight.Aurora(net, lr=0.02, weight_decay=0.1)
    groups = layerwise_lr_decay(before.param_groups, 0.9)
    names = {id(p): name for name, p in net.named_parameters()}
    found = [
        (id(p), name) for g in groups for p, name in zip(g["params"], g["param_names"], strict=True)
    ]
    assert dict(found) == names
    assert len(found) == len(names)
    for old in before.param_groups:
        for new in groups:
            if set(new["param_names"]) <= set(old["param_names"]):
                same = {k for k in old if k not in ("params", "param_names", "lr")}
                assert all(new[key] == old[key] for key in same)


def test_one_step_moves_a_block_by_its_own_rate():
    torch.manual_seed(0)
    net = model(2)
    optimizer = polarlight.SpectralOptimizer(
        layerwise_lr_decay(polarlight.Muon(net, lr=0.02).param_groups, 0.5)
    )
    gradient = torch.randn(8, 8)
    before = [layer.weight.detach().clone() for layer in net["layers"]]
    for layer in net["layers"]:
        layer.weight.grad = gradient.clone()
    optimizer.step()
    first, last = (b - layer.weight for b, layer in zip(before, net["layers"], strict=True))
    # Weights near 0.35 round a step of 0.01 to 3e-8.
    torch.testing.assert_close(2 * first, last, rtol=0, atol=2e-7)


def test_a_tensor_learning_rate_stays_a_tensor_of_its_own():
    groups = polarlight.Muon(model(), lr=torch.tensor(0.02)).param_groups
    split = [g for g in layerwise_lr_decay(groups, 0.5) if isinstance(g["lr"], torch.Tensor)]
    assert len({g["lr"].data_ptr() for g in split}) == len(split) == 3


@pytest.mark.parametrize("decay", [0, -1, 1.1, float("nan")])
def test_a_decay_out_of_range_is_refused_with_its_value(decay):
    with pytest.raises(ValueError, match=rf"\(0, 1\], got {decay}"):
        layerwise_lr_decay(polarlight.Muon(model()).param_groups, decay)


def test_groups_without_names_or_rates_are_refused():
    with pytest.raises(ValueError, match="param group 0 has no param_names"):
        layerwise_lr_decay([{"params": [nn.Parameter(torch.ones(2, 2))], "lr": 1.0}], 0.9)
    with pytest.raises(ValueError, match="has no lr"):
        layerwise_lr_decay([{"params": [], "param_names": [], "lr": None}], 0.9)


def test_names_without_a_block_number_raise_with_the_fix():
    net = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match="overrides="):
        layerwise_lr_decay(polarlight.Muon(net).param_groups, 0.9)
