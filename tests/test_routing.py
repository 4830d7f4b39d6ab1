"""Routing: every parameter gets one role and one route, with its reason; misfits are errors."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight import Role, Route, explain, infer_roles, route
from polarlight.rules.adamw import AdamWRule


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.ModuleDict({n: nn.Linear(8, 8) for n in ("q_proj", "o_proj")})
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(8, 32), "down_proj": nn.Linear(32, 8)})
        self.norm = nn.LayerNorm((2, 4))
        self.mixer = nn.Linear(8, 8, bias=False)


class Model(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.layers = nn.ModuleList([Block()])
        self.lm_head = nn.Linear(8, 20, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


def roles(model):
    return {a.name: a.role for a in infer_roles(model)}


def test_roles_of_a_transformer():
    assert roles(Model()) == {
        "wte.weight": Role.EMBEDDING,
        "layers.0.self_attn.q_proj.weight": Role.ATTENTION,
        "layers.0.self_attn.q_proj.bias": Role.VECTOR,
        "layers.0.self_attn.o_proj.weight": Role.ATTENTION,
        "layers.0.self_attn.o_proj.bias": Role.VECTOR,
        "layers.0.mlp.up_proj.weight": Role.GATE_UP,
        "layers.0.mlp.up_proj.bias": Role.VECTOR,
        "layers.0.mlp.down_proj.weight": Role.DOWN,
        "layers.0.mlp.down_proj.bias": Role.VECTOR,
        "layers.0.norm.weight": Role.VECTOR,
        "layers.0.norm.bias": Role.VECTOR,
        "layers.0.mixer.weight": Role.HIDDEN,
        "lm_head.weight": Role.HEAD,
    }


def test_names_alone_give_the_same_but_for_what_only_a_module_can_tell():
    by_name = roles(Model().named_parameters())
    # A two-dimensional LayerNorm looks like a matrix when only its name is known.
    assert by_name.pop("layers.0.norm.weight") == Role.HIDDEN
    by_module = roles(Model())
    assert by_name == {name: by_module[name] for name in by_name}


def test_tied_weights_appear_once_and_say_so():
    assignments = infer_roles(Model(tied=True))
    tied = [a for a in assignments if a.role is Role.TIED]
    assert [a.name for a in tied] == ["wte.weight"]
    assert "lm_head.weight" in tied[0].reason
    assert len({id(a.parameter) for a in assignments}) == len(assignments)


def test_a_head_is_found_by_position_where_its_name_says_nothing():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 20))
    assert roles(model) == {
        "0.weight": Role.EMBEDDING,
        "1.weight": Role.HIDDEN,
        "1.bias": Role.VECTOR,
        "2.weight": Role.HIDDEN,
        "2.bias": Role.VECTOR,
        "3.weight": Role.HEAD,
        "3.bias": Role.VECTOR,
    }


class Conv1D(nn.Module):
    """Stands for transformers' layer of that name: a linear layer stored (in, out)."""

    def __init__(self, n_out, n_in):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))


def test_conv1d_is_seen_transposed():
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"c_fc": Conv1D(32, 8), "c_proj": Conv1D(8, 32)})})
    up, down = infer_roles(model)
    assert (up.role, up.view) == (Role.GATE_UP, polarlight.Transposed())
    assert down.role == Role.DOWN
    optimizer = polarlight.Aurora(model, lr=0.1)
    table = explain(optimizer)
    assert "0.2" in table.split("c_fc")[1].split("\n")[0]  # sqrt(32 / 8) * 0.1
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


def test_packed_attention_is_three_matrices():
    found = {a.name: a for a in infer_roles(nn.MultiheadAttention(8, 2))}
    assert found["in_proj_weight"].view == polarlight.RowBlocks((8, 8, 8))
    assert found["in_proj_weight"].role is Role.ATTENTION
    assert found["out_proj.weight"].role is Role.ATTENTION
    apart = roles(nn.MultiheadAttention(8, 2, kdim=4, vdim=6))
    assert apart["k_proj_weight"] is Role.ATTENTION


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.zeros(4, 16, 8))
        self.experts.gate_up_proj_bias = nn.Parameter(torch.zeros(4, 16))


def test_routers_experts_and_their_biases_are_told_apart():
    assert roles(Mixture()) == {
        "gate.weight": Role.ROUTER,
        "experts.gate_up_proj": Role.EXPERT,
        "experts.gate_up_proj_bias": Role.VECTOR,
    }


