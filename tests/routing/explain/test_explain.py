"""The explanation: what it says of a parameter, how it folds layers, what it knows of steps."""

import json
from math import sqrt

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer, explain
from polarlight.linalg.slot import Function
from polarlight.routing.explain import Explanation
from polarlight.routing.explain.folding import fold, ranges
from polarlight.rules import AdamWRule
from polarlight.stages.side import Identity


def layer():
    names = {"up_proj": nn.Linear(8, 32), "down_proj": nn.Linear(32, 8, bias=False)}
    return nn.ModuleDict({"mlp": nn.ModuleDict(names)})


@pytest.fixture
def model():
    torch.manual_seed(0)
    parts = {"embed": nn.Embedding(20, 8), "layers": nn.ModuleList(layer() for _ in range(3))}
    return nn.ModuleDict(parts | {"lm_head": nn.Linear(8, 20, bias=False)})


def row(explanation, name):
    return next(row for row in explanation.rows if row.name == name)


def test_a_row_shows_rule_view_rate_and_reason_of_a_parameter(model):
    explanation = explain(polarlight.Aurora(model, lr=0.02, aux_lr=0.003))
    assert isinstance(explanation, Explanation)
    names = sorted(row.name for row in explanation.rows)
    assert names == sorted(name for name, _ in model.named_parameters())
    up = row(explanation, "layers.1.mlp.up_proj.weight")
    assert (up.shape, up.role, up.rule, up.view) == ((32, 8), "gate_up", "aurora", "Whole()")
    (piece,) = up.pieces
    assert "rows balanced" in piece.engine
    assert piece.lr == pytest.approx(0.04)  # sqrt(32 / 8) * 0.02
    assert piece.rms == pytest.approx(0.04 / sqrt(32))  # a polar factor's entries are 1 / sqrt(32)
    embed = row(explanation, "embed.weight")
    assert (embed.rule, embed.lr) == ("adamw", 0.003)
    assert (embed.pieces[0].engine, embed.pieces[0].rms) == ("elementwise", None)


def test_every_matrix_of_a_view_has_its_own_rate():
    group = {"params": [("w", nn.Parameter(torch.zeros(48, 8)))], "lr": 1.0}
    group["view"] = polarlight.view.RowBlocks((32, 8, 8))
    (found,) = explain(SpectralOptimizer([group], rule=polarlight.rules.muon())).rows
    assert [piece.shape for piece in found.pieces] == [(32, 8), (8, 8), (8, 8)]
    assert [piece.lr for piece in found.pieces] == [2.0, 1.0, 1.0]
    assert found.view == "RowBlocks((32, 8, 8))"
    assert "1, 2" in str(Explanation((found,)))


def test_equal_parameters_of_repeated_layers_share_an_entry(model):
    explanation = explain(polarlight.Aurora(model))
    text = str(explanation)
    entry = next(line for line in text.splitlines() if "up_proj.weight" in line)
    assert entry.split()[:5] == ["layers.{0-2}.mlp.up_proj.weight", "3", "32", "x", "8"]
    assert "layers.1" not in text
    every = explanation.table(every=True)
    assert all(name in every for name, _ in model.named_parameters())


def test_layers_that_differ_are_not_folded(model):
    model["layers"][1]["mlp"]["up_proj"].weight.requires_grad_(False)
    text = str(explain(polarlight.Aurora(model)))
    assert "layers.{0,2}.mlp.up_proj.weight" in text
    assert "layers.1.mlp.up_proj.weight" in text
    assert "; frozen -> " in text


def test_totals_are_per_role_and_of_all(model):
    model["embed"].weight.requires_grad_(False)
    explanation = explain(polarlight.Muon(model))
    assert explanation.totals() == {
        "embedding": {"tensors": 1, "parameters": 160, "frozen": 160},
        "gate_up": {"tensors": 3, "parameters": 768, "frozen": 0},
        "vector": {"tensors": 3, "parameters": 96, "frozen": 0},
        "down": {"tensors": 3, "parameters": 768, "frozen": 0},
        "head": {"tensors": 1, "parameters": 160, "frozen": 0},
    }
    assert str(explanation).splitlines()[-1].split() == ["all", "11", "1,952", "160", "100.0", "%"]


def test_the_table_keeps_to_the_width(model):
    long = "a_module_with_a_very_long_name." * 4 + "weight"
    group = {"params": [(long, nn.Parameter(torch.zeros(4, 3)))]}
    explanation = explain(SpectralOptimizer([group], rule=polarlight.rules.aurora()))
    lines = explanation.table(width=100).splitlines()
    assert [line for line in lines if len(line) > 100] == [long]
    assert lines[lines.index(long) + 1].split()[:4] == ["1", "4", "x", "3"]


def test_json_holds_every_row(model):
    explanation = explain(polarlight.NorMuon(model, lr=0.02))
    data = json.loads(explanation.to_json())
    assert len(data["parameters"]) == 11
    assert data["totals"] == explanation.totals()
    up = next(p for p in data["parameters"] if p["name"] == "layers.0.mlp.up_proj.weight")
    assert up["shape"] == [32, 8]
    assert up["pieces"][0]["lr"] == pytest.approx(0.04)
    assert set(up) == {
        *("name", "shape", "role", "rule", "view", "lr", "weight_decay", "pieces", "frozen"),
        "reason",
    }


