"""A run: its records, its checkpoints, and that stopping and going on changes no number."""

import json
import math
from dataclasses import replace

import pytest
import torch

from polarlight.lab.train import checkpoint, history
from polarlight.lab.train.checkpoint import CheckpointError
from polarlight.lab.train.folder import SettingsError
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import recipes, spec_of
from polarlight.lab.train.settings import Plan
from tests.lab.train.tiny import PLAN, corpus


def run_in(folder, name="aurora", plan=PLAN, **numbers):
    return Run(spec_of(name, seed=0, **numbers), plan, corpus(folder), folder / "run")


def numbers_of(records):
    """Everything but times."""
    timed = {"seconds", "time"}
    return [{k: v for k, v in r.items() if k not in timed} for r in records]


def test_records_are_written_as_they_are_yielded(tmp_path):
    run = run_in(tmp_path)
    records = list(run.records())
    assert history.read_records(run.metrics) == json.loads(json.dumps(records))
    kinds = [(r["kind"], r["step"]) for r in records]
    assert [s for k, s in kinds if k == "step"] == [1, 2, 4, 6]
    assert [s for k, s in kinds if k == "validation"] == [0, 3, 6]
    for kind in ("neurons", "activations"):
        assert [s for k, s in kinds if k == kind] == [1, 3, 5, 6]
    assert kinds[-1] == ("finished", 6)


def test_the_last_neuron_record_holds_the_shares(tmp_path):
    looks = [r for r in run_in(tmp_path).records() if r["kind"] == "neurons"]
    assert {name.split(".")[-2] for name in looks[0]["layers"]} == {"gate_proj", "up_proj"}
    assert all("shares" not in layer["update"] for layer in looks[0]["layers"].values())
    for layer in looks[-1]["layers"].values():
        assert len(layer["update"]["shares"]) == len(layer["momentum"]["shares"]) == 64
        assert len(layer["singular_values"]) == 16


def test_activations_are_those_of_training_and_not_of_validations(tmp_path):
    """Validations of any length between the steps change nothing."""
    plans = {"often": replace(PLAN, validate_every=1), "seldom": replace(PLAN, validate_every=6)}
    looks = {
        name: [r["layers"] for r in run_in(tmp_path / name, plan=plan).records()
               if r["kind"] == "activations"]
        for name, plan in plans.items()
    }  # fmt: skip
    assert looks["often"] == looks["seldom"]
    assert set(looks["often"][0]) == {"model.layers.0.mlp.down_proj"}


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_trains(tmp_path, name):
    plan = replace(PLAN, steps=12, checkpoint_every=12, neurons_every=12)
    records = list(run_in(tmp_path, name, plan).records())
    validations = [r["loss"] for r in records if r["kind"] == "validation"]
    assert validations[-1] < validations[0]


@pytest.mark.parametrize("name", ["adamw", "normuon", "aurora"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, name, cut):
    whole = run_in(tmp_path / "a", name)
    straight = numbers_of(whole.records())
    first = run_in(tmp_path / "b", name)
    list(first.records(stop=lambda: first.step == cut))
    second = run_in(tmp_path / "b", name)
    assert second.step == cut
    list(second.records())
    assert numbers_of(history.read_records(second.metrics)) == straight
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_crash_loses_only_what_came_after_the_last_checkpoint(tmp_path):
    straight = numbers_of(run_in(tmp_path / "a").records())
    crashed = run_in(tmp_path / "b")
    for record in crashed.records():
        if record["step"] == 5:
            break  # the process dies: nothing is saved after step 4
    with crashed.metrics.open("a") as file:
        file.write('{"kind": "step", "st')
    again = run_in(tmp_path / "b")
    assert again.step == 4
    list(again.records())
    assert numbers_of(history.read_records(again.metrics)) == straight


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    plan = replace(PLAN, accumulate=2)
    records = list(run_in(tmp_path, plan=plan).records())
    steps = [r for r in records if r["kind"] == "step"]
    assert steps[-1]["tokens"] == 6 * 2 * 2 * 16


def test_a_non_finite_loss_ends_the_run_and_keeps_its_weights(tmp_path):
    run = run_in(tmp_path)
    records = run.records()
    for record in records:
        if record["step"] == 2:
            break
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.inf)
    before = [p.clone() for p in run.model.parameters()]
    last = list(records)[-1]
    assert last["kind"] == "stopped"
    assert "non-finite loss" in last["reason"]
    assert "step 3" in last["reason"]
    for ours, theirs in zip(run.model.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)
    assert run_in(tmp_path).ended


