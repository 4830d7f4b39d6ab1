"""Recorded runs: read back as they were, found again, and damage is named."""

import math
from dataclasses import replace

import pytest

from polarlight.lab.claims.arms import AURORA, MUON
from polarlight.lab.claims.claim import SMALL, spec_for
from polarlight.lab.claims.store import RunRecord, RunStore, read_runs, run_setting

RUN = RunRecord(
    setting="a",
    arm="muon",
    lr=0.02,
    weight_decay=0.0,
    aux_lr=0.01,
    seed=3,
    measures={"loss": 1.5, "update rms": math.nan},
    cpu_seconds=2.5,
    date="2026-11-30",
    data="d",
    versions={"torch": "2"},
    hardware={"device": "cpu"},
)


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    store = RunStore([tmp_path / "shipped", tmp_path / "new"])
    store.add("kaon", RUN)
    (found,) = read_runs(tmp_path / "new" / "kaon.jsonl")
    assert replace(found, measures={}) == replace(RUN, measures={})
    assert found.measures["loss"] == 1.5
    assert math.isnan(found.measures["update rms"])
    assert '"update rms": null' in (tmp_path / "new" / "kaon.jsonl").read_text()  # strict JSON
    assert RunStore([tmp_path / "new"]).get("a", "d", ["loss"]).seed == 3


def test_a_run_without_a_measure_or_on_other_data_is_not_known(tmp_path):
    store = RunStore([tmp_path])
    store.add("kaon", RUN)
    assert store.get("a", "d", ["loss", "starved"]) is None
    assert store.get("a", "other", ["loss"]) is None
    assert store.get("b", "d", ["loss"]) is None


def test_a_run_that_diverged_is_not_asked_for_its_measures(tmp_path):
    store = RunStore([tmp_path])
    store.add("kaon", replace(RUN, measures={"loss": math.nan}))
    assert RunStore([tmp_path]).get("a", "d", ["loss", "starved"]).diverged


def test_a_later_record_of_a_run_counts_and_keeps_what_the_earlier_one_measured(tmp_path):
    store = RunStore([tmp_path])
    store.add("kaon", replace(RUN, measures={"loss": 1.5, "update rms": 0.1}))
    store.add("sides", replace(RUN, measures={"loss": 1.4, "starved": 0.0}))
    expected = {"loss": 1.4, "update rms": 0.1, "starved": 0.0}
    assert [r.measures for r in store] == [r.measures for r in RunStore([tmp_path])] == [expected]


def test_a_cut_last_line_is_left_out_and_damage_before_it_is_named(tmp_path):
    path = tmp_path / "kaon.jsonl"
    path.write_text(RUN.line() + RUN.line()[:40])
    assert len(list(read_runs(path))) == 1
    path.write_text(RUN.line() + "{}\n" + RUN.line())
    with pytest.raises(ValueError, match=r"kaon.jsonl, line 2 is no run"):
        list(read_runs(path))


def test_a_setting_is_what_decides_the_numbers_and_nothing_else():
    def of(arm=MUON, plan=SMALL, **numbers):
        return run_setting(arm, plan)(replace(spec_for(arm, 0.02, 0), **numbers))

    assert of() == of(label="another name") == of(plan=replace(SMALL, log_every=7, compile=True))
    others = [of(seed=1), of(lr=0.01), of(weight_decay=0.1), of(aux_lr=0.1), of(arm=AURORA)]
    others += [of(plan=replace(SMALL, steps=201)), of(arm=replace(MUON, finish=print))]
    assert len({of(), *others}) == 8
