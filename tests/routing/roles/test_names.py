"""Output layers, routers, modulations and MLPs in the words of many model families."""

import pytest
from torch import nn

from polarlight import Role
from polarlight.routing import infer_roles
from polarlight.routing.roles import Part
from polarlight.view import RowBlocks
from tests.routing.roles.blocks import block, found, linear, raw


def heads(source):
    return [a.name for a in infer_roles(source) if a.role is Role.HEAD]


def layer(m, n):
    return block(attn=block(qkv=linear(3 * n, n)), mlp=block(fc1=linear(m, n), fc2=linear(n, m)))


def boxes():
    return block(layers=nn.ModuleList([linear(32, 32), linear(32, 32), linear(4, 32)]))


REGIONS = block(conv=nn.Conv2d(16, 16, 3), cls_logits=nn.Conv2d(16, 3, 1))
REGIONS.bbox_pred = nn.Conv2d(16, 12, 1)

NAMED = {
    "two classifiers with a prefix": (  # transformers' DeiT with a teacher
        {"cls_classifier": linear(10, 32), "distillation_classifier": linear(10, 32)},
        ["cls_classifier.weight", "distillation_classifier.weight"],
    ),
    "a layer before the classifier": (  # DistilBERT
        {"pre_classifier": linear(32, 32), "classifier": linear(3, 32)},
        ["classifier.weight"],
    ),
    "DETR": (
        {"class_embed": linear(21, 32), "bbox_embed": boxes(), "query_embed": nn.Embedding(9, 32)},
        ["bbox_embed.layers.2.weight", "class_embed.weight"],
    ),
    "transformers' DETR": (
        {"class_labels_classifier": linear(21, 32), "bbox_predictor": boxes()},
        ["bbox_predictor.layers.2.weight", "class_labels_classifier.weight"],
    ),
    "a head per layer of a decoder": (  # Deformable DETR, RT-DETR
        {
            "class_embed": nn.ModuleList([linear(21, 32), linear(21, 32)]),
            "bbox_embed": nn.ModuleList([boxes(), boxes()]),
        },
        [
            *("bbox_embed.0.layers.2.weight", "bbox_embed.1.layers.2.weight"),
            *("class_embed.0.weight", "class_embed.1.weight"),
        ],
    ),
    "two layers that end one head": (  # torchvision's region proposals
        {"rpn": block(head=REGIONS)},
        ["rpn.head.bbox_pred.weight", "rpn.head.cls_logits.weight"],
    ),
    "two layers behind the layers of a head": (  # torchvision's boxes
        {
            "roi_heads": block(
                box_head=block(fc6=linear(64, 48), fc7=linear(64, 64)),
                box_predictor=block(cls_score=linear(9, 64), bbox_pred=linear(36, 64)),
            )
        },
        [f"roi_heads.box_predictor.{name}.weight" for name in ("bbox_pred", "cls_score")],
    ),
    "logits after a norm": (
        {"to_logits": nn.Sequential(nn.LayerNorm(32), linear(10, 32))},
        ["to_logits.1.weight"],
    ),
    "the kernel before a classifier": (  # timm's EfficientNet
        {"conv_head": nn.Conv2d(8, 32, 1), "classifier": linear(10, 32)},
        ["classifier.weight"],
    ),
    "a head with a layer before": (  # timm
        {"head": block(pre_logits=block(fc=linear(16, 32)), fc=linear(10, 16))},
        ["head.fc.weight"],
    ),
    "a last linear layer": ({"last_linear": linear(10, 32)}, ["last_linear.weight"]),
    "the last kernel of a UNet": ({"outc": block(conv=nn.Conv2d(32, 2, 1))}, ["outc.conv.weight"]),
    "a reward model": (
        {"reward_head": nn.Sequential(linear(32, 32), nn.ReLU(), linear(5, 32))},
        ["reward_head.2.weight"],
    ),
    "several rewards": ({"regression_layer": linear(19, 32)}, ["regression_layer.weight"]),
}


@pytest.mark.parametrize(("ends", "expected"), NAMED.values(), ids=NAMED)
def test_output_layers_are_heads_and_layers_before_them_are_not(ends, expected):
    model = block(blocks=nn.ModuleList([layer(64, 32)]), **ends)
    assert sorted(heads(model)) == expected
    named = [("net." + name, p) for name, p in model.named_parameters()]
    assert sorted(heads(named)) == [f"net.{name}" for name in expected]


def test_multi_token_prediction_has_a_head_per_module_and_no_other():
    """DeepSeek's modules end in a shared head; Meta's `extra_heads` are layers."""
    module = layer(64, 32)
    module.eh_proj = linear(32, 64)
    module.shared_head = block(norm=nn.LayerNorm(32), head=linear(96, 32))
    layers = nn.ModuleList([layer(64, 32), module])
    inner = block(embed_tokens=nn.Embedding(96, 32), layers=layers)
    deepseek = block(model=inner, lm_head=linear(96, 32))
    expected = ["model.layers.1.shared_head.head.weight", "lm_head.weight"]
    assert heads(deepseek) == heads(deepseek.named_parameters()) == expected
    extra = nn.ModuleList([layer(64, 32)])
    meta = block(tok_embeddings=nn.Embedding(96, 32), extra_heads=extra, output=linear(96, 32))
    assert heads(meta) == heads(meta.named_parameters()) == ["output.weight"]