def test_convolutions_and_raw_parameters_are_no_hidden_matrices():
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3)})
    model.register_parameter("position", nn.Parameter(torch.zeros(16, 8)))
    found = {a.name: a for a in infer_roles(model)}
    assert found["conv.weight"].role is Role.CONV
    assert found["position"].role is Role.VECTOR
    assert "no known matrix" in found["position"].reason
    optimizer = polarlight.Muon(model)
    assert all(isinstance(g["rule"], AdamWRule) for g in optimizer.param_groups)


def test_frozen_parameters_are_reported_not_dropped():
    model = Model()
    model.wte.weight.requires_grad_(False)
    optimizer = polarlight.Muon(model)
    assert "frozen" in optimizer.reasons["wte.weight"]
    assert "frozen" in explain(optimizer)


MATRICES = {role: Route() for role in (Role.HIDDEN, Role.GATE_UP, Role.DOWN, Role.ATTENTION)}
OTHERS = {role: Route(rule=AdamWRule()) for role in (Role.EMBEDDING, Role.HEAD, Role.VECTOR)}


def test_the_first_entry_that_matches_wins():
    table = {"*.mlp.*weight": Route(lr=0.5), **MATRICES, **OTHERS}
    groups = route(Model(), table)
    by_name = {name: g for g in groups for name in g["param_names"]}
    assert by_name["layers.0.mlp.up_proj.weight"]["lr"] == 0.5
    assert "lr" not in by_name["layers.0.mixer.weight"]
    assert by_name["layers.0.mlp.up_proj.bias"]["rule"] == AdamWRule()
    assert (
        "matches '*.mlp.*weight'"
        in by_name["layers.0.mlp.up_proj.weight"]["reasons"]["layers.0.mlp.up_proj.weight"]
    )


def test_every_parameter_is_in_exactly_one_group():
    model = Model(tied=True)
    table = {**MATRICES, **OTHERS, Role.TIED: Route(rule=AdamWRule())}
    routed = [p for g in route(model, table) for p in g["params"]]
    assert len(routed) == len({id(p) for p in routed})
    assert {id(p) for p in routed} == {id(p) for p in model.parameters()}


def test_a_route_can_set_view_and_numbers():
    table = {"*q_proj.weight": Route(view=polarlight.Heads(2), momentum=0.5, weight_decay=0.1)}
    group = route(Model(), {**table, **MATRICES, **OTHERS})[1]
    assert group["param_names"] == ["layers.0.self_attn.q_proj.weight"]
    assert group["view"] == polarlight.Heads(2)
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.1)


def test_a_pattern_that_matches_nothing_is_an_error_with_names():
    with pytest.raises(ValueError, match=r"'\*\.ffn\.\*' matches no parameter.*wte\.weight"):
        route(Model(), {"*.ffn.*": Route(), **MATRICES, **OTHERS})


def test_uncovered_parameters_are_listed_with_their_roles():
    with pytest.raises(ValueError, match="no entry of the table covers") as error:
        route(Model(), MATRICES)
    assert "wte.weight (20, 8) (embedding)" in str(error.value)
    assert "lm_head.weight (20, 8) (head)" in str(error.value)


def test_nothing_to_route_is_an_error():
    with pytest.raises(ValueError, match="no parameters to route"):
        route(nn.ReLU(), MATRICES)


def test_explain_shows_every_parameter_with_its_effective_rate_and_totals():
    model = Model()
    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=0.003)
    table = explain(optimizer)
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    for name, p in model.named_parameters():
        assert name in lines
        assert " x ".join(map(str, p.shape)) in lines[name]
    assert "0.04" in lines["layers.0.mlp.up_proj.weight"]  # sqrt(32 / 8) * 0.02
    assert "rows balanced" in lines["layers.0.mlp.up_proj.weight"]
    assert "elementwise" in lines["wte.weight"]
    assert lines["embedding"].split() == ["embedding", "1", "160"]


def test_explain_of_groups_and_of_bare_tensors():
    groups = route(Model(), {**MATRICES, **OTHERS})
    assert "default" in explain(groups)
    bare = polarlight.Muon([nn.Parameter(torch.zeros(4, 3))], lr=0.1)
    assert "given by the caller" in explain(bare)
