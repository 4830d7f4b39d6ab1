"""Training run: steps, validations, probes, checkpoints; resumes where it stopped.

A run lives in a folder of its own: `settings.json`, `metrics.jsonl` (see `history.py`) and
`checkpoint.pt`. A checkpoint is written after all records of its step, so that dropping what came
after it and going on gives the numbers of a run that never stopped.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polarlight.execution.heap import raise_mmap_threshold
from polarlight.lab.train import checkpoint, durable, history
from polarlight.lab.train.checkpoint import CheckpointError
from polarlight.lab.train.clock import PartTimer
from polarlight.lab.train.data import Batches, Corpus, validation_batches
from polarlight.lab.train.folder import claim
from polarlight.lab.train.lock import FolderLock
from polarlight.lab.train.memory import require_batch, require_model
from polarlight.lab.train.model import GPT
from polarlight.lab.train.parallel import (
    ALONE,
    Parallel,
    Team,
    lay_out,
    shard_like,
    share_work,
    whole_state,
)
from polarlight.lab.train.recipes import TrainingRecipe, build
from polarlight.lab.train.router_load import describe, load_balancing_loss
from polarlight.lab.train.settings import Plan, Spec, as_record
from polarlight.lab.train.watching import Watch
from polarlight.linalg.precision import has_fast_bfloat16
from polarlight.scheduling import GroupSchedule

Record = dict[str, Any]


ENDINGS = ("finished", "stopped")
"""Kinds of records after which a run does not go on."""


def device_of(name: str) -> torch.device:
    """Return the device for `auto` or a torch device name.

    Raises:
        ValueError: If torch knows no such device, or it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = "choose auto, cpu or another device that `polarlight doctor` lists"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; {known}") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].split(". ")[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); {known}") from error
    if device.type == "meta":
        raise ValueError("device 'meta' holds no numbers; choose auto, cpu or cuda")
    return device


def require_fitting(plan: Plan, vocab_size: int, team: Team = ALONE) -> None:
    """Raise unless the device exists and model and batch can fit into its memory.

    Raises:
        ValueError: If not; the message has the memory that is needed at least.
    """
    device, config = device_of(plan.device), plan.model(vocab_size)
    require_model(config, torch.device("cpu"))  # where the initial weights are drawn
    if team.size == 1:  # weights, gradients, momenta
        require_model(config, device, copies=3)
        require_batch(config, plan.batch, device)


