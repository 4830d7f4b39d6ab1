"""Routing: every parameter gets one role and one route, with its reason; misfits are errors."""

import re

import pytest
import torch
from torch import nn

import polarlight
from polarlight import Role, Route, explain, route
from polarlight.routing import infer_roles
from polarlight.routing.roles import Part
from polarlight.routing.route import per_head
from polarlight.rules.adamw import AdamWRule


class Block(nn.Module):
    def __init__(self, heads=None):
        super().__init__()
        self.self_attn = nn.ModuleDict({n: nn.Linear(8, 8) for n in ("q_proj", "o_proj")})
        self.self_attn.num_heads = heads
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(8, 32), "down_proj": nn.Linear(32, 8)})
        self.norm = nn.LayerNorm((2, 4))
        self.mixer = nn.Linear(8, 8, bias=False)


class Model(nn.Module):
    def __init__(self, tied=False, layers=1, heads=None):
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.layers = nn.ModuleList([Block(heads) for _ in range(layers)])
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


def test_names_alone_give_equal_roles_except_for_module_facts():
    by_name = roles(Model().named_parameters())
    # A two-dimensional LayerNorm looks like a matrix when only its name is known.
    assert by_name.pop("layers.0.norm.weight") == Role.HIDDEN
    by_module = roles(Model())
    assert by_name == {name: by_module[name] for name in by_name}


def test_tied_weights_appear_once_with_a_reason():
    assignments = infer_roles(Model(tied=True))
    tied = [a for a in assignments if a.role is Role.TIED]
    assert [a.name for a in tied] == ["wte.weight"]
    assert "lm_head.weight" in tied[0].reason
    assert len({id(a.parameter) for a in assignments}) == len(assignments)


def test_a_head_without_a_known_name_is_found_by_position():
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


def test_conv1d_has_a_transposed_view():
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"c_fc": Conv1D(32, 8), "c_proj": Conv1D(8, 32)})})
    up, down = infer_roles(model)
    assert (up.role, up.view) == (Role.GATE_UP, polarlight.view.Transposed())
    assert down.role == Role.DOWN
    optimizer = polarlight.Aurora(model, lr=0.1)
    row = explain(optimizer).rows[0]
    assert row.pieces[0].lr == pytest.approx(0.2)  # sqrt(32 / 8) * 0.1
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


def test_packed_attention_is_three_matrices():
    found = {a.name: a for a in infer_roles(nn.MultiheadAttention(8, 2))}
    assert found["in_proj_weight"].view == polarlight.view.RowBlocks((8, 8, 8))
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


def test_routers_experts_and_their_biases_have_different_roles():
    assert roles(Mixture()) == {
        "gate.weight": Role.ROUTER,
        "experts.gate_up_proj": Role.EXPERT,
        "experts.gate_up_proj_bias": Role.VECTOR,
    }


def test_convolutions_and_raw_parameters_are_no_hidden_matrices():
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3)})
    model.register_parameter("memory", nn.Parameter(torch.zeros(16, 8)))
    found = {a.name: a for a in infer_roles(model)}
    assert found["conv.weight"].role is Role.CONV
    assert found["memory"].role is Role.VECTOR
    assert "no known matrix" in found["memory"].reason
    with pytest.warns(UserWarning, match=r"no parameter gets .* rule.*: memory \(16, 8\), conv"):
        optimizer = polarlight.Muon(model)
    assert all(isinstance(g["rule"], AdamWRule) for g in optimizer.param_groups)


def test_frozen_parameters_are_reported_not_dropped():
    model = Model()
    model.wte.weight.requires_grad_(False)
    optimizer = polarlight.Muon(model)
    assert "frozen" in optimizer.reasons["wte.weight"]
    assert "frozen" in str(explain(optimizer))
    assert explain(optimizer).totals()["embedding"]["frozen"] == 160


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
    table = {"*q_proj.weight": Route(view=polarlight.view.Heads(2), momentum=0.5, weight_decay=0.1)}
    group = route(Model(), {**table, **MATRICES, **OTHERS})[1]
    assert group["param_names"] == ["layers.0.self_attn.q_proj.weight"]
    assert group["view"] == polarlight.view.Heads(2)
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.1)


