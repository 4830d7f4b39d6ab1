"""Diffusion transformers and UNets: modulations and gated units are several matrices."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight import Role, explain
from polarlight.routing import infer_roles
from polarlight.routing.roles import Part
from polarlight.view import RowBlocks, Whole
from tests.routing.roles.blocks import block, found, linear, raw

D = 8


def blocks(count):
    return RowBlocks((D,) * count)


class AdaLayerNormZero(nn.Module):
    """In the words of diffusers."""

    def __init__(self, count):
        super().__init__()
        self.linear = nn.Linear(D, count * D)


class GEGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(D, 64)


def dit():
    """In the words of the authors' code."""
    attention = block(qkv=linear(3 * D, D), proj=linear(D, D))
    modulation = nn.Sequential(nn.SiLU(), linear(6 * D, D))
    mlp = block(fc1=linear(32, D), fc2=linear(D, 32))
    final = nn.Sequential(nn.SiLU(), linear(2 * D, D))
    return block(
        x_embedder=block(proj=nn.Conv2d(4, D, 2, 2)),
        t_embedder=block(mlp=nn.Sequential(linear(D, 16), nn.SiLU(), linear(D, D))),
        y_embedder=block(embedding_table=nn.Embedding(11, D)),
        blocks=nn.ModuleList([block(attn=attention, mlp=mlp, adaLN_modulation=modulation)]),
        final_layer=block(linear=linear(16, D), adaLN_modulation=final),
    )


def diffusers():
    layer = block(
        norm1=AdaLayerNormZero(6),
        attn1=block(to_q=linear(D, D), to_out=nn.ModuleList([linear(D, D)])),
        ff=block(net=nn.ModuleList([GEGLU(), nn.Dropout(0.0), nn.Linear(32, D)])),
        norm=AdaLayerNormZero(3),
        proj_out=linear(D, 5 * D),
    )
    return block(
        transformer_blocks=nn.ModuleList([layer]),
        norm_out=AdaLayerNormZero(2),
        proj_out=linear(16, D),
    )


def roles(source):
    return {
        a.name: (a.role, a.part, a.view)
        for a in infer_roles(source)
        if a.parameter.ndim > 1 and (a.role is not Role.ATTENTION)
    }


DIT = {
    "x_embedder.proj.weight": (Role.CONV, Part.PATCH, polarlight.view.Flattened((2, 2))),
    "t_embedder.mlp.0.weight": (Role.DOWN, Part.DOWN, Whole()),
    "t_embedder.mlp.2.weight": (Role.HIDDEN, Part.NONE, Whole()),
    "y_embedder.embedding_table.weight": (Role.EMBEDDING, Part.NONE, Whole()),
    "blocks.0.mlp.fc1.weight": (Role.GATE_UP, Part.UP, Whole()),
    "blocks.0.mlp.fc2.weight": (Role.DOWN, Part.DOWN, Whole()),
    "blocks.0.adaLN_modulation.1.weight": (Role.HIDDEN, Part.NONE, blocks(6)),
    "final_layer.linear.weight": (Role.HEAD, Part.NONE, Whole()),
    "final_layer.adaLN_modulation.1.weight": (Role.HIDDEN, Part.NONE, blocks(2)),
}


def test_the_authors_transformer():
    assert roles(dit()) == DIT


DIFFUSERS = {
    "transformer_blocks.0.norm1.linear.weight": (Role.HIDDEN, Part.NONE, blocks(6)),
    "transformer_blocks.0.ff.net.0.proj.weight": (
        Role.GATE_UP,
        Part.GATE_UP,
        RowBlocks((32, 32)),
    ),
    "transformer_blocks.0.ff.net.2.weight": (Role.DOWN, Part.DOWN, Whole()),
    "transformer_blocks.0.norm.linear.weight": (Role.HIDDEN, Part.NONE, blocks(3)),
    "transformer_blocks.0.proj_out.weight": (Role.HIDDEN, Part.NONE, Whole()),
    "norm_out.linear.weight": (Role.HIDDEN, Part.NONE, blocks(2)),
    "proj_out.weight": (Role.HEAD, Part.NONE, Whole()),
}


@pytest.mark.parametrize("source", [diffusers, lambda: diffusers().named_parameters()])
def test_the_transformer_of_diffusers_by_modules_and_by_names(source):
    assert roles(source()) == DIFFUSERS


def test_explain_shows_modulations_with_a_rate_for_every_matrix():
    rows = {row.name: row for row in explain(polarlight.Muon(diffusers(), lr=1.0)).rows}
    modulation = rows["transformer_blocks.0.norm1.linear.weight"]
    assert [piece.shape for piece in modulation.pieces] == [(D, D)] * 6
    assert [piece.lr for piece in modulation.pieces] == [1.0] * 6  # sqrt(6) as one matrix
    assert modulation.reason.startswith("6 modulations (shift, scale, gate)")
    gated = rows["transformer_blocks.0.ff.net.0.proj.weight"]
    assert [piece.shape for piece in gated.pieces] == [(32, D)] * 2
    assert "two halves, one gates the other" in gated.reason
    head = rows["proj_out.weight"]
    assert (head.rule, head.role) == ("adamw", "head")
    assert "output layer by its name" in head.reason


UNETS = {
    "of diffusers": ("conv_out", block(conv_in=nn.Conv2d(3, 8, 3), conv_out=nn.Conv2d(8, 3, 3))),
    "with a projection": ("proj_out", block(conv_in=nn.Conv2d(3, 8, 3), proj_out=linear(16, 8))),
    "with one as a kernel": (
        "proj_out",
        block(conv_in=nn.Conv1d(3, 8, 3), proj_out=nn.Conv1d(8, 3, 1)),
    ),
    "inside a pipeline": (
        "unet.conv_out",
        block(unet=block(conv_in=nn.Conv2d(3, 8, 3), conv_out=nn.Conv2d(8, 3, 3))),
    ),
}


@pytest.mark.parametrize(("name", "model"), UNETS.values(), ids=UNETS)
def test_the_last_layer_of_a_unet_is_a_head(name, model):
    assert found(model)[f"{name}.weight"].role is Role.HEAD
    overrides = {Role.CONV: Role.HIDDEN}  # kernels in between, not the output
    optimizer = polarlight.Muon(model, overrides=overrides)
    rules = {n: g["rule"].name for g in optimizer.param_groups for n in g["param_names"]}
    assert rules[f"{name}.weight"] == "adamw"
    kernel = next(n for n in rules if n.endswith("conv_in.weight"))
    assert rules[kernel] == "muon"
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize(
    ("up", "down", "view"),
    [
        ((64, D), (D, 32), RowBlocks((32, 32))),
        ((32, D), (D, 32), Whole()),
        ((16, D), (D, 16), Whole()),  # twice as wide as the stream, and not gated
    ],
)
def test_a_gated_unit_is_known_by_what_the_next_layer_reads(up, down, view):
    net = nn.ModuleList([block(proj=linear(*up)), nn.Dropout(0.0), linear(*down)])
    assert found(block(ff=block(net=net)))["ff.net.0.proj.weight"].view == view


def test_a_layer_whose_rows_are_no_multiple_of_its_columns_is_no_modulation():
    model = block(norm=AdaLayerNormZero(1), adaln=linear(12, D), normalizer=block(w=raw(16, D)))
    assert {a.view for a in infer_roles(model)} == {Whole()}
