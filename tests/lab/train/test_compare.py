"""A comparison: its runs, resuming, and that one bad run does not take the others with it."""

import signal

import pytest
import torch

from polarlight.lab.train import history
from polarlight.lab.train.compare import first_interrupt, specs
from tests.lab.train.tiny import comparison, train


def test_all_runs_of_a_seed_have_equal_weights_and_data(tmp_path):
    runs = comparison(tmp_path, optimizers=("adamw", "muon", "aurora"), seeds=2)
    train(runs)
    first = {
        (h.label, h.seed): (h.validations[0]["loss"], h.steps[0]["loss"]) for h in runs.histories()
    }
    for seed in (0, 1):
        assert len({first[name, seed] for name in ("adamw", "muon", "aurora")}) == 1
    assert first["adamw", 0] != first["adamw", 1]


def test_finished_runs_are_skipped_and_read_back(tmp_path):
    runs = comparison(tmp_path)
    seen = train(runs)
    before = [(runs.folder(s) / "metrics.jsonl").read_bytes() for s in runs.specs]
    again = train(runs)
    assert [(runs.folder(s) / "metrics.jsonl").read_bytes() for s in runs.specs] == before
    assert [label for label, _ in again] == [label for label, _ in seen]


def test_an_interrupted_comparison_resumes(tmp_path):
    runs = comparison(tmp_path)
    count = 0

    def stop():
        nonlocal count
        count += 1
        return count > 4

    train(runs, stop)
    assert [h.finished for h in runs.histories()] == [False]
    train(runs)
    assert [h.finished for h in runs.histories()] == [True, True]


def test_a_diverged_run_is_kept_and_the_others_continue(tmp_path):
    sweep = {"lr": [1e30, 0.01]}
    runs = comparison(tmp_path, optimizers=("muon",), sweep=sweep)
    train(runs)
    diverged, fine = runs.histories()
    assert "non-finite loss" in diverged.stopped
    assert diverged.steps
    assert not diverged.finished
    assert fine.finished


def test_sweeps_make_one_label_per_combination():
    runs = specs(["muon"], 1, {"lr": [0.1, 0.2], "momentum": [0.9]})
    assert [s.label for s in runs] == ["muon lr=0.1 momentum=0.9", "muon lr=0.2 momentum=0.9"]
    assert [(s.lr, s.momentum) for s in runs] == [(0.1, 0.9), (0.2, 0.9)]


def test_impossible_comparisons_are_refused():
    with pytest.raises(ValueError, match="cannot sweep 'width'; choose from lr"):
        specs(["muon"], 1, {"width": [8.0]})
    with pytest.raises(ValueError, match="seeds must be >= 1, got 0"):
        specs(["muon"], 0, {})


def test_clear_deletes_these_runs_and_no_others(tmp_path):
    runs, other = comparison(tmp_path), comparison(tmp_path, optimizers=("muon",))
    train(runs)
    train(other)
    runs.clear()
    assert runs.histories() == []
    assert len(other.histories()) == 1


def test_about_lists_the_settings_and_versions(tmp_path):
    runs = comparison(tmp_path)
    about = runs.about("polarlight compare")
    assert about["data"]["fingerprint"] == runs.corpus.fingerprint
    assert about["versions"]["torch"] == torch.__version__
    assert "up_proj" in about["explain"]["aurora"]
    assert about["model"]["parameters"] > 0


@pytest.fixture
def interruptible():
    """A shell without job control starts what is in its background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_ctrl_c_is_remembered_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with first_interrupt() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cut_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history.append(path, {"kind": "finished", "step": 3})
    with path.open("a") as file:
        file.write('{"kind": "st')
    assert history.read_records(path) == [{"kind": "finished", "step": 3}]
    assert history.read_records(tmp_path / "missing.jsonl") == []