def test_patterns_that_match_nothing_are_all_listed_with_hints():
    table = {"*.ffn.*": Route(), "embeding": Route(), **MATRICES, **OTHERS}
    with pytest.raises(
        ValueError, match=r"'\*\.ffn\.\*', 'embeding'.*The names are: wte\."
    ) as error:
        route(Model(), table)
    assert "Did you mean embedding by 'embeding'?" in str(error.value)


def test_patterns_that_come_too_late_are_an_error():
    table = {**MATRICES, "*.up_proj.weight": Route(lr=0.1), **OTHERS}
    with pytest.raises(ValueError, match=r"first match wins.*move these patterns up") as error:
        route(Model(), table)
    assert "'*.up_proj.weight'" in str(error.value)


def test_uncovered_parameters_are_all_listed_with_their_roles():
    with pytest.raises(ValueError, match="no entry of the table covers") as error:
        route(Model(layers=3), MATRICES)
    lines = str(error.value).splitlines()
    assert "  wte.weight (20, 8) (embedding)" in lines
    assert "  layers.{0-2}.self_attn.q_proj.bias (8,) (vector)" in lines
    assert "  lm_head.weight (20, 8) (head)" in lines


def test_a_string_that_is_a_roles_value_means_the_role():
    plain = {str(role): entry for role, entry in (MATRICES | OTHERS).items()}
    assert [g["param_names"] for g in route(Model(), plain)] == [
        g["param_names"] for g in route(Model(), MATRICES | OTHERS)
    ]
    named_head = [("head", nn.Parameter(torch.zeros(3, 2)))]
    (group,) = route(named_head, {"[h]ead": Route(lr=0.5)})
    assert group["lr"] == 0.5


def test_a_role_and_part_are_a_finer_key():
    table = {(Role.GATE_UP, Part.UP): Route(lr=0.5), ("attention", "output"): Route(lr=0.25)}
    groups = route(Model(), {**table, **MATRICES, **OTHERS})
    rates = {name: g.get("lr") for g in groups for name in g["param_names"]}
    assert rates["layers.0.mlp.up_proj.weight"] == 0.5
    assert rates["layers.0.self_attn.o_proj.weight"] == 0.25
    assert rates["layers.0.self_attn.q_proj.weight"] is None
    with pytest.raises(ValueError, match="'uppish' is not a valid Part"):
        route(Model(), {("gate_up", "uppish"): Route()})


def test_per_head_splits_attention_into_one_matrix_per_head():
    model = Model(heads=2)
    table = {**MATRICES, **OTHERS, Role.ATTENTION: Route(view=per_head)}
    views = {name: g["view"] for g in route(model, table) for name in g["param_names"]}
    assert views["layers.0.self_attn.q_proj.weight"] == polarlight.view.Heads(2)
    assert views["layers.0.self_attn.o_proj.weight"] == polarlight.view.Heads(2, dim=-1)


def test_parameters_that_do_not_fit_their_view_are_all_listed():
    table = {"*.mlp.*weight": Route(view=polarlight.view.Heads(3)), **MATRICES, **OTHERS}
    with pytest.raises(ValueError, match="these parameters do not fit their view") as error:
        route(Model(layers=2), table | {Role.ATTENTION: Route(view=per_head)})
    lines = str(error.value).splitlines()
    assert "  layers.{0-1}.self_attn.q_proj.weight: its heads are unknown" in lines
    assert "  layers.{0-1}.self_attn.o_proj.weight: its heads are unknown" in lines
    assert any("up_proj" in line and "cannot split 32" in line for line in lines)
    assert any("down_proj" in line and "cannot split 8" in line for line in lines)


def test_a_spectral_rule_for_vectors_is_refused_with_their_names():
    table = {**MATRICES, **OTHERS, Role.VECTOR: Route(rule=polarlight.rules.muon())}
    with pytest.raises(ValueError, match=r"q_proj\.bias: Whole.* needs at least 2 dim") as error:
        route(Model(), table)
    assert str(error.value).count("needs at least 2 dimensions") == 4
    assert "lm_head" not in str(error.value)


