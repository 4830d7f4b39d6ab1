"""Roles of blocks that other routers get wrong; each test names the trap."""

import torch
from torch import nn

import polarlight
from polarlight import Role
from polarlight.routing import infer_roles
from polarlight.routing.roles import MATRIX_ROLES, Part
from tests.routing.roles.blocks import Attention, Experts, block, found, linear, raw


def test_position_and_dimension_do_not_make_a_matrix():
    """Routing by number of dimensions alone puts tables, heads and tokens into Muon."""
    model = block(
        wte=nn.Embedding(20, 8),
        wpe=nn.Embedding(16, 8),
        cls_token=raw(1, 1, 8),
        pos_embed=raw(1, 16, 8),
        A_log=raw(8, 4),
        bias_table=raw(4, 8),
        norm=nn.LayerNorm((2, 4)),
        patch=nn.Conv2d(3, 8, 4, bias=False),
        lm_head=linear(20, 8),
    )
    roles = {name: (a.role, a.part) for name, a in found(model).items()}
    assert roles == {
        "cls_token": (Role.VECTOR, ""),
        "pos_embed": (Role.EMBEDDING, Part.POSITION),
        "A_log": (Role.VECTOR, ""),
        "bias_table": (Role.VECTOR, ""),
        "wte.weight": (Role.EMBEDDING, Part.TOKEN),
        "wpe.weight": (Role.EMBEDDING, Part.POSITION),
        "norm.weight": (Role.VECTOR, ""),
        "norm.bias": (Role.VECTOR, ""),
        "patch.weight": (Role.CONV, ""),
        "lm_head.weight": (Role.HEAD, ""),
    }


def test_one_dimensional_parameters_of_embeddings_and_heads_are_vectors_that_train():
    """A router that goes by `embedding` and `lm_head` in the name never steps these."""
    model = block(embeddings=block(LayerNorm=nn.LayerNorm(8)), lm_head=nn.Linear(8, 20))
    names = ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias", "lm_head.bias"]
    assert {found(model)[name].role for name in names} == {Role.VECTOR}
    optimizer = polarlight.Muon(model, overrides={"*": polarlight.rules.AdamWRule()})
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not any(map(torch.equal, before, [p.detach() for p in model.parameters()]))


def test_words_in_names_do_not_outweigh_the_layer():
    """A Linear `embedding_projection` is no table, `normalizer.proj` no norm."""
    model = block(
        embedding_projection=linear(16, 8),
        normalizer=block(proj=linear(8, 16)),
        lm_head=block(dense=linear(8, 8), decoder=linear(20, 8)),
        classifier=nn.Sequential(nn.Flatten(), linear(3, 8)),
        layers=nn.ModuleList([block(output=block(dense=linear(8, 8)))]),
    )
    roles = {name: a.role for name, a in found(model).items()}
    assert roles == {
        "embedding_projection.weight": Role.HIDDEN,
        "normalizer.proj.weight": Role.HIDDEN,
        "lm_head.dense.weight": Role.HIDDEN,
        "lm_head.decoder.weight": Role.HEAD,
        "classifier.1.weight": Role.HEAD,
        "layers.0.output.dense.weight": Role.HIDDEN,
    }


def test_a_nested_head_is_a_head_and_a_tied_one_is_in_one_group():
    """One library looks for `head` in names without their path, and puts tied weights in twice."""
    model = block(body=block(embed=nn.Embedding(20, 8)), lm_head=linear(20, 8))
    assert found(model)["lm_head.weight"].role is Role.HEAD
    model.lm_head.weight = model.body.embed.weight
    assert [(a.name, a.role) for a in infer_roles(model)] == [("body.embed.weight", Role.TIED)]


class SoftmaxGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = raw(4, 8)

    def forward(self, x):
        return torch.softmax(x @ self.weight.mT, dim=-1)


class SigmoidBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = linear(4, 8)
        self.experts = nn.ModuleList([block(w1=linear(16, 8), w2=linear(8, 16))])

    def forward(self, x):
        return self.scores(x).topk(2)

    def scores(self, x):
        return self.gate(x).sigmoid()


def test_sigmoid_and_softmax_routers_have_different_parts():
    """Centering is right for softmax scores and wrong for sigmoid ones."""
    soft = found(block(router=SoftmaxGate()))["router.weight"]
    assert (soft.role, soft.part) == (Role.ROUTER, Part.SOFTMAX)
    sigmoid = found(SigmoidBlock())["gate.weight"]
    assert (sigmoid.role, sigmoid.part) == (Role.ROUTER, Part.SIGMOID)
    silent = found(block(gate=linear(4, 8), experts=nn.ModuleList([linear(8, 8)])))["gate.weight"]
    assert (silent.role, silent.part) == (Role.ROUTER, Part.NONE)
    configured = block(gate=linear(4, 8), experts=nn.ModuleList([linear(8, 8)]))
    configured.config = block(scoring_func="sigmoid")
    assert found(configured)["gate.weight"].part is Part.SIGMOID


