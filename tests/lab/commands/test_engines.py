"""`polarlight accuracy` and `polarlight plot-schedule`."""

import json

import pytest
import torch
from typer.testing import CliRunner

from polarlight.lab.commands.app import app
from polarlight.lab.commands.registry import SCHEDULES, choose, engines, unbounded
from polarlight.linalg.cost import flops


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_accuracy_writes_numbers_and_a_picture(tmp_path):
    names = "exact (SVD) fp64,qdwh fp32,polar-express bf16"
    budget = ("--size", 16, "--search", 4, "--rounds", 1)
    result = run("accuracy", "--engines", names, *budget, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "accuracy.json").read_text())
    assert record["budget"] == {"size": 16, "matrices": 4, "rounds": 1, "large": False}
    assert record["machine"]["torch"] == torch.__version__
    assert set(record["engines"]) == set(names.split(","))
    cases = record["engines"]["exact (SVD) fp64"]["cases"]
    assert {r["shape"] for r in cases} == {"square", "4:1", "1:4", "30:1"}
    assert "condition 1e3, one zero row" in {r["case"] for r in cases}
    assert max(r["error"] for r in cases if "1e7" not in r["case"]) < 1e-9
    for found in record["engines"].values():
        assert found["least"]["promised"] < found["least"]["value"]
        assert found["largest"]["value"] < found["largest"]["promised"]
    assert "(0.8" in (tmp_path / "accuracy.md").read_text()
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "polar-express bf16" in result.output


@pytest.mark.parametrize("name", ["maps.png", "maps.svg"])
def test_schedules_are_drawn(tmp_path, name):
    result = run("plot-schedule", "jordan", "deepseek-v4", "--out", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).stat().st_size > 5000
    assert "79,263" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plot-schedule", "jordna"], "Did you mean 'jordan'?"),
        (["plot-schedule", "--out", "maps.pdf"], "must end in .png or .svg"),
        (["plot-schedule", "--lowest", "2"], r"must lie in (0, 1), got 2"),
        (["accuracy", "--engines", "qwdh fp32"], "Did you mean 'qdwh fp32'?"),
        (["accuracy", "--size", "2"], "must be >= 4, got 2"),
        (["accuracy", "--search", "0"], "must be >= 1, got 0"),
        (["accuracy", "--rounds", "-1"], "must be >= 0, got -1"),
    ],
)
def test_unknown_names_raise_with_the_known_ones(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_names_choose_in_their_order():
    assert list(choose("you, jordan", SCHEDULES, "schedule")) == ["you", "jordan"]
    assert choose("", SCHEDULES, "schedule").keys() == SCHEDULES.keys()


def test_no_name_of_an_engine_has_the_comma_that_separates_names():
    known = engines() | unbounded()
    assert choose(",".join(known), known, "engine") == known


def test_the_cost_of_every_engine_is_counted():
    for name, engine in engines().items():
        assert flops(engine, 64, 16) > 0, name
        assert str(engine)