def test_groups_without_an_optimizer_and_tensors_without_names_are_explained(model):
    groups = polarlight.rules.with_adamw(model, lr=0.5)
    assert "default" in str(explain(groups))
    bare = polarlight.Muon([nn.Parameter(torch.zeros(4, 3)) for _ in range(2)], lr=0.1)
    assert "given by the caller" in str(explain(bare))
    assert str(explain(bare)).splitlines()[1].split()[:2] == ["-", "2"]
    foreign = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert "0.1" in str(explain(foreign))


def test_a_tensor_learning_rate_is_shown(model):
    explanation = explain(polarlight.Muon(model, lr=torch.tensor(0.5)))
    assert row(explanation, "layers.0.mlp.down_proj.weight").lr == 0.5


FOLDED = [
    (["a"], ["a"]),
    (["layers.0.w", "layers.1.w", "layers.2.w"], ["layers.{0-2}.w"]),
    (["a.0.w", "b", "a.2.w", "a.3.w"], ["a.{0,2-3}.w", "b"]),
    ([f"l.{i}.e.{j}.w" for i in range(2) for j in range(3)], ["l.{0-1}.e.{0-2}.w"]),
    (["l.0.e.0.w", "l.0.e.1.w", "l.1.e.0.w"], ["l.0.e.{0-1}.w", "l.1.e.0.w"]),
    (["fc1.weight", "fc2.weight"], ["fc1.weight", "fc2.weight"]),
    (["l.9.w", "l.10.w"], ["l.{9-10}.w"]),
    (["l.b_0.up", "l.b_1.up", "l.b_1.w_2"], ["l.b_{0-1}.up", "l.b_1.w_2"]),
]


@pytest.mark.parametrize(("names", "patterns"), FOLDED)
def test_names_fold_into_patterns_that_cover_exactly_them(names, patterns):
    folded = fold(names)
    assert [pattern for pattern, _ in folded] == patterns
    assert sorted(name for _, members in folded for name in members) == sorted(names)


def test_long_lists_of_numbers_are_shortened():
    assert ranges(n for n in range(48) if n % 4 != 3) == "0-2,4-6,...,44-46"


KNOWN = [
    polarlight.rules.muon(),
    polarlight.rules.normuon(),
    polarlight.rules.unormuon(),
    polarlight.rules.muoneq(),
    polarlight.rules.aurora(),
    polarlight.rules.aurora(polarlight.rules.WarmPolar()),
    polarlight.rules.muon(scale=polarlight.stages.MatchRmsAdamW()),
    polarlight.rules.muon(polar=polarlight.linalg.ExactPolar(), scale=polarlight.stages.RmsToRms()),
]


@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (24, 24)])
@pytest.mark.parametrize("rule", KNOWN, ids=lambda rule: f"{rule.name}-{rule.scale}")
def test_the_step_of_a_polar_factor_is_known_and_right(rule, shape):
    m, n = shape
    expected = rule.scale(m, n) / sqrt(max(m, n))
    assert rule.update_rms(m, n) == pytest.approx(expected)
    M = torch.randn(m, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    buffers = {k: M.new_zeros(s) for k, s in rule.buffer_shapes(M.shape).items()}
    measured = rule.direction(M, buffers).square().mean().sqrt().item()
    # Jordan's polynomial leaves singular values in [0.7, 1.2], their rms above 0.8.
    assert 0.8 * expected < measured < 1.1 * expected


def test_the_step_of_a_renormalised_update_is_known():
    assert polarlight.rules.normuon_paper(rms=0.2).update_rms(96, 24) == pytest.approx(
        0.2, rel=1e-3
    )


@pytest.mark.parametrize("map", [Identity(), Function(torch.tanh)], ids=str)
def test_other_steps_are_unknown(map):
    rule = polarlight.UpdateRule(
        name="other", momentum=polarlight.stages.EMA(), map=map, scale=polarlight.stages.Unscaled()
    )
    assert rule.update_rms(96, 24) is None
    group = [("w", nn.Parameter(torch.zeros(96, 24)))]
    assert str(explain(SpectralOptimizer(group, rule=rule))).splitlines()[1].split()[-1] == "-"


def test_adamw_alone_is_explained(model):
    optimizer = SpectralOptimizer(model.named_parameters(), rule=AdamWRule(), lr=0.1)
    assert {r.pieces[0].engine for r in explain(optimizer).rows} == {"elementwise"}


def test_the_table_shows_each_groups_weight_decay():
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False))
    optimizer = polarlight.Muon(model, lr=0.02, weight_decay=0.05)
    rows = {row.name: row.weight_decay for row in polarlight.explain(optimizer).rows}
    assert rows == {"0.weight": 0.0, "1.weight": 0.05, "1.bias": 0.0, "2.weight": 0.0}
    lines = str(polarlight.explain(optimizer)).splitlines()
    column = lines[0].index("decay")
    hidden = next(line for line in lines if line.startswith("1.weight"))
    assert hidden[column:].split()[0] == "0.05"
    groups = polarlight.route(model, dict.fromkeys(polarlight.Role, polarlight.Route()))
    assert {row.weight_decay for row in polarlight.explain(groups).rows} == {None}
