"""The report of a comparison when something is missing or odd."""

import math

import pytest

from polarlight.lab.train.history import History
from polarlight.lab.train.report import write_report
from polarlight.lab.train.report.groups import by_label
from polarlight.lab.train.report.neuron_figures import share_histograms, spectra_at_end
from polarlight.lab.train.report.opening import trust
from tests.lab.report.reading import Reader, rows_of
from tests.lab.train.fake_histories import ABOUT, fake_run

pytestmark = pytest.mark.usefixtures("undrawn")  # drawn in `test_report.py`

LOSSES = {"loss_end", "loss_final", "loss_seconds", "loss_steps"}


def report(histories, out, about=ABOUT):
    page = Reader(write_report(histories, about, out).read_text(encoding="utf-8"))
    assert not page.open
    return page


def figures(out):
    return {path.stem for path in out.glob("*.png")}


def quick(label="muon", seed=0, **options):
    return fake_run(label, seed, **{"layers": 1, "rows": 64, "steps": 100, **options})


def test_a_report_without_runs_is_written(tmp_path):
    page = report([], tmp_path, {})
    assert "No run has been recorded yet." in page.text
    assert rows_of(tmp_path / "summary.csv") == []


def test_a_run_without_records(tmp_path):
    page = report([History("muon", 0)], tmp_path, {})
    assert "No loss has been recorded yet." in page.text
    assert "No neuron was observed" in page.text
    assert not figures(tmp_path)


def test_a_single_record(tmp_path):
    run = History("muon", 0)
    time = {"data": 0.05, "optimizer": 0.05}
    record = {"step": 1, "loss": 5.5, "lr": 0.1, "tokens": 8, "seconds": 0.1, "time": time}
    run.add({"kind": "step", **record})
    assert "unfinished at step 1" in report([run], tmp_path).text
    assert figures(tmp_path) == {"loss_steps", "loss_seconds", "step_time"}


def test_a_validation_before_the_first_step(tmp_path):
    run = History("muon", 0)
    run.add({"kind": "validation", "step": 0, "loss": 5.5, "seconds": 0.0})
    assert "unfinished at step 0 (loss 5.5000)" in report([run], tmp_path).text


def test_no_tall_matrix(tmp_path):
    runs = [quick("muon"), quick("aurora")]
    for run in runs:
        run.activations.clear()
        for record in run.neurons:
            record["layers"] = {}
    assert "the model has no tall matrix" in report(runs, tmp_path).text
    assert figures(tmp_path) == LOSSES | {"step_time"}


def test_a_history_from_before_activations_were_recorded(tmp_path):
    """And before anything but shares and row norms was told of a matrix."""
    run = quick()
    run.activations.clear()
    for record in run.neurons:
        for layer in record["layers"].values():
            for name in ("pair", "weight", "rms", "ratio", "cosine", "alignment", "quantiles"):
                layer.pop(name, None)
            for name in ("ever", "stayed", "effective"):
                layer["update"].pop(name)
    page = report([run], tmp_path)
    assert "Silent neurons" not in page.text
    assert not figures(tmp_path) & {"silent", "gates", "persistence", "quantiles", "update_size"}
    assert "starved_update" in figures(tmp_path)


def test_figures_of_an_earlier_report_do_not_stay(tmp_path):
    report([quick(neurons=False)], tmp_path)
    report([History("muon", 0)], tmp_path)
    assert not figures(tmp_path)


def test_updates_of_zeros():
    run = quick()
    for layer in run.neurons[-1]["layers"].values():
        layer["update"]["shares"] = [0.0] * 64
        layer["singular_values"] = [0.0] * 16
    groups = by_label([run])
    share_histograms(groups, "update").draw_without_rendering()
    spectra_at_end(groups).draw_without_rendering()


def test_one_seed_separates_nothing(tmp_path):
    page = report([quick("muon"), quick("aurora")], tmp_path)
    assert "One seed cannot separate the optimizers" in page.text
    assert "polarlight compare --optimizers adamw,muon,normuon,aurora --steps 300 --seeds 4" in (
        page.text
    )
    assert "\N{PLUS-MINUS SIGN}" not in page.text
    assert "over seeds; band" not in page.text


def test_one_optimizer_has_nothing_to_compare_with():
    (note,) = trust(by_label([quick(seed=0), quick(seed=1)]), {})
    assert "There is no other optimizer" in note.text


def test_a_stopped_run_keeps_its_curve_and_the_reason(tmp_path):
    runs = [quick("aurora"), quick("muon", end="non-finite loss (nan)"), quick("muon", seed=1)]
    page = report(runs, tmp_path)
    assert page.tables[0][3][-1] == "1 finished; seed 0 stopped: non-finite loss (nan)"
    curve = [
        r for r in rows_of(tmp_path / "curves.csv") if (r["label"], r["seed"]) == ("muon", "0")
    ]
    assert max(int(row["step"]) for row in curve) == 60
    assert all(math.isfinite(float(row["value"])) for row in curve)


def test_no_finished_run(tmp_path):
    page = report([quick("aurora", end="unfinished"), quick("muon", end="unfinished")], tmp_path)
    assert "nothing is compared" in page.text
    assert "No run finished." in page.text
    assert "No run has recorded the shares of single rows" in page.text
    assert "loss_steps" in figures(tmp_path)
    assert "loss_final" not in figures(tmp_path)


def test_labels_are_taken_literally(tmp_path):
    labels = ["<script>alert(1)</script>", "$\\frac{", "_b", "a" * 60, "", "= 1\n2"]
    page = report([quick(label) for label in labels], tmp_path, {"title": labels[0]})
    assert not page.tags["script"]
    assert [row[0] for row in page.tables[0][2:]] == labels


def test_about_may_hold_anything(tmp_path):
    about = {"model": "small", "data": None, "settings": [1, 2], "explain": "a table", "x": {}}
    page = report([History("muon", 0)], tmp_path, about)
    assert "a table" in page.text
