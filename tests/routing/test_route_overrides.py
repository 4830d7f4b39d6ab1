"""Exceptions from the default routes, and the warning where parameters are left to AdamW."""

import warnings

import pytest
import torch
from torch import nn

import polarlight
from polarlight import Role, Route, explain, recipes
from polarlight.routing.roles import Part
from polarlight.rules import AdamWRule
from polarlight.rules.with_adamw import with_adamw
from tests.routing.roles.blocks import block, linear, raw

MAKERS = [polarlight.Muon, polarlight.Aurora]
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def language_model():
    layers = [block(mlp=block(up_proj=nn.Linear(8, 32), down_proj=linear(8, 32))) for _ in range(3)]
    ends = {"embed": nn.Embedding(20, 8), "lm_head": linear(20, 8)}
    return block(layers=nn.ModuleList(layers), **ends)


def resnet():
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(2)]
    return block(stem=nn.Conv2d(3, 8, 3), layer1=nn.Sequential(*blocks), fc=linear(10, 8))


def unet():
    """Kernels are most of it; there is attention in between."""
    attention = block(to_q=linear(8, 8), to_k=linear(8, 8), to_out=linear(8, 8))
    return block(down=nn.Conv2d(8, 8, 3), attn=attention, up=nn.ConvTranspose2d(8, 8, 3))


def group_of(optimizer, name):
    return next(g for g in optimizer.param_groups if name in g["param_names"])


def numbers(group):
    return group["rule"].name, group["lr"], group["weight_decay"], group["momentum"]


ONE_LINE = {
    "convolutions": (unet, {Role.CONV: Role.HIDDEN}, "down.weight", ("muon", 0.02, 0.1, 0.95)),
    "by the role's value": (unet, {"conv": "hidden"}, "up.weight", ("muon", 0.02, 0.1, 0.95)),
    "another rule": (
        unet, {Role.CONV: polarlight.rules.normuon()}, "up.weight", ("normuon", 0.02, 0.1, 0.95),
    ),
    "its own rate": (
        language_model, {"layers.1.*": Route(lr=0.5)},
        "layers.1.mlp.up_proj.weight", ("muon", 0.5, 0.1, 0.95),
    ),
    "also that of its biases": (
        language_model, {"layers.1.*": Route(lr=0.5)},
        "layers.1.mlp.up_proj.bias", ("adamw", 0.5, 0.0, 0.8),
    ),
    "others keep theirs": (
        language_model, {"layers.1.*": Route(lr=0.5)},
        "layers.0.mlp.up_proj.weight", ("muon", 0.02, 0.1, 0.95),
    ),
    "an exclusion": (
        language_model, {"layers.0.*weight": AdamWRule()},
        "layers.0.mlp.up_proj.weight", ("adamw", 3e-3, 0.2, 0.8),
    ),
    "role and pattern": (
        language_model, {(Role.DOWN, "layers.[01].*"): Route(momentum=0.5)},
        "layers.0.mlp.down_proj.weight", ("muon", 0.02, 0.1, 0.5),
    ),
    "role and pattern take no other role": (
        language_model, {(Role.DOWN, "layers.*"): Route(momentum=0.5)},
        "layers.0.mlp.up_proj.weight", ("muon", 0.02, 0.1, 0.95),
    ),
    "role and part": (
        language_model, {(Role.GATE_UP, Part.UP): Route(weight_decay=0.0)},
        "layers.2.mlp.up_proj.weight", ("muon", 0.02, 0.0, 0.95),
    ),
    "a head that was none": (
        language_model, {"layers.2.mlp.down_proj.weight": Role.HEAD},
        "layers.2.mlp.down_proj.weight", ("adamw", 3e-3, 0.2, 0.8),
    ),
    "the first that matches": (
        language_model, {(Role.GATE_UP, "*.0.*"): Route(lr=1.0), Role.GATE_UP: Route(lr=2.0)},
        "layers.0.mlp.up_proj.weight", ("muon", 1.0, 0.1, 0.95),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "overrides", "name", "expected"), ONE_LINE.values(), ids=ONE_LINE
)
def test_an_override_changes_its_own_entries_alone(model, overrides, name, expected):
    options = {"aux_weight_decay": 0.2, "aux_betas": (0.8, 0.9), "weight_decay": 0.1}
    optimizer = polarlight.Muon(model(), overrides=overrides, **options)
    assert numbers(group_of(optimizer, name)) == expected
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert len(trained) == sum(len(g["params"]) for g in optimizer.param_groups)