def test_parameters_in_two_groups_are_named():
    first, second = (nn.Parameter(torch.zeros(3, 2)) for _ in range(2))
    groups = [{"params": [("a", first), ("b", second)]}, {"params": [("c", second), ("d", first)]}]
    with pytest.raises(ValueError, match=r"c \(it is b\), d \(it is a\)"):
        polarlight.SpectralOptimizer(groups, rule=polarlight.rules.muon())
    with pytest.raises(ValueError, match=r"params\[1\] \(it is params\[0\]\)"):
        polarlight.SpectralOptimizer([first, first], rule=polarlight.rules.muon())
    optimizer = polarlight.SpectralOptimizer([first], rule=polarlight.rules.muon())
    with pytest.raises(ValueError, match=r"it is param_groups\[0\]\['params'\]\[0\]"):
        optimizer.add_param_group({"params": first_of([first])})
    assert len(optimizer.param_groups) == 1


def first_of(parameters):
    yield from parameters


def test_all_parameters_that_a_rule_does_not_take_are_listed():
    named = [("a", nn.Parameter(torch.zeros(3))), ("b", nn.Parameter(torch.zeros(3, 2, 2)))]
    with pytest.raises(ValueError, match=r"a has shape \(3,\), b has shape \(3, 2, 2\); muon"):
        polarlight.SpectralOptimizer(named, rule=polarlight.rules.muon())
    integers = [torch.zeros(3, 2, dtype=torch.int64)]
    with pytest.raises(ValueError, match=r"torch.int64; only real floating-point"):
        polarlight.SpectralOptimizer(integers, rule=polarlight.rules.muon())
    with pytest.raises(ValueError, match=r"(?s)a: .*at least 2 dimensions.*\nb: .*cannot split"):
        polarlight.SpectralOptimizer(
            named, rule=polarlight.rules.muon(), view=polarlight.view.Heads(3)
        )


def test_vectors_never_decay():
    optimizer = polarlight.Muon(Model(), aux_weight_decay=0.5)
    decays = {g["role"]: g["weight_decay"] for g in optimizer.param_groups}
    assert (decays["vector"], decays["embedding"], decays["head"]) == (0.0, 0.5, 0.5)


def test_nothing_to_route_is_an_error():
    with pytest.raises(ValueError, match="no parameters to route"):
        route(nn.ReLU(), MATRICES)


MUON = polarlight.rules.muon()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([MUON], "table must map roles or name patterns to Routes"),
        ({Role.HIDDEN: "muon"}, "the entry for hidden must be a Route or a rule, got 'muon'"),
        ({Role.HIDDEN: None}, "the entry for hidden must be a Route or a rule, got None"),
        ({Role.HIDDEN: polarlight.Muon}, "must be a Route or a rule, got <class"),
        ({len: MUON}, "a key must be a Role, a pair or a glob pattern"),
        ({(Role.HIDDEN, "*", "a"): MUON}, "a key must be a Role, a pair or a glob pattern"),
    ],
    ids=str,
)
def test_a_table_of_another_form_is_refused_with_what_fits(table, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        polarlight.route(nn.Sequential(nn.Linear(4, 8, bias=False)), table)


def test_a_route_with_a_class_for_its_rule_is_refused():
    with pytest.raises(TypeError, match="rule must be a rule, as"):
        polarlight.Route(rule=polarlight.Muon)


def test_a_rule_in_a_table_stands_for_its_route():
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False))
    tables = ({role: entry for role in Role} for entry in (MUON, polarlight.Route(rule=MUON)))
    bare, full = (polarlight.route(model, table) for table in tables)
    assert [group["rule"] for group in bare] == [group["rule"] for group in full]


def test_parameters_without_names_are_refused_with_what_fits():
    with pytest.raises(TypeError, match="got a Parameter"):
        polarlight.route(list(nn.Linear(4, 8).parameters()), {Role.HIDDEN: MUON})


def test_a_complex_parameter_raises_an_error_without_a_warning():
    model = nn.Sequential(nn.Linear(8, 8))
    model.register_parameter("filter", nn.Parameter(torch.zeros(4, 4, dtype=torch.complex64)))
    with pytest.raises(ValueError, match=r"filter is torch.complex64; .*view_as_real\(filter\)"):
        polarlight.Muon(model)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_layer_without_a_shape_is_refused_with_its_name_until_a_forward_pass(by_name):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LazyLinear(8))
    source = list(model.named_parameters()) if by_name else model
    with pytest.raises(ValueError, match=r"2\.weight, 2\.bias: no shape yet.*forward pass first"):
        polarlight.Muon(source)
    model(torch.zeros(1, 4))
    assert [g["role"] for g in polarlight.Muon(model).param_groups] == ["hidden", "vector"]