def test_other_settings_in_the_folder_are_an_error_that_shows_them(tmp_path):
    list(run_in(tmp_path).records())
    with pytest.raises(SettingsError, match=r"lr: 0\.\d+ -> 0\.5.*--out"):
        run_in(tmp_path, lr=0.5)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "old", "text"])
def test_a_bad_checkpoint_is_named(tmp_path, damage):
    run = run_in(tmp_path)
    list(run.records(stop=lambda: run.step == 2))
    path = run.folder / "checkpoint.pt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "foreign":
        torch.save({"model": {}}, path)
    else:
        content = checkpoint.load(path, torch.device("cpu"))
        torch.save(content | {"version": 0}, path)
    said = {"foreign": "not written by polarlight", "old": "format version 0, this polarlight"}
    with pytest.raises(CheckpointError, match=said.get(damage, "truncated, damaged or not a")):
        run_in(tmp_path)


def test_a_write_that_fails_half_way_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.durable.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path, torch.device("cpu"))["step"] == 1


def test_learning_rate_rises_stays_and_falls():
    plan = Plan(steps=10, warmup=2, cooldown=0.4)
    factors = [plan.lr_factor(step) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert Plan(steps=3, warmup=0, cooldown=0.0).lr_factor(2) == 1


@pytest.mark.parametrize("cut", [None, 3])
def test_learning_rates_are_the_plans_to_the_bit(tmp_path, cut):
    """Of every group in every step, also after a checkpoint: lr of the spec times the factor."""
    plan = replace(PLAN, steps=8, warmup=3, cooldown=0.5, checkpoint_every=1)
    seen = []

    def watch(run):
        run.optimizer.register_step_pre_hook(
            lambda *_: seen.append([group["lr"] for group in run.optimizer.param_groups])
        )

    for stop in (cut, None):
        trained = run_in(tmp_path, plan=plan)
        watch(trained)
        base = [group["initial_lr"] for group in trained.optimizer.param_groups]
        list(trained.records(stop=lambda run=trained, at=stop: run.step == at))
        if cut is None:
            break
    assert seen == [[lr * plan.lr_factor(step) for lr in base] for step in range(8)]
    steps = [r for r in history.read_records(trained.metrics) if r["kind"] == "step"]
    assert [r["lr"] for r in steps] == [base[0] * plan.lr_factor(r["step"] - 1) for r in steps]


@pytest.mark.parametrize("cut", [None, 3])
def test_skipped_gradients_are_recorded_also_across_a_stop(tmp_path, cut):
    """Some gradients of steps 3 and 5 are not finite; records are due after steps 1, 2, 4, 6."""
    run = run_in(tmp_path)

    def poison(run):
        name, p = next((n, p) for n, p in run.model.named_parameters() if "up_proj" in n)

        def hook(gradient):
            return gradient * math.nan if run.step in (2, 4) else gradient

        p.register_hook(hook)
        return name

    name = poison(run)
    list(run.records(stop=lambda: run.step == cut))
    if cut:
        run = run_in(tmp_path)
        poison(run)
        list(run.records())
    found = history.load(run.folder).skipped
    assert [(r["step"], r["parameters"]) for r in found] == [(4, {name: 1}), (6, {name: 1})]
    assert history.load(run.folder).finished


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"warmup": -1}, "warmup must be >= 0, got -1"),
        ({"cooldown": 1.5}, r"cooldown must lie in \[0, 1\], got 1\.5"),
        ({"precision": "fp8"}, "precision must be auto, bf16 or fp32, got fp8"),
        ({"heads": 5}, "width must be a multiple of 2 . heads"),
    ],
)
def test_impossible_plans_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(PLAN, **changes)


def test_bfloat16_autocast_trains(tmp_path):
    records = list(run_in(tmp_path, plan=replace(PLAN, precision="bf16")).records())
    assert records[-1]["kind"] == "finished"