def listed_experts(count=4):
    experts = [block(up_proj=linear(48, 32), down_proj=linear(32, 48)) for _ in range(count)]
    return nn.ModuleList(experts)


def stacked_experts(count=4):
    return block(w13=raw(count, 48, 2, 32), w2=raw(count, 32, 48))


SCORES = linear(4, 32)
ROUTERS = {
    "gate_network": block(gate_network=SCORES),
    "gating_network": block(gating_network=SCORES),
    "router_proj": block(router_proj=SCORES),
    "moe_router.layer": block(moe_router=block(layer=SCORES)),
    "gate.wg": block(gate=block(wg=SCORES)),  # DeepSpeed's
    "switch": block(switch=SCORES),  # by its rows alone
    "expert_gate": block(expert_gate=SCORES),
}


@pytest.mark.parametrize("experts", [listed_experts, stacked_experts])
@pytest.mark.parametrize("name", ROUTERS)
def test_a_matrix_that_scores_experts_is_a_router_by_its_name_or_rows(name, experts):
    moe = ROUTERS[name]
    moe.experts = experts()
    model = block(layers=nn.ModuleList([block(moe=moe)]))
    for source in (model, model.named_parameters()):
        roles = {a.name: a.role for a in infer_roles(source)}
        assert roles.pop(f"layers.0.moe.{name}.weight") is Role.ROUTER
        assert set(roles.values()) == {Role.EXPERT}


def test_a_matrix_of_other_rows_beside_experts_is_no_router():
    moe = block(experts=stacked_experts(), up_proj=linear(48, 32), reduce=linear(16, 32))
    roles = {name: a.role for name, a in found(block(layers=nn.ModuleList([moe]))).items()}
    assert roles["layers.0.up_proj.weight"] is Role.GATE_UP
    assert roles["layers.0.reduce.weight"] is Role.HIDDEN


MODULATED = {
    "mod.1": block(mod=nn.Sequential(nn.SiLU(), linear(6 * 8, 8))),
    "img_mod.lin": block(img_mod=block(lin=linear(6 * 8, 8))),  # Flux's authors
    "ada_ln": block(ada_ln=linear(6 * 8, 8)),
    "adaLN_modulation.1": block(adaLN_modulation=nn.Sequential(nn.SiLU(), linear(6 * 8, 8))),
}


@pytest.mark.parametrize("name", MODULATED)
def test_each_modulation_of_an_adaptive_norm_is_a_matrix(name):
    model = block(blocks=nn.ModuleList([MODULATED[name]]), model=linear(16, 8))
    for source in (model, model.named_parameters()):
        views = {a.name: a.view for a in infer_roles(source)}
        assert views[f"blocks.0.{name}.weight"] == RowBlocks((8,) * 6)
        assert len(views["model.weight"]) == 1  # `mod` is a word of its own


class SegformerMLP(nn.Module):
    """A single layer, called an MLP."""

    def __init__(self):
        super().__init__()
        self.proj = linear(64, 32)


def test_a_single_layer_of_any_class_is_not_an_mlp():
    model = block(projections=nn.ModuleList([SegformerMLP()]))
    assert found(model)["projections.0.proj.weight"].role is Role.HIDDEN


def test_layers_of_convnexts_mlp_are_up_and_down():
    model = block(layers=nn.ModuleList([block(pwconv1=linear(128, 32), pwconv2=linear(32, 128))]))
    parts = [a.part for a in infer_roles(model)]
    assert parts == [Part.UP, Part.DOWN]


@pytest.mark.parametrize("name", ["rel_pos_h", "emb_rel_k", "pos_embed"])
def test_raw_tables_of_positions_are_embeddings_and_known(name):
    """Segment Anything's and VITS's."""
    attention = block(qkv=linear(96, 32), **{name: raw(27, 8)})
    model = block(layers=nn.ModuleList([block(attn=attention)]))
    for source in (model, model.named_parameters()):
        (table,) = (a for a in infer_roles(source) if a.name.endswith(name))
        assert table.known
        assert (table.role, table.part) == (Role.EMBEDDING, Part.POSITION)


@pytest.mark.parametrize("name", ["token_embedding", "token_emb", "tok_emb", "lut", "embed_in"])
def test_tables_of_tokens_are_embeddings_by_name_alone(name):
    model = block(**{name: nn.Embedding(96, 32)}, layer=linear(32, 32))
    for source in (model, model.named_parameters()):
        first = infer_roles(source)[0]
        assert (first.role, first.part) == (Role.EMBEDDING, Part.TOKEN)
