"""Models of Hugging Face: roles and views as read from their source, and a step of each.

The files in `golden/` were checked by eye against the models' code in transformers 5.23. After a
change that is meant: `python -m tests.routing.roles.golden`, and read the diff.
"""

import json
import sys

import pytest
import torch

import polarlight
from polarlight import Role, Route, SpectralOptimizer, route
from polarlight.integrations.transformers import explain_hf, meta_model
from polarlight.routing import infer_roles
from polarlight.routing.roles import MATRIX_ROLES
from polarlight.routing.route import per_head
from polarlight.rules.adamw import AdamWRule
from polarlight.stages import MatchRmsAdamW
from tests.routing.roles.golden import CONFIGS, expected_warning, golden_file, golden_text

transformers = pytest.importorskip("transformers")

configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)


def tiny(config):
    """The model with random weights."""
    data = json.loads(config.read_text())
    torch.manual_seed(0)
    cls = getattr(transformers, data["architectures"][0])
    return cls(transformers.CONFIG_MAPPING[data["model_type"]].from_dict(data))


def randomise_gradients(model):
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


@configs
def test_roles_and_views_are_the_golden_ones(config, tmp_path):
    expected = golden_file(config).read_text()
    assert golden_text(config, tmp_path) == expected, "meant? python -m tests.routing.roles.golden"


@configs
def test_every_parameter_is_in_one_group_and_moves(config):
    model = tiny(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with expected_warning(config.stem):
        optimizer = polarlight.Aurora(model, lr=0.1, aux_lr=0.1)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    randomise_gradients(model)
    optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p.detach(), before[n])]
    assert still == []
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@configs
def test_views_cut_without_copying_and_join_again(config):
    for assignment in infer_roles(tiny(config)):
        if assignment.parameter.ndim < 2:
            continue
        for view in filter(None, (assignment.view, assignment.heads)):
            x = torch.randn(assignment.parameter.shape)
            parts = view.split(x)
            assert [part.shape for part in parts] == view.shapes(x.shape)
            assert {part.untyped_storage().data_ptr() for part in parts} == {
                x.untyped_storage().data_ptr()
            }
            assert torch.equal(view.join(parts), x)


@configs
def test_attention_can_be_stepped_by_head(config):
    model = tiny(config)
    others = {role: Route(rule=AdamWRule()) for role in Role if role not in MATRIX_ROLES}
    rest = {role: Route() for role in MATRIX_ROLES}
    gates = {"*in_proj_ba*": Route()} if config.stem == "qwen3_next" else {}
    table = {**gates, Role.ATTENTION: Route(view=per_head), **rest, **others}
    optimizer = SpectralOptimizer(route(model, table), rule=polarlight.rules.muon())
    randomise_gradients(model)
    optimizer.step()


@configs
def test_a_config_alone_is_explained(config):
    with expected_warning(config.stem):
        explanation = explain_hf(config, polarlight.Muon)
    model = meta_model(config)
    assert {row.name for row in explanation.rows} == {name for name, _ in model.named_parameters()}
    assert max(map(len, str(explanation).splitlines())) <= 120
    assert len(json.loads(explanation.to_json())["parameters"]) == len(explanation.rows)


@configs
def test_names_alone_find_the_same_matrices(config):
    model = meta_model(config)
    by_module = {a.name: a.role for a in infer_roles(model)}
    by_name = {a.name: a.role for a in infer_roles(model.named_parameters())}
    matrices = {name for name, role in by_module.items() if role in MATRIX_ROLES}
    assert {name for name, role in by_name.items() if role in MATRIX_ROLES} == matrices


def rewritten(config, folder, **changes):
    path = folder / "config.json"
    data = json.loads(config.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return path


def config_of(name):
    return next(config for config in CONFIGS if config.stem == name)


def test_a_published_mixture_is_explained_at_full_size(tmp_path):
    """Qwen3-30B-A3B: 30.5 billion parameters, none of them in memory."""
    sizes = {
        "architectures": None,
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "vocab_size": 151936,
    }
    path = rewritten(config_of("qwen3_moe"), tmp_path, **sizes)
    explanation = explain_hf(path, lambda model: polarlight.Muon(model, scale=MatchRmsAdamW()))
    assert sum(entry["parameters"] for entry in explanation.totals().values()) == 30_532_122_624
    lines = [
        line for line in str(explanation).splitlines() if line.startswith("model.layers.{0-47}")
    ]
    assert len(lines) == 11
    # The scale is made for this: entries of every matrix move as far as AdamW's would, 0.2 lr.
    rms = {piece.rms for row in explanation.rows for piece in row.pieces if row.rule == "muon"}
    assert all(value == pytest.approx(0.2 * 0.02) for value in rms)


def test_quantised_and_foreign_fields_of_published_configs_do_no_harm(tmp_path):
    fields = {
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "scoring_func": "sigmoid",
        "architectures": ["SomethingUnknown"],
    }
    explanation = explain_hf(
        rewritten(config_of("deepseek_v3"), tmp_path, **fields), polarlight.Muon
    )
    router = next(row for row in explanation.rows if row.role == "router")
    assert "sigmoid scores, by the config" in router.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "qwen33"}', "got 'qwen33'. Did you mean 'qwen3'?"),
        ("{}", "model_type must be one that transformers .* knows, got None"),
        ("[]", "got None"),
        ("{", "is not JSON"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        explain_hf(tmp_path / "config.json", polarlight.Muon)


def test_explain_hf_without_transformers_raises_with_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        explain_hf(CONFIGS[0], polarlight.Muon)
