"""The report of a GPU, tried on a CPU with small shapes."""

import json
import time

import pytest

from benchmarks.gpu_report import __main__ as gpu_report
from benchmarks.gpu_report.report import tried, within


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_every_part_runs_or_says_what_it_lacks(tmp_path):
    gpu_report.main(["--device", "cpu", "--tiny", "--minutes", "60", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["parts"]) == list(gpu_report.PARTS)
    results = {name: part["result"] for name, part in report["parts"].items()}
    assert "failed" not in json.dumps(results)
    assert "left_out" in results["quack"]
    assert all("left_out" in found for found in results["graphs"].values())
    assert results["fsdp"]["distance"] < 1e-6
    runs = results["training"]["runs"]
    assert [run["steps"] for run in runs.values()] == [4, 4]
    assert runs["muon"]["losses"][-1] != runs["aurora-tall"]["losses"][-1]
    float32 = [found["float32"] for found in results["contracts"].values()]
    assert all(found == {**found, "distance": 0.0, "syncs": []} for found in float32)
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_failing_part_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    def fails(report, found):
        found["before"] = 1
        raise ValueError("not on this device")

    def works(report, found):
        found["value"] = 2

    monkeypatch.setattr(gpu_report, "PARTS", {"first": (fails, 1.0), "second": (works, 1.0)})
    gpu_report.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)])
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert parts["first"]["result"]["failed"] == "ValueError: not on this device"
    assert parts["first"]["result"]["before"] == 1
    assert parts["second"]["result"] == {"value": 2}


def test_a_part_for_which_no_time_is_left_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "PARTS", {"only": (lambda *_: None, 1.0)})
    gpu_report.main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)])
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert parts == {"only": {"left_out": "no time left"}}


def test_a_part_that_takes_too_long_is_stopped_and_keeps_what_it_found(tmp_path, monkeypatch):
    def sleeps(report, found):
        found["before"] = 1
        tried(time.sleep, 60)
        found["after"] = 2

    monkeypatch.setattr(gpu_report, "PARTS", {"slow": (sleeps, 0.001), "next": (sleeps, 1.0)})
    start = time.monotonic()
    gpu_report.main(["--device", "cpu", "--minutes", "0.004", "--out", str(tmp_path)])
    assert time.monotonic() - start < 30
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    for part in parts.values():
        assert set(part["result"]) == {"before", "out_of_time"}


def test_an_inner_limit_does_not_hide_the_end_of_an_outer_one():
    def inner():
        within(60, time.sleep, 60)
        raise AssertionError("goes on after the end of the outer limit")

    assert "out_of_time" in within(0.01, inner)
    assert within(60, lambda: 1) == 1