@makers
def test_convolutions_train_under_the_rule_with_their_kernels_as_matrices(make):
    model = resnet()
    optimizer = make(model, overrides={Role.CONV: Role.HIDDEN})
    group = group_of(optimizer, "layer1.0.0.weight")
    assert group["view"] == polarlight.view.Flattened((3, 3))
    before = model.layer1[0][0].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert not torch.equal(model.layer1[0][0].weight, before)
    row = next(row for row in explain(optimizer).rows if row.name == "layer1.0.0.weight")
    assert (row.rule, row.role) == (make.__name__.lower(), "hidden")
    assert row.reason == "override for conv; Conv2d kernel"


def test_a_raw_matrix_gets_the_rule_by_its_name():
    model = block(memory=raw(16, 8), up_proj=linear(32, 8))
    optimizer = polarlight.Muon(model, overrides={"memory": Role.HIDDEN})
    assert {g["rule"].name for g in optimizer.param_groups} == {"muon"}


REFUSED = {
    "a pattern without a match": ({"*.ffn.*": Route(lr=1.0)}, ValueError, r"no parameter matches"),
    "a hint": ({"embeding": Route(lr=1.0)}, ValueError, r"Did you mean embedding by 'embeding'"),
    "a pair without a match": (
        {(Role.HEAD, "layers.*"): Route(lr=1.0)}, ValueError, r"matches \(head, 'layers\.\*'\)",
    ),
    "an unknown part": ({("down", "lower"): Route(lr=1.0)}, ValueError, "not a valid Part"),
    "an empty route": ({Role.DOWN: Route()}, ValueError, "changes nothing; Role.HIDDEN"),
    "no route": ({Role.DOWN: 0.1}, TypeError, "must be a Route, a rule or a Role, got 0.1"),
    "a rule that takes no vectors": (
        {"layers.0.*": polarlight.rules.muon()}, ValueError, r"up_proj\.bias: .*at least 2 dim",
    ),
    "one that an earlier one hides": (
        {"layers.*": Route(lr=1.0), "layers.0.*": Route(lr=2.0)}, ValueError, "first match wins",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "error", "said"), REFUSED.values(), ids=REFUSED)
@makers
def test_overrides_that_do_nothing_or_do_not_fit_are_refused(make, overrides, error, said):
    with pytest.raises(error, match=said):
        make(language_model(), overrides=overrides)


def test_parameters_without_names_take_no_overrides():
    with pytest.raises(ValueError, match=r"pass the model or model\.named_parameters"):
        polarlight.Muon([raw(4, 3)], overrides={"*": Route(lr=1.0)})


LEFT = {
    "a ResNet": (
        resnet,
        r"no parameter gets.*100%.*stem\.weight \(8, 3, 3, 3\), .*, layer1.1.0.w.*CONV",
    ),
    "a UNet": (unet, r"85%.*down\.weight \(8, 8, 3, 3\), up\.weight.*Role\.CONV: Role\.HIDDEN"),
    "a raw matrix": (lambda: [("w", raw(8, 8))], r"no parameter.*: w \(8, 8\).*\{'w': Role\.HIDD"),
    "a raw matrix beside others": (
        lambda: block(memory=raw(16, 8), up_proj=linear(32, 8)),
        r"matrices, 33%.*memory \(16, 8\)\. overrides=\{'memory'",
    ),
    "a stack of matrices": (
        lambda: block(core=raw(4, 6, 8), up_proj=linear(32, 8)),
        r"core \(4, 6, 8\)\. overrides",
    ),
    "norms alone": (lambda: nn.LayerNorm(8), r"no parameter gets.*: weight \(8,\), bias"),
    "a head alone": (lambda: block(lm_head=linear(20, 8)), r"no parameter gets.*lm_head"),
}


@pytest.mark.parametrize(("model", "said"), LEFT.values(), ids=LEFT)
@makers
def test_nothing_is_left_to_adamw_in_silence(make, model, said):
    with pytest.warns(UserWarning, match=said) as caught:
        make(model())
    assert len(caught) == 1
    assert caught[0].filename == __file__


