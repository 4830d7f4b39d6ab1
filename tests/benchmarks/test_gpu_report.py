"""The report of a GPU, tried on a CPU with small shapes."""

import json

import pytest

from benchmarks import gpu_report


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
    assert set(results["training"]["runs"]) == {"muon", "aurora-tall"}
    float32 = [found["float32"] for found in results["contracts"].values()]
    assert all(found == {**found, "distance": 0.0, "syncs": []} for found in float32)
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_failing_part_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    def fails(report):
        raise ValueError("not on this device")

    monkeypatch.setattr(gpu_report, "PARTS", {"first": fails, "second": lambda report: 1})
    gpu_report.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)])
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert parts["first"]["result"]["failed"] == "ValueError: not on this device"
    assert parts["second"]["result"] == 1


def test_a_part_for_which_no_time_is_left_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "PARTS", {"only": lambda report: 1})
    gpu_report.main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)])
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert parts == {"only": {"left_out": "no time left"}}
