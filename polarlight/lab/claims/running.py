"""Runs of a claim: learning rates first, then seeds; each run resumes where it stopped."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.diagnostics.sinks import JsonLines
from polarlight.lab.claims import measures
from polarlight.lab.claims.claim import SWEEP_SEED, Arm, Claim, Task, run_folder, shrunk, spec_for
from polarlight.lab.claims.registry import find
from polarlight.lab.train import history
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import Corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.loop import Run, device_of

CPU = "cpu.json"
FURTHER = 2
"""How often a sweep goes on beyond its edge."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Folder, devices and changes with which claims are run.

    Attributes:
        out: Folder of all runs and results.
        data: See `load_corpus`.
        jobs: Runs at a time, each in a process of one thread; 1 stays in this process.
        changes: Entries of the plan that differ from the claim's own.
        seeds: Runs per arm, instead of the claim's own number.
    """

    out: Path
    data: Path | None = None
    jobs: int = 1
    changes: tuple[tuple[str, Any], ...] = ()
    seeds: int | None = None

    def of(self, claim: Claim) -> Claim:
        """The claim in this setting."""
        return shrunk(claim, dict(self.changes), self.seeds)


def run_claim(
    claim: Claim, setting: Setting, tell: Callable[[str], None] = lambda words: None
) -> dict[str, Any]:
    """Train the missing runs and return the result, also written to `NAME.json`.

    Args:
        claim: The claim, as registered.
        setting: Where and how.
        tell: Called with a line for every run that is finished.
    """
    claim = setting.of(claim)
    lrs, sweeps = _rates(claim, setting, tell)
    tasks = [Task(claim.name, a, lrs[a], seed) for seed in range(claim.seeds) for a in claim.arms]
    folders = dict(_trained(claim, tasks, setting, tell))
    arms = {
        label: {
            "lr": lrs[label],
            "sweep": sweeps.get(label, {}),
            "samples": {
                name: [measures.measured(folders[t], name) for t in tasks if t.arm == label]
                for name in claim.measures(label)
            },
        }
        for label in claim.arms
    }
    result = _about(claim, setting) | {"arms": arms}
    path = setting.out / f"{claim.name}.json"
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _about(claim: Claim, setting: Setting) -> dict[str, Any]:
    """Return the circumstances of a result; `cpu_seconds` is that of all its runs."""
    folders = {path.parent for path in (setting.out / "runs").glob(f"*/{CPU}")}
    spent = sum(_seconds(f) for f in folders if claim.name in _users(f))
    return {
        "claim": claim.name,
        "seeds": claim.seeds,
        "steps": claim.plan.steps,
        "changes": dict(setting.changes),
        "cpu_seconds": round(spent, 1),
        "versions": versions(),
        "hardware": hardware(device_of(claim.plan.device)),
    }


def _rates(
    claim: Claim, setting: Setting, tell: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The best learning rate of every arm, and the losses of the sweeps.

    A sweep whose best is at its edge goes on beyond it, by a factor of two at a time.
    """
    own = {label: arm for label, arm in claim.arms.items() if label not in claim.lr_of}
    losses: dict[str, dict[float, float]] = {
        label: {} for label, arm in own.items() if len(arm.lrs) > 1
    }
    asked = [(label, lr) for label in losses for lr in own[label].lrs]
    for _ in range(1 + FURTHER):
        tasks = [Task(claim.name, label, lr, SWEEP_SEED) for label, lr in asked]
        for task, folder in _trained(claim, tasks, setting, tell):
            found = history.load(folder).final_loss
            losses[task.arm][task.lr] = math.inf if found is None or math.isnan(found) else found
        asked = [(label, lr) for label in losses for lr in beyond(losses[label])]
    chosen = {
        label: _best(losses[label]) if label in losses else arm.lrs[0] for label, arm in own.items()
    }
    chosen |= {label: chosen[other] for label, other in claim.lr_of.items()}
    told = {a: {f"{lr:g}": x for lr, x in sorted(found.items())} for a, found in losses.items()}
    return chosen, told


def _best(losses: Mapping[float, float]) -> float:
    return min(losses, key=losses.__getitem__)


def beyond(losses: Mapping[float, float]) -> tuple[float, ...]:
    """Return the next learning rates of a sweep whose best is at its end; else none."""
    best = _best(losses)
    if best == min(losses):
        return (best / 2,)
    return (best * 2,) if best == max(losses) else ()


def _trained(
    claim: Claim, tasks: Iterable[Task], setting: Setting, tell: Callable[[str], None]
) -> Iterator[tuple[Task, Path]]:
    """Every task's folder, once its run is finished."""
    for task, folder in _worked(claim, list(tasks), setting):
        tell(f"{claim.name}: {task.arm}, lr {task.lr:g}, seed {task.seed}")
        yield task, folder


def _worked(claim: Claim, tasks: list[Task], setting: Setting) -> Iterator[tuple[Task, Path]]:
    if setting.jobs == 1:
        for task in tasks:
            yield task, work(task, setting, claim)
        return
    with ProcessPoolExecutor(
        setting.jobs, get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        waiting = {pool.submit(work, task, setting): task for task in tasks}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()


def work(task: Task, setting: Setting, claim: Claim | None = None) -> Path:
    """Train one run to its end, or continue it; return its folder."""
    claim = claim or setting.of(find(task.claim))
    arm, plan = claim.arms[task.arm], claim.plan_of(task.arm)
    spec = spec_for(arm, task.lr, task.seed)
    folder = run_folder(setting.out, arm, plan, spec)
    start = time.process_time()
    run = Run(spec, plan, _corpus(setting.data), folder, arm.recipe)
    _note_user(folder, claim.name)
    trained = not run.ended
    if trained:
        _watch(run, arm)
        for _ in run.records():
            pass
    if arm.finish is not None and not (folder / measures.FINISHED).exists():
        if not trained:
            run.restore()
        text = json.dumps(dict(arm.finish(run)))
        (folder / measures.FINISHED).write_text(text, encoding="utf-8")
    _add_seconds(folder, time.process_time() - start)
    return folder


def _watch(run: Run, arm: Arm) -> None:
    """Add a run's probes; columns and activations as often as its own neurons."""
    every = run.plan.neurons_every
    activations = JsonLines(run.folder / measures.ACTIVATIONS)
    if not run.model.config.is_mixture:
        silent = ActivationMonitor(run.model, activations, every=every)
        silent.resume(run.step)
        run.optimizer.observe(silent)
    columns = NeuronMonitor(
        JsonLines(run.folder / measures.NEURONS),
        every=every,
        step=run.step,
        columns=True,
        spectra=0,
    )
    run.optimizer.observe(columns)
    if arm.prepare is not None:
        arm.prepare(run)


@cache
def _corpus(data: Path | None) -> Corpus:
    return load_corpus(data)


def _seconds(folder: Path) -> float:
    return float(_cpu(folder).get("seconds", 0.0))


def _users(folder: Path) -> list[str]:
    return list(_cpu(folder).get("claims", []))


def _cpu(folder: Path) -> Mapping[str, Any]:
    path = folder / CPU
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _note_user(folder: Path, claim: str) -> None:
    users = sorted({*_users(folder), claim})
    (folder / CPU).write_text(json.dumps({"seconds": _seconds(folder), "claims": users}))


def _add_seconds(folder: Path, seconds: float) -> None:
    content = {"seconds": _seconds(folder) + seconds, "claims": _users(folder)}
    (folder / CPU).write_text(json.dumps(content))