class Run:
    """Model, optimizer, data and folder of one run; iterate over `records()` to train.

    Args:
        spec: What this run has for itself.
        plan: What it shares with others.
        corpus: The data.
        folder: Where it lives; what is there is resumed.
        recipe: How its optimizer is built; None takes the recipe that the spec names.
        team: The processes that train it; each of them has a `Run`, and the first one writes.

    Raises:
        ValueError: If the device cannot be used, or its memory does not suffice.
        FolderInUseError: If another process trains in the folder.
        SettingsError: If the folder holds a run with other settings.
        CheckpointError: If its checkpoint cannot be read.
    """

    def __init__(
        self,
        spec: Spec,
        plan: Plan,
        corpus: Corpus,
        folder: Path,
        recipe: TrainingRecipe | None = None,
        team: Team = ALONE,
    ) -> None:
        require_fitting(plan, corpus.vocab_size, team)
        self.spec, self.plan, self.corpus, self.folder = spec, plan, corpus, folder
        self.team = team
        self.device = device_of(plan.device)
        if self.device.type == "cpu":
            raise_mmap_threshold()
        self.model = GPT(plan.model(corpus.vocab_size), seed=spec.seed).to(self.device)
        self._laid_out = lay_out(self.model, team.kind)
        self.optimizer = share_work(build(self.model, spec, recipe), team.kind)
        self._lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._schedule = self._schedule_from(0)
        self.step, self.seconds = 0, 0.0
        self._lr = self._lrs[0]  # of the last step, before the schedule's
        loss = self._laid_out.loss_and_load
        self._loss_and_load = torch.compile(loss) if plan.compile else loss
        self._clock = PartTimer(self.device)
        whole = team.kind is not Parallel.TP
        self._watch = Watch(self.model, plan.neurons_every, plan.steps, activations=whole)
        self._reported: Counter[str] = Counter()
        self._resumed: Counter[str] = Counter()
        self._lock: FolderLock | None = None
        self._claim()
        records = history.read_records(self.metrics) if team.leads else []
        self.ended = bool(team.told(any(r["kind"] in ENDINGS for r in records)))
        if self.ended:
            self.release()
        else:
            self.restore()

    def _claim(self) -> None:
        """Lock the folder for this run; if the first process cannot, all of them raise."""
        refusal: Exception | None = None
        try:
            if self.team.leads and self._lock is None:
                settings = as_record(self.plan, self.spec, self.corpus.fingerprint)
                self._lock = claim(self.folder, settings)
        except (ValueError, OSError) as error:
            refusal = error
        refusal = self.team.told(refusal)
        if refusal is not None:
            raise refusal

    def release(self) -> None:
        """Unlock the folder for another process; further training locks it again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def metrics(self) -> Path:
        """Path of the file of records."""
        return self.folder / "metrics.jsonl"

    def records(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Record]:
        """Train to the end or until `stop()`; yield each record once it is written.

        A run that is stopped is saved first. A non-finite loss ends the run with a `stopped`
        record. The folder is locked until the last record, or until the generator is closed.
        """
        self._claim()
        try:
            yield from self._trained(stop)
        finally:
            self.release()

    def _trained(self, stop: Callable[[], bool]) -> Iterator[Record]:
        self._watch.attach(self.optimizer)
        batches = Batches(
            self.corpus.train,
            batch=self.plan.batch,
            context=self.plan.context,
            seed=self.spec.seed,
        )
        if self.step == 0:
            yield from map(self._write, self._validate())
        while self.step < self.plan.steps:
            loss = self._advance(batches)
            if not math.isfinite(loss):
                reason = f"non-finite loss ({loss}) at step {self.step + 1}"
                yield self._write({"kind": "stopped", "step": self.step, "reason": reason})
                return
            yield from map(self._write, self._due(loss))
            stopped = self.team.any(stop(), self.device)
            if stopped or self.step % self.plan.checkpoint_every == 0:
                self.save()
            if stopped:
                return
        self.save()
        yield self._write({"kind": "finished", "step": self.step})

    def save(self) -> None:
        """Write the checkpoint of this step, after all earlier records are on the disk."""
        if self.team.leads:
            durable.flush(self.metrics)
        content = {
            "step": self.step,
            "seconds": self.seconds + self._clock.pending,
            "model": whole_state(self.model.state_dict()),
            "optimizer": whole_state(self.optimizer.state_dict()),
            "neurons": self._watch.state_dict(),
            "skipped": self._skipped_since(),
        }
        if self.team.leads:
            checkpoint.save(self.folder / "checkpoint.pt", content)

    def _advance(self, batches: Batches) -> float:
        """Make one step and return its loss; a non-finite loss changes no state."""
        loss = 0.0
        self._watch.prepare(self.step)
        for micro_step in range(self.plan.accumulate):
            self._laid_out.sync(micro_step + 1 == self.plan.accumulate)
            with self._clock("data"):
                tokens, targets = (
                    self.team.share(x).to(self.device, non_blocking=True)
                    for x in batches(self.step, micro_step)
                )
            with self._clock("forward_backward"):
                value, penalty = self._losses(tokens, targets)
                ((value + penalty) / self.plan.accumulate).backward()
                loss += value.item() / self.plan.accumulate
        loss = self.team.mean(loss, self.device)
        if math.isfinite(loss):
            self._update()
            self.step += 1
        return loss

    def _update(self) -> None:
        """Step the optimizer, then its schedule; the probe's time is not counted."""
        self._lr = self.optimizer.param_groups[0]["lr"]
        before = self._watch.seconds
        with self._clock("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._clock.add("optimizer", before - self._watch.seconds)
        self._schedule.step()

    def _schedule_from(self, step: int) -> GroupSchedule:
        """Return the schedule of the learning rates, which are set for this step."""
        for group, lr in zip(self.optimizer.param_groups, self._lrs, strict=True):
            group["initial_lr"] = lr
        return GroupSchedule(self.optimizer, self.plan.lr_factor, last_epoch=step - 1)

    def _due(self, loss: float) -> Iterator[Record]:
        """Yield the records due at this step."""
        last = self.step == self.plan.steps
        if self.step == 1 or self.step % self.plan.log_every == 0 or last:
            time = self._clock.take()
            self.seconds += sum(time.values())
            yield {
                "kind": "step",
                "step": self.step,
                "loss": loss,
                "lr": self._lr,
                "tokens": self.step * self.plan.tokens_per_step,
                "seconds": self.seconds,
                "time": time,
            }
            yield from self._newly_skipped()
        yield from self._watch.records(self.step)
        if self.step % self.plan.validate_every == 0 or last:
            yield from self._validate()

    def _newly_skipped(self) -> Iterator[Record]:
        """Return a record of parameters skipped since the last one, if any."""
        new = self._skipped_since()
        self._reported, self._resumed = Counter(self.optimizer.skipped()), Counter()
        if new:
            yield {"kind": "skipped", "step": self.step, "parameters": new}

    def _skipped_since(self) -> dict[str, int]:
        """Return steps in which parameters were skipped since the last step record."""
        return dict(Counter(self.optimizer.skipped()) - self._reported + self._resumed)

    @torch.no_grad()
    def _validate(self) -> list[Record]:
        """Return the validation record, and for a mixture the use of its experts."""
        batches = validation_batches(
            self.corpus.validation,
            batch=self.plan.batch,
            context=self.plan.context,
            tokens_at_most=self.plan.validation_tokens,
        )
        total, count = 0.0, 0
        counts: Tensor | None = None
        for batch in batches:
            tokens, targets = (x.to(self.device) for x in batch)
            with self._autocast():
                loss, load = self._loss_and_load(tokens, targets)
            total += loss.item() * targets.numel()
            count += targets.numel()
            if load is not None:
                counts = load.counts if counts is None else counts + load.counts
        found = {"kind": "validation", "step": self.step, "loss": total / count}
        return [found | {"seconds": self.seconds}, *self._routing(counts)]

    def _routing(self, counts: Tensor | None) -> Iterator[Record]:
        """Return the record of the use of each expert of each layer."""
        if counts is not None:
            named = zip(self.model.router_names(), map(describe, counts), strict=True)
            yield {"kind": "routing", "step": self.step, "layers": dict(named)}

    def _losses(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the cross entropy, and the auxiliary loss to differentiate with it."""
        with self._autocast():
            value, load = self._loss_and_load(tokens, targets)
        if load is None:
            return value, 0.0
        penalty = load_balancing_loss(load, self.plan.experts_per_token)
        return value, self.plan.load_balancing * penalty

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.plan.precision
        fast = has_fast_bfloat16(self.device.type, self.device.index)
        if wanted == "bf16" or (wanted == "auto" and fast):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _write(self, record: Record) -> Record:
        if self.team.leads:
            history.append(self.metrics, record)
        return record

    def restore(self) -> None:
        """Load the checkpoint, if there is one, and drop the records after it."""
        path = self.folder / "checkpoint.pt"
        if path.exists():
            self._take(checkpoint.load(path, self.device), path)
            self._schedule = self._schedule_from(self.step)
        if self.team.leads:
            history.truncate_after(self.metrics, self.step if path.exists() else -1)

    def _take(self, content: Record, path: Path) -> None:
        """Restore the run from a checkpoint; raise CheckpointError for another run's."""
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        try:
            self.model.load_state_dict(shard_like(content["model"], model))
            self.optimizer.load_state_dict(shard_like(content["optimizer"], optimizer))
            self.step, self.seconds = content["step"], content["seconds"]
            if "neurons" in content:
                self._watch.load_state_dict(content["neurons"])
            self._resumed = Counter(content["skipped"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is of another run or polarlight: {error}") from error
