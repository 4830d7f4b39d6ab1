"""Recipes on whole models: every parameter once, the right rule for its layer, one update size."""

import json
from pathlib import Path

import pytest
import torch

import polarlight
from polarlight import Part, Role, SpectralOptimizer
from polarlight.lab.train.model import GPT, Architecture, ModelConfig
from polarlight.recipes import aurora_mlp, muon_with_adamw, symmetric_stack
from polarlight.routing import infer_roles
from polarlight.rule import UpdateRule
from tests.routing.roles.golden import expected_warning

CONFIGS = sorted((Path(__file__).parent / "routing" / "roles" / "configs").glob("*.json"))
RECIPES = [muon_with_adamw, aurora_mlp, symmetric_stack]

recipes = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)


def hugging_face(name):
    transformers = pytest.importorskip("transformers")
    data = json.loads(
        (Path(__file__).parent / "routing" / "roles" / "configs" / f"{name}.json").read_text()
    )
    torch.manual_seed(0)
    cls = getattr(transformers, data["architectures"][0])
    return cls(transformers.CONFIG_MAPPING[data["model_type"]].from_dict(data))


def small(**changes):
    return GPT(ModelConfig(vocab_size=32, width=16, layers=1, heads=2, context=16, **changes))


def step(model, optimizer, seed=0):
    """One step on random gradients; the change of every parameter."""
    generator = torch.Generator().manual_seed(seed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def rules_of(groups):
    """The rule's name for every parameter's name."""
    return {name: group["rule"].name for group in groups for name in group["param_names"]}


@recipes
@pytest.mark.parametrize("name", [config.stem for config in CONFIGS])
def test_every_parameter_of_every_model_is_in_one_group_and_moves(name, recipe):
    """Also the one-dimensional ones, which the source of the symmetric stack skips."""
    model = hugging_face(name)
    with expected_warning(name):
        groups = recipe(model, lr=0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    changes = step(model, SpectralOptimizer(groups))
    assert [name for name, change in changes.items() if not change.abs().max() > 0] == []
    assert all(bool(change.isfinite().all()) for change in changes.values())


@recipes
@pytest.mark.parametrize("architecture", Architecture)
def test_updates_of_all_matrices_have_the_size_of_adamws(recipe, architecture):
    """0.2 lr per entry; Newton-Schulz by Jordan's coefficients is inexact, centring shortens."""
    model = small(architecture=architecture)
    groups = recipe(model, lr=0.01)
    matrices = {
        name
        for group in groups
        if isinstance(group["rule"], UpdateRule)
        for name in group["param_names"]
    }
    changes = step(model, SpectralOptimizer(groups, momentum=0.0))
    sizes = {n: changes[n].square().mean().sqrt().item() / 0.01 for n in matrices}
    assert min(sizes.values()) > 0.14
    assert max(sizes.values()) < 0.24


def test_the_symmetric_stack_of_a_dense_model():
    rules = rules_of(symmetric_stack(small(), lr=0.01))
    assert rules["model.embed_tokens.weight"] == "row_norm"
    assert rules["lm_head.weight"] == "centred_row_norm"
    assert rules["model.layers.0.mlp.gate_proj.weight"] == "row_then_polar"
    assert rules["model.layers.0.mlp.down_proj.weight"] == "row_then_polar_columns"
    assert rules["model.layers.0.self_attn.q_proj.weight"] == "muon"
    assert rules["model.norm.weight"] == "adamw"


def test_a_tied_matrix_is_not_centred():
    """Rows of a tied matrix are embeddings too: their mean matters."""
    rules = rules_of(symmetric_stack(small(tied=True), lr=0.01))
    assert rules["model.embed_tokens.weight"] == "row_norm"
    assert "centred_row_norm" not in rules.values()


def test_softmax_routers_are_centred_and_sigmoid_routers_are_not():
    for name, expected in {
        "qwen3_moe": "centred_row_norm",
        "olmoe": "centred_row_norm",
        "deepseek_v3": "row_norm",
    }.items():
        model = hugging_face(name)
        rules = rules_of(symmetric_stack(model, lr=0.01))
        routers = {rules[a.name] for a in infer_roles(model) if a.role is Role.ROUTER}
        assert routers == {expected}, name


def test_a_router_may_take_the_left_polar_factor():
    moe = small(architecture=Architecture.MOE)
    groups = symmetric_stack(moe, lr=0.01, router="left_polar")
    assert rules_of(groups)["model.layers.0.mlp.gate.weight"] == "centred_one_sided"


@pytest.mark.parametrize(
    ("mlp", "gate", "down"),
    [
        ("hybrid", "row_then_polar", "row_then_polar_columns"),
        ("muon", "muon", "muon"),
        ("aurora", "aurora", "muon"),
    ],
)
@pytest.mark.parametrize("architecture", Architecture)
def test_the_mlps_rule_can_be_chosen_and_experts_get_it_too(mlp, gate, down, architecture):
    model = small(architecture=architecture)
    rules = rules_of(symmetric_stack(model, lr=0.01, mlp=mlp))
    parts = {a.part: rules[a.name] for a in infer_roles(model)}
    rising = Part.GATE_UP if architecture == Architecture.MOE else Part.GATE
    assert (parts[rising], parts[Part.DOWN]) == (gate, down)


@pytest.mark.parametrize("option", ["mlp", "router"])
def test_an_unknown_choice_lists_the_known_ones(option):
    with pytest.raises(ValueError, match=f"unknown {option} 'hybird'"):
        symmetric_stack(small(), lr=0.01, **{option: "hybird"})


def test_learning_rates_of_their_own():
    groups = symmetric_stack(
        small(), lr=0.01, embedding_lr=0.02, head_lr=0.03, aux_lr=0.04, weight_decay=0.1
    )
    by_role = {group["role"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert by_role["embedding"] == (0.02, 0.0)
    assert by_role["head"] == (0.03, 0.0)
    assert by_role["vector"] == (0.04, 0.0)
    assert by_role["attention"] == (0.01, 0.1)


def test_aurora_mlp_puts_aurora_on_gate_and_up_alone():
    rules = rules_of(aurora_mlp(small(), lr=0.01))
    having = {name.split(".")[-2] for name, rule in rules.items() if rule == "aurora"}
    assert having == {"gate_proj", "up_proj"}


def test_experts_stored_in_by_out_get_the_update_of_the_transpose_in_the_same_size():
    """The source takes fan-out and fan-in from the storage order and inverts the scale."""
    G = torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(0))
    found = []
    for view, gradient in (
        (polarlight.view.Whole(), G),
        (polarlight.view.Transposed(), G.mT.contiguous()),
    ):
        p = torch.nn.Parameter(torch.zeros_like(gradient))
        group = {"params": [p], "view": view}
        optimizer = SpectralOptimizer([group], lr=1.0, rule=polarlight.rules.muon())
        p.grad = gradient
        optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(found[0], found[1].mT, rtol=2e-2, atol=2e-2)


def test_experts_are_independent():
    """A permutation of the experts' gradients permutes their updates; no norm is shared."""
    model, other = (small(architecture=Architecture.MOE, experts=4) for _ in range(2))
    order = torch.tensor([2, 0, 3, 1])
    changes = []
    for m in (model, other):
        optimizer = SpectralOptimizer(symmetric_stack(m, lr=0.01))
        generator = torch.Generator().manual_seed(0)
        for p in m.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        if m is other:
            for p in m.parameters():
                if p.ndim == 3:
                    p.grad = p.grad[order]
        before = {n: p.detach().clone() for n, p in m.named_parameters()}
        optimizer.step()
        changes.append({n: p.detach() - before[n] for n, p in m.named_parameters() if p.ndim == 3})
    for name, change in changes[0].items():
        torch.testing.assert_close(changes[1][name], change[order])


def test_groups_without_a_rule_are_named():
    with pytest.raises(ValueError, match="has no rule: give the optimizer one"):
        SpectralOptimizer([torch.nn.Parameter(torch.zeros(2, 2))])