def test_a_gate_is_a_router_only_beside_experts():
    model = block(
        mlp=block(gate=linear(16, 8), up=linear(16, 8), down=linear(8, 16)),
        self_attn=Attention(gate=linear(8, 8)),
        moe=block(shared_expert_gate=linear(1, 8), experts=nn.ModuleList([linear(8, 8)])),
    )
    roles = {name: (a.role, a.part) for name, a in found(model).items()}
    assert roles["mlp.gate.weight"] == (Role.GATE_UP, Part.GATE)
    assert roles["self_attn.gate.weight"] == (Role.ATTENTION, Part.NONE)
    assert roles["moe.shared_expert_gate.weight"] == (Role.VECTOR, Part.NONE)


def test_experts_in_a_list_have_their_parts():
    """Per-expert `w1`, `w2`, `w3` are no dense MLP, and which is which matters."""
    experts = nn.ModuleList(
        [block(w1=linear(16, 8), w2=linear(8, 16), w3=linear(16, 8)) for _ in range(2)]
    )
    model = block(gate=linear(2, 8), experts=experts, shared_experts=block(up_proj=linear(16, 8)))
    parts = {name: (a.role, a.part) for name, a in found(model).items()}
    assert parts["experts.1.w1.weight"] == (Role.EXPERT, Part.GATE)
    assert parts["experts.1.w2.weight"] == (Role.EXPERT, Part.DOWN)
    assert parts["experts.1.w3.weight"] == (Role.EXPERT, Part.UP)
    assert parts["shared_experts.up_proj.weight"] == (Role.GATE_UP, Part.UP)


def test_vectors_of_experts_are_no_matrix():
    """One vector per expert has two dimensions, a scale per expert and unit even three."""
    experts = Experts((3, 32, 8), (3, 8, 16), num_experts=3)
    experts.gate_up_proj_bias, experts.norm, experts.scale = raw(3, 32), raw(3, 8), raw(3, 1, 8)
    roles = {name: a.role for name, a in found(block(experts=experts)).items()}
    assert [name for name, role in roles.items() if role is Role.EXPERT] == [
        "experts.gate_up_proj",
        "experts.down_proj",
    ]


def test_a_final_fc_is_a_head():
    model = block(layer1=nn.Sequential(nn.Conv2d(3, 8, 3)), fc=linear(10, 8))
    assert found(model)["fc.weight"].role is Role.HEAD
    assert found(block(fc=linear(16, 8), out=linear(8, 16)))["fc.weight"].role is Role.GATE_UP


def test_a_model_that_does_not_know_its_embeddings_is_no_obstacle():
    class Shy(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)

        def get_input_embeddings(self):
            raise NotImplementedError

        get_output_embeddings = get_input_embeddings

    assert found(Shy())["embed.weight"].part is Part.TOKEN


def test_an_mlp_inside_attention_is_an_mlp():
    model = block(attention=block(mlp=block(fc1=linear(16, 8), fc2=linear(8, 16))))
    assert {a.role for a in infer_roles(model)} == {Role.GATE_UP, Role.DOWN}


def test_names_of_an_mlps_layers_do_not_change_roles():
    model = block(ffn=nn.Sequential(linear(32, 8), nn.ReLU(), linear(8, 32)))
    assert [a.role for a in infer_roles(model)] == [Role.GATE_UP, Role.DOWN]


def test_wrappers_in_the_path_change_nothing():
    """Compilation, FSDP and LoRA put words of their own into names."""

    class Lora(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.base_layer = layer
            self.lora_A = linear(2, 8)

    mlp = block(up_proj=Lora(linear(32, 8)), down_proj=linear(8, 32))
    names = found(block(_orig_mod=block(mlp=mlp)))
    up = names["_orig_mod.mlp.up_proj.base_layer.weight"]
    assert (up.role, up.part) == (Role.GATE_UP, Part.UP)
    assert names["_orig_mod.mlp.up_proj.lora_A.weight"].role in MATRIX_ROLES


def test_frozen_parameters_keep_their_role_with_a_reason():
    model = block(up_proj=linear(32, 8))
    model.up_proj.weight.requires_grad_(False)
    (assignment,) = infer_roles(model)
    assert assignment.role is Role.GATE_UP
    assert assignment.reason.endswith("; frozen")


def test_an_empty_parameter_is_no_matrix():
    assert found(block(up_proj=raw(0, 8)))["up_proj"].role is Role.VECTOR
