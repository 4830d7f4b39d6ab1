"""`polarlight reproduce speedup`, as it is typed."""

import pytest
from typer.testing import CliRunner

from polarlight.lab.claims.speedup import running
from polarlight.lab.claims.speedup.plan import parts_of
from polarlight.lab.claims.speedup.running import Place, losses_of
from polarlight.lab.claims.store import read_runs
from polarlight.lab.commands.app import app
from tests.lab.train.tiny import corpus

run = CliRunner().invoke


def test_the_plan_names_thresholds_runs_and_cost_and_trains_nothing(tmp_path):
    result = run(app, ["reproduce", "speedup", "--plan", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "Thresholds, written 2026-11-30" in result.output
    assert "0.03M: 32,960 parameters" in result.output
    assert "10 methods: 326 runs, about 1.2 core hours" in result.output
    assert not (tmp_path / "out").exists()
    gpu = run(app, ["reproduce", "speedup", "--plan", "--size", "gpu"])
    assert "hours at 100 TFLOP/s" in gpu.output


def test_the_command_trains_records_and_resumes(tmp_path, monkeypatch):
    corpus(tmp_path)
    trained = []
    original = running.train
    monkeypatch.setattr(running, "train", lambda *a: trained.append(a[1]) or original(*a))
    out = tmp_path / "out"
    command = ["reproduce", "speedup", "--size", "tiny", "--jobs", "1", "--out", str(out)]
    command += ["--data", str(tmp_path / "text.txt")]
    result = run(app, [*command, "--methods", "muon"])
    assert result.exit_code == 0, result.output
    first = len(trained)
    assert len(list(read_runs(out / "speedup-tiny.jsonl"))) == first > 8
    assert {job.method for job in trained} == {"muon"}
    assert not list(out.rglob("checkpoint.pt"))
    result = run(app, command)
    assert result.exit_code == 0, result.output
    assert {job.method for job in trained[first:]} == {"adamw"}
    assert "tiny: " in result.output
    assert "not finished: none" in result.output
    assert "muon at 1 budgets" in result.output
    assert (out / "speedup.png").stat().st_size > 5000
    count = len(trained)
    again = run(app, [*command, "--results"])
    assert "muon at 4 budgets" in again.output
    assert len(trained) == count
    part, place = parts_of("tiny")[0], Place(out, data=tmp_path / "text.txt")
    assert len(losses_of(part, place.store(), running.corpus_of(place.data).fingerprint)) == count


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--size", "huge"], "unknown size 'huge'"),
        (["--parts", "9M"], "unknown part '9M'"),
        (["--methods", "auorra"], "Did you mean 'aurora'?"),
        (["--size", "gpu"], "--size gpu needs --data with about"),
    ],
)
def test_invalid_arguments_are_one_line_on_stderr(more, said, tmp_path):
    result = run(app, ["reproduce", "speedup", "--out", str(tmp_path), *more])
    assert result.exit_code == 2, result.output
    assert said in result.stderr
