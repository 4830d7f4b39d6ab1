"""The command line, as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import polarlight
from polarlight.lab.commands import options, training
from polarlight.lab.commands.app import app
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import Mlp
from polarlight.lab.train.settings import PRESETS
from tests.lab.train.tiny import PLAN, corpus

TINY = [
    f"--set={name}={getattr(PLAN, name)}"
    for name in ("width", "layers", "heads", "context", "batch", "steps", "warmup", "precision")
] + ["--set=validate_every=3", "--set=validation_tokens=64"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def compare(tmp_path, *more):
    corpus(tmp_path)
    data, out = tmp_path / "text.txt", tmp_path / "out"
    return run("compare", "--data", data, "--out", out, *TINY, *more)


@pytest.mark.usefixtures("undrawn")
def test_compare_trains_and_writes_a_report(tmp_path):
    result = compare(tmp_path, "--optimizers", "muon,aurora", "--seeds", 2)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "aurora" in page
    assert str(tmp_path / "out" / "report" / "index.html") in result.output
    assert "sha256" in result.output


def test_the_report_is_written_while_the_runs_are_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "REPORT_EVERY", 0.0)
    written = []

    def write_report(histories, about, out):
        written.append(sum(run.finished for run in histories))
        return out / "index.html"

    monkeypatch.setattr(training, "write_report", write_report)
    result = compare(tmp_path, "--optimizers", "muon,aurora")
    assert result.exit_code == 0, result.output
    assert written[0] == 0  # after the first validation of the first run
    assert written == sorted(written)
    assert written[-1] == 2
    assert result.output.count("report so far:") == 1


def test_the_demo_gives_intervals_for_four_optimizers():
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    assert "polarlight compare --preset demo --seeds 3" in makefile


@pytest.mark.usefixtures("undrawn")
@pytest.mark.usefixtures("undrawn")
def test_compare_again_resumes_and_overwrite_starts_again(tmp_path):
    assert compare(tmp_path, "--optimizers", "muon").exit_code == 0
    metrics = tmp_path / "out" / "muon" / "seed0" / "metrics.jsonl"
    before = metrics.read_bytes()
    assert compare(tmp_path, "--optimizers", "muon").exit_code == 0
    assert metrics.read_bytes() == before
    other = compare(tmp_path, "--optimizers", "muon", "--set", "batch=3")
    assert other.exit_code == 2
    assert "batch: 2 -> 3" in other.stderr
    assert compare(tmp_path, "--optimizers", "muon", "--set=batch=3", "--overwrite").exit_code == 0
    assert metrics.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizers", "auorra"], "Did you mean 'aurora'?"),
        (["--optimizers", "muon,muon"], "listed twice"),
        (["--optimizers", ","], "at least one name"),
        (["--preset", "huge"], "Known: quick, demo, small, gpu"),
        (["--model", "mixture"], "Known: dense, moe"),
        (["--set", "architecture=mix"], "expected dense or moe"),
        (["--set", "widht=3"], "Did you mean 'width'?"),
        (["--set", "width"], "NAME=VALUE"),
        (["--set", "width=wide"], "expected int, got 'wide'"),
        (["--set", "tied=maybe"], "expected true or false"),
        (["--set", "mlp=gelu"], "expected swiglu or relu2"),
        (["--set", "width=0"], "width must be >= 1, got 0"),
        (["--sweep", "lr=fast"], "every value of lr must be a number"),
        (["--sweep", "steps=3"], "cannot sweep 'steps'"),
        (["--seeds", "0"], "seeds must be >= 1"),
        (["--data", "nowhere.txt"], "does not exist"),
    ],
)
def test_invalid_arguments_are_one_line_with_the_fix(arguments, said):
    result = run("compare", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_data_too_small_for_the_context_is_named(tmp_path):
    (tmp_path / "short.txt").write_text("abc" * 20)
    result = run("compare", "--data", tmp_path / "short.txt", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "context of 128 needs at least 129" in result.stderr


def test_explain_prints_the_routing_table():
    result = run("explain", "--optimizer", "normuon", "--set", "layers=1")
    assert result.exit_code == 0
    assert "model.layers.0.mlp.up_proj.weight" in result.output
    assert "normuon" in result.output


def test_explain_shows_the_adamw_rate_that_the_classes_default_to():
    result = run("explain", "--json")
    rows = {row["role"]: row["lr"] for row in json.loads(result.stdout)["parameters"]}
    of_classes = polarlight.Aurora(GPT(PLAN.model(9)), lr=0.02).param_groups
    rates = {group["lr"] for group in of_classes if group["rule"] == polarlight.rules.AdamWRule()}
    assert {rows["embedding"], rows["head"]} == rates == {0.003}


@pytest.mark.usefixtures("undrawn")
def test_a_mixture_of_experts_is_trained_and_explained(tmp_path):
    result = compare(tmp_path, "--model", "moe", "--optimizers", "muon-rms,symmetric")
    assert result.exit_code == 0, result.output
    assert "Dead experts" in (tmp_path / "out" / "report" / "index.html").read_text()
    table = run("explain", "--optimizer", "symmetric", "--model", "moe")
    assert "centred_row_norm" in table.output
    assert "experts.down_proj" in table.output


def test_explain_takes_a_hugging_face_config_and_prints_json():
    pytest.importorskip("transformers")
    config = Path(__file__).parents[2] / "routing" / "roles" / "configs" / "qwen3.json"
    result = run("explain", "--hf", config, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["parameters"]
    assert {row["role"] for row in rows} >= {"gate_up", "down", "attention", "embedding"}


def test_an_invalid_hugging_face_config_is_named(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "qwen33"}')
    result = run("explain", "--hf", tmp_path / "config.json")
    assert result.exit_code == 2
    assert "qwen33" in result.stderr


@pytest.mark.parametrize("command", [[], ["compare"], ["explain"]])
def test_help_shows_commands_and_defaults(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_options_become_values():
    assert options.optimizers(" muon, aurora ") == ["muon", "aurora"]
    assert options.sweep(["lr=0.1,0.2", "momentum=0.9"]) == {"lr": [0.1, 0.2], "momentum": [0.9]}
    plan = options.plan("quick", ["mlp=relu2", "tied=true", "kv_heads=3", "cooldown=0.5"], {})
    assert (plan.mlp, plan.tied, plan.kv_heads, plan.cooldown) == (Mlp.RELU2, True, 3, 0.5)
    assert options.plan("quick", [], {"steps": None}) == PRESETS["quick"]
    assert options.plan("quick", ["steps=6"], {"steps": None}).steps == 6  # --steps is not given


@pytest.mark.parametrize("word", ["version", pytest.param("--version", marks=pytest.mark.slow)])
def test_the_command_is_there_as_a_module(word):
    done = subprocess.run(
        [sys.executable, "-m", "polarlight", word], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == polarlight.__version__
