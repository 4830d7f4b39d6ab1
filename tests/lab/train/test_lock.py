"""A run's folder is trained in by one process; whoever is killed stops nobody."""

import os
import time
from dataclasses import replace

import pytest
import torch

from polarlight.lab.train.compare import Comparison
from polarlight.lab.train.lock import NAME, FolderInUseError, FolderLock
from polarlight.lab.train.loop import Run
from polarlight.lab.train.lr_search import LrSearch
from polarlight.lab.train.parallel import Team
from polarlight.lab.train.recipes import spec_of
from polarlight.lab.train.track3.loop import Track3Run
from polarlight.lab.train.track3.settings import PRESETS, RULES
from tests.distributed.processes import server
from tests.lab.train.tiny import PLAN, corpus


def hold_a_folder(folder, told):
    lock = FolderLock(folder)
    told.send("held")
    time.sleep(600)
    lock.release()


@pytest.fixture
def holding():
    """Starts processes that hold a folder; kills those that are left."""
    started = []

    def hold(folder):
        told, tells = server().Pipe(duplex=False)
        process = server().Process(target=hold_a_folder, args=(folder, tells))
        process.start()
        started.append(process)
        assert told.recv() == "held"
        return process

    yield hold
    for process in started:
        process.kill()
        process.join()


def make_run(tmp_path):
    return Run(spec_of("muon", seed=0), PLAN, corpus(tmp_path), tmp_path / "run")


def make_comparison(tmp_path):
    comparison = Comparison(PLAN, (spec_of("muon", seed=0),), corpus(tmp_path), tmp_path)
    comparison.train(None, lambda: False)


def make_search(tmp_path):
    plan, data = replace(PLAN, steps=1), corpus(tmp_path)
    LrSearch(optimizer="muon", plan=plan, corpus=data, out=tmp_path, seeds=1, numbers={})(0.02)


def make_track3(tmp_path):
    cpu = torch.device("cpu")
    setting = replace(PRESETS["small"], width=16, head_dim=8, layers=1, context=16, steps=1)
    setting = replace(setting, tokens_per_step=32, micro_batch=2)
    return Track3Run(setting, RULES["muon"], corpus(tmp_path), tmp_path / "run", cpu)


FOLDERS = {
    "run": make_run,
    "muon/seed0": make_comparison,
    "muon/lr=0.02/seed0": make_search,
    "run ": make_track3,
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_another_process_trains_in_is_refused(tmp_path, holding, folder):
    holder = holding(tmp_path / folder.strip())
    with pytest.raises(FolderInUseError, match=f"in use: process {holder.pid} trains there"):
        FOLDERS[folder](tmp_path)
    assert not (tmp_path / folder.strip() / "metrics.jsonl").exists()


def test_a_killed_process_leaves_no_lock(tmp_path, holding):
    holder = holding(tmp_path / "run")
    holder.kill()
    holder.join()
    assert (tmp_path / "run" / NAME).read_text() == f"{holder.pid}\n"
    assert list(make_run(tmp_path).records())[-1]["kind"] == "finished"
    assert not (tmp_path / "run" / NAME).exists()


def test_two_runs_of_one_process_do_not_share_a_folder(tmp_path):
    first = make_run(tmp_path)
    records = first.records()
    next(records)
    with pytest.raises(FolderInUseError, match=str(os.getpid())):
        make_run(tmp_path)
    records.close()
    assert list(make_run(tmp_path).records())[-1]["kind"] == "finished"


def test_a_run_that_is_trained_on_takes_its_folder_again(tmp_path, holding):
    run = make_run(tmp_path)
    records = run.records()
    next(records)
    records.close()
    holding(run.folder)
    with pytest.raises(FolderInUseError):
        next(run.records())


def test_a_lock_file_removed_while_waiting_is_not_used(tmp_path):
    first = FolderLock(tmp_path)
    (tmp_path / NAME).unlink()
    second = FolderLock(tmp_path)
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path)
    second.release()
    first.release()
    FolderLock(tmp_path).release()


def test_overwriting_a_run_that_is_trained_is_refused(tmp_path, holding):
    make_comparison_once = Comparison(PLAN, (spec_of("muon", seed=0),), corpus(tmp_path), tmp_path)
    folder = make_comparison_once.folder(make_comparison_once.specs[0])
    list(Run(make_comparison_once.specs[0], PLAN, corpus(tmp_path), folder).records())
    holding(folder)
    with pytest.raises(FolderInUseError):
        make_comparison_once.clear()
    assert (folder / "metrics.jsonl").exists()


class Told(Team):
    """A process of two whose first one says what it is told to."""

    def told(self, value):
        return FolderInUseError("runs/muon is in use") if value is None else value


def test_the_first_process_locks_and_its_error_reaches_the_others(tmp_path):
    """The second process of a team writes nothing, and raises what the first one says."""
    second = Told(rank=1, size=2)
    with pytest.raises(FolderInUseError, match="runs/muon is in use"):
        Run(spec_of("muon", seed=0), PLAN, corpus(tmp_path), tmp_path / "run", team=second)
    assert not (tmp_path / "run").exists()
