"""A run is killed, its files are damaged, old or hostile: it goes on to the bit, or says why."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import polarlight
from polarlight.lab.train import checkpoint, durable, history
from polarlight.lab.train.checkpoint import CheckpointError
from polarlight.lab.train.folder import SettingsError
from polarlight.lab.train.history import HistoryError
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import spec_of
from tests.lab.train.tiny import PLAN, corpus

ROOT = Path(polarlight.__file__).parents[1]
CPU = torch.device("cpu")


def run_in(folder, name="aurora", plan=PLAN):
    return Run(spec_of(name, seed=0), plan, corpus(folder), folder / "run")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with a run that was stopped at step 2."""
    folder = tmp_path_factory.mktemp("stopped")
    run = run_in(folder)
    list(run.records(stop=lambda: run.step == 2))
    return folder


@pytest.fixture
def copy(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("kills", "written"), [(6, 1), pytest.param(100, 20, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, kills, written):
    """SIGKILL, half of the time while a checkpoint is being written; every step writes one."""
    command = [sys.executable, "-m", "tests.reliability.crash", tmp_path, str(kills), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"] >= kills
    assert found["killed while writing"] >= written
    assert found["finished"] >= 1
    assert found["different"] == []


def test_a_checkpoint_cut_short_anywhere_is_never_taken_for_a_whole_one(copy):
    path = copy / "run" / "checkpoint.pt"
    whole = path.read_bytes()
    generator = random.Random(0)
    cuts = [*range(60), *(generator.randrange(60, len(whole)) for _ in range(60))]
    for cut in cuts[1:]:
        path.write_bytes(whole[:-cut])
        with pytest.raises(CheckpointError, match="truncated, damaged or not a checkpoint"):
            checkpoint.load(path, CPU)
    path.write_bytes(whole)
    assert checkpoint.load(path, CPU)["step"] == 2


def test_no_flipped_bit_and_no_strange_byte_gets_through(copy):
    """Without the seal, torch loads most of these: it does not check its own checksums."""
    path = copy / "run" / "checkpoint.pt"
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.load(path, CPU)


def test_temporary_files_of_a_killed_writer_are_ignored_and_replaced(copy):
    path = copy / "run" / "checkpoint.pt"
    beside = path.with_name("checkpoint.pt.tmp")
    beside.write_bytes(path.read_bytes()[:1000])
    run = run_in(copy)
    assert run.step == 2
    list(run.records())
    assert not beside.exists()


def test_version_1_is_read_and_resumes(tmp_path):
    """The run under `tests/train/version_1` was written by polarlight 0.1.0 before it had seals."""
    fixture = ROOT / "tests" / "lab" / "train" / "version_1"
    plan = replace(PLAN, width=8, heads=1, expansion=1.0)
    assert not durable.is_sealed(fixture / "checkpoint.pt")
    content = checkpoint.load(fixture / "checkpoint.pt", CPU)
    assert (content["version"], content["step"], content["skipped"]) == (checkpoint.VERSION, 4, {})
    head = content["model"]["lm_head.weight"].double()
    assert head.sum().item() == pytest.approx(-26.03381319611799, rel=1e-12)
    shutil.copytree(fixture, tmp_path / "run")
    run = run_in(tmp_path, "adamw", plan)
    assert run.step == 4
    assert [r["kind"] for r in run.records()][-1] == "finished"
    assert durable.is_sealed(run.folder / "checkpoint.pt")
    assert checkpoint.load(run.folder / "checkpoint.pt", CPU)["step"] == 6


def test_every_older_version_has_a_migration_and_a_fixture():
    versions = set(range(1, checkpoint.VERSION))
    assert set(checkpoint.MIGRATIONS) == versions
    folders = {p.name for p in (ROOT / "tests" / "lab" / "train").glob("version_*")}
    assert folders == {f"version_{v}" for v in versions}


@pytest.mark.parametrize("version", [0, 99, "2", None])
def test_versions_from_elsewhere_are_named(copy, version):
    path = copy / "run" / "checkpoint.pt"
    content = checkpoint.load(path, CPU) | {"version": version}
    durable.replace_sealed(path, lambda file: torch.save(content, file))
    with pytest.raises(CheckpointError, match=f"version {version}, this polarlight reads 1 to 2"):
        checkpoint.load(path, CPU)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("how", ["zip", "pickle", "sealed"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, how, protocol):
    victim, path = tmp_path / "victim", tmp_path / "checkpoint.pt"
    content = {"format": checkpoint.FORMAT, "version": 1, "model": Hostile(victim)}
    if how == "zip":
        torch.save(content, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        durable.replace_sealed(path, lambda file: torch.save(content, file))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(path, CPU)
    assert not victim.exists()


def test_another_rule_in_the_checkpoint_is_named_beside_the_runs_own(copy):
    """As after an update of polarlight that changed a default: the settings are the same."""
    path = copy / "run" / "checkpoint.pt"
    content = checkpoint.load(path, CPU)
    group = next(g for g in content["optimizer"]["param_groups"] if '"aurora"' in g["rule"])
    group["rule"] = group["rule"].replace('"aurora"', '"aurora of old"')
    checkpoint.save(path, content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is of another run") as error:
        run_in(copy)
    assert "saved aurora of old, optimizer aurora" in str(error.value)


@pytest.mark.parametrize("key", ["model", "optimizer", "step", "skipped"])
def test_a_checkpoint_that_lacks_something_is_named(copy, key):
    path = copy / "run" / "checkpoint.pt"
    content = checkpoint.load(path, CPU)
    del content[key]
    checkpoint.save(path, content)
    with pytest.raises(CheckpointError, match=f"another run or polarlight: '{key}'"):
        run_in(copy)


@pytest.mark.parametrize(
    "text", ["", '{"run": ', "[]", "\0\0\0", "[" * 100_000], ids=lambda text: repr(text[:8])
)
def test_damaged_settings_are_named(copy, text):
    (copy / "run" / "settings.json").write_text(text)
    with pytest.raises(SettingsError, match=r"settings\.json (is damaged|holds no settings)"):
        run_in(copy)


@pytest.mark.parametrize(
    "tail", [b'{"kind": "st', b"\0" * 50, b"\0\n\0\0\n", b'"text"\n', b"\xff\n"]
)
def test_rubbish_at_the_end_of_the_records_is_dropped(copy, tail):
    path = copy / "run" / "metrics.jsonl"
    records = history.read_records(path)
    with path.open("ab") as file:
        file.write(tail)
    assert history.read_records(path) == records
    run_in(copy)
    assert history.read_records(path) == records


def test_rubbish_between_records_is_an_error_that_names_the_line(copy):
    path = copy / "run" / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b'{"kind": 3}', *lines[1:]]))
    with pytest.raises(HistoryError, match=r"metrics\.jsonl, line 2 is no record"):
        run_in(copy)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    durable.replace_text(path, "old")

    def half(file):
        file.write(b"ne")
        raise OSError("disk full")

    for replace_ in (durable.replace, durable.replace_sealed):
        with pytest.raises(OSError, match="disk full"):
            replace_(path, half)
        assert path.read_text() == "old"
    assert not durable.is_sealed(path)


def test_the_seal_has_the_documented_form(tmp_path):
    import hashlib

    path = tmp_path / "file"
    durable.replace_sealed(path, lambda file: (file.write(b"con"), file.write(b"tent")))
    expected = b"content" + (7).to_bytes(8, "little") + hashlib.sha256(b"content").digest()
    assert path.read_bytes() == expected + b"polarlight seal1"
    assert durable.is_sealed(path)