TOKENS = {"cls_token": raw(1, 1, 8), "register_tokens": raw(1, 4, 8), "A_log": raw(16, 4)}
QUIET = {
    "a language model": (language_model, {}),
    "frozen kernels": (lambda: frozen(unet()), {}),
    "a vision transformer": (
        lambda: block(patch=nn.Conv2d(3, 8, 4, 4), up_proj=linear(32, 8), **TOKENS),
        {},
    ),
    "few kernels": (
        lambda: block(conv=nn.Conv1d(8, 8, 3, groups=2), up_proj=linear(512, 8)),
        {},
    ),
    "kernels of one channel": (
        lambda: block(conv1d=nn.Conv1d(16, 16, 4, groups=16), up_proj=linear(16, 8)),
        {},
    ),
    "kernels that are meant for AdamW": (unet, {Role.CONV: AdamWRule()}),
    "a ResNet that is": (resnet, {Role.CONV: AdamWRule()}),
    "a raw matrix that is": (
        lambda: block(memory=raw(16, 8), up_proj=linear(32, 8)),
        {"memory": AdamWRule()},
    ),
    "a model without trainable parameters": (lambda: frozen(resnet(), "weight", "bias"), {}),
}


def frozen(model, *leaves):
    """The model with its kernels, or all parameters of these names, frozen."""
    for name, p in model.named_parameters():
        p.requires_grad_(not (p.ndim == 4 or name.endswith(leaves or ("none",))))
    return model


@pytest.mark.parametrize(("model", "overrides"), QUIET.values(), ids=QUIET)
@makers
def test_no_warning_where_every_matrix_has_its_rule(make, model, overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(model(), overrides=overrides)


def test_groups_of_other_optimizers_take_overrides_too():
    groups = with_adamw(unet(), lr=1e-3, overrides={Role.CONV: Role.HIDDEN})
    assert not any("rule" in group for group in groups if group["role"] == "hidden")


RECIPES = [recipes.muon_with_adamw, recipes.aurora_mlp, recipes.symmetric_stack]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_recipes_take_overrides_and_warn_as_classes_do(recipe):
    with pytest.warns(UserWarning, match=r"AdamW takes .*Role\.CONV: Role\.HIDDEN") as caught:
        recipe(unet(), lr=0.1, weight_decay=0.2)
    assert caught[0].filename == __file__
    overrides = {"down.*": Role.HIDDEN, "up.weight": polarlight.rules.normuon()}
    groups = recipe(unet(), lr=0.1, weight_decay=0.2, overrides=overrides)
    by_name = {name: group for group in groups for name in group["param_names"]}
    down, up = by_name["down.weight"], by_name["up.weight"]
    assert (down["rule"].name, down["lr"], down["weight_decay"]) == ("muon", 0.1, 0.2)
    assert (up["rule"].name, up["lr"], up["weight_decay"]) == ("normuon", 0.1, 0.2)


def test_a_table_takes_overrides():
    table = {role: Route(rule=AdamWRule(), lr=0.1) for role in Role}
    groups = polarlight.route(language_model(), table, overrides={Role.HEAD: Route(lr=0.5)})
    rates = {name: g["lr"] for g in groups for name in g["param_names"]}
    assert [name for name, lr in rates.items() if lr == 0.5] == ["lm_head.weight"]


def tables():
    return block(token=nn.Embedding(200, 8), up=linear(32, 8), last=nn.Linear(8, 200, bias=False))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (None, r"names alone.*token\.weight \(200, 8\), last\.weight .*'token\.weight': Role\.EMB"),
        ({"token.weight": Role.EMBEDDING}, r"names alone.*: last\.weight \(200, 8\)\. Pass"),
    ],
    ids=str,
)
def test_long_matrices_of_unknown_names_are_not_taken_for_hidden_ones_in_silence(overrides, said):
    with pytest.warns(UserWarning, match=said) as caught:
        polarlight.Muon(tables().named_parameters(), overrides=overrides)
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize(
    ("params", "overrides"),
    [
        (tables, None),
        (lambda: tables().named_parameters(), {"token.*": Role.EMBEDDING, "last.*": Role.HIDDEN}),
        (lambda: block(gate_proj=linear(80, 8), up=linear(32, 8)).named_parameters(), None),
    ],
    ids=["the model", "overrides", "known names"],
)
def test_known_long_matrices_need_no_warning(params, overrides, recwarn):
    polarlight.Muon(params(), overrides=overrides)
    assert not recwarn.list
