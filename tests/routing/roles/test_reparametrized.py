"""Layers whose weight is computed from another tensor: that tensor has the layer's role."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import polarlight
from polarlight import Role
from polarlight.routing import infer_roles
from polarlight.view import RowBlocks
from tests.routing.roles.blocks import Attention, block, found, linear, raw

old = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.25)
    return layer


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


HOW = {
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm of before": nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of before": nn.utils.weight_norm,
    "weight_norm by column": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "orthogonal": parametrizations.orthogonal,
    "prune": pruned,
    "one's own": doubled,
}
how = pytest.mark.parametrize("wrap", HOW.values(), ids=HOW)


def mlp(wrap=lambda layer: layer):
    torch.manual_seed(0)
    ends = {"embed": nn.Embedding(20, 8), "lm_head": wrap(linear(20, 8))}
    layers = block(up_proj=wrap(linear(32, 8)), down_proj=wrap(linear(8, 32)))
    return block(mlp=layers, **ends)


def matrices(source):
    """Roles and views of what is not a vector, in order."""
    return [(a.role, a.part, a.view) for a in infer_roles(source) if a.role is not Role.VECTOR]


@old
@how
def test_the_matrix_inside_is_the_weight_and_magnitudes_are_vectors(wrap):
    plain, model = mlp(), mlp(wrap)
    assert matrices(model) == matrices(plain)
    assert matrices(model.named_parameters()) == matrices(plain.named_parameters())
    others = [a for a in infer_roles(model) if a.role is Role.VECTOR]
    assert all(a.parameter.numel() == max(a.parameter.shape) for a in others)


@old
@how
def test_both_matrices_of_a_reparametrized_mlp_get_the_rule_and_train(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(32, 128)), nn.ReLU(), wrap(nn.Linear(128, 32)))
    optimizer = polarlight.Muon(model, lr=0.02)
    by_rule = {}
    for group in optimizer.param_groups:
        shapes = [tuple(p.shape) for p in group["params"]]
        by_rule.setdefault(group["rule"].name, []).extend(shapes)
    assert by_rule["muon"] == [(128, 32), (32, 128)]
    x, losses = torch.randn(16, 32), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@old
@how
def test_fused_projections_and_kernels_have_their_views(wrap):
    model = block(
        self_attn=Attention(qkv_proj=wrap(linear(48, 8))),
        conv=wrap(nn.Conv2d(4, 6, 3, bias=False)),
    )
    views = {a.role: a.view for a in found(model).values() if a.role is not Role.VECTOR}
    assert views == {
        Role.ATTENTION: RowBlocks((24, 12, 12)),
        Role.CONV: polarlight.view.Flattened((3, 3)),
    }


@old
def test_a_reparametrized_table_is_a_table():
    for wrap in (parametrizations.spectral_norm, nn.utils.spectral_norm):
        (assignment,) = infer_roles(block(embed=wrap(nn.Embedding(20, 8))))
        assert assignment.role is Role.EMBEDDING


def test_wrappers_and_parametrizations_together():
    model = block(module=block(_orig_mod=mlp(parametrizations.weight_norm)))
    assert matrices(model) == matrices(mlp())


class Product(nn.Module):
    """A weight of low rank."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight[:, :2].clone(), weight[:2].clone()


def test_two_factors_are_no_magnitude_and_direction():
    layer = linear(32, 8)
    parametrize.register_parametrization(layer, "weight", Product())
    reasons = [a.reason for a in infer_roles(block(up_proj=layer))]
    assert not any("magnitude" in reason for reason in reasons)


def test_a_single_number_in_a_factor_of_lora_is_a_vector():
    factor = block(weight=raw(2, 32), scale=raw())
    layer = block(base_layer=linear(64, 32), lora_A=factor)
    roles = {a.name: a.role for a in infer_roles(block(mlp=block(up_proj=layer)))}
    assert roles["mlp.up_proj.lora_A.scale"] is Role.VECTOR
