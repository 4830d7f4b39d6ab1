"""Run of the benchmark: sequential data, summed losses, checkpoints; resumable.

The records are those of `train.history`: `step`, `validation` and `finished`.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polarlight.execution.heap import raise_mmap_threshold
from polarlight.lab.train import checkpoint, history
from polarlight.lab.train.data import Corpus, validation_batches
from polarlight.lab.train.folder import claim
from polarlight.lab.train.lock import FolderLock
from polarlight.lab.train.track3.model import Model
from polarlight.lab.train.track3.settings import Track3
from polarlight.leaderboard import Assembled, Result
from polarlight.rule import Rule

Record = dict[str, Any]


def assembled(model: Model, setting: Track3, rule: Rule | Result) -> Assembled:
    """Return a rule with the setting's numbers, or a result with its own, on the model."""
    if isinstance(rule, Result):
        return rule.assemble(model)
    return Assembled(replace(setting.recipe, rule=rule), model)


class Track3Run:
    """Run of the benchmark in its folder; iterate over `records()` to train.

    Args:
        setting: The benchmark's numbers, or reduced ones.
        rule: For the blocks' matrices, with the setting's numbers; or a result of the leaderboard,
            with its own.
        corpus: Its tokens are read in order and never shuffled.
        folder: Where the run lives; what is there is resumed.
        device: Where it trains; a GPU gets bfloat16 activations and a compiled model, as there.

    Raises:
        FolderInUseError: If another process trains in the folder.
        SettingsError: If the folder holds a run with other settings.
        DataError: If there are not enough tokens for a sequence.
    """

    def __init__(
        self,
        setting: Track3,
        rule: Rule | Result,
        corpus: Corpus,
        folder: Path,
        device: torch.device,
    ) -> None:
        corpus.require(setting.context)
        self.setting, self.corpus, self.folder, self.device = setting, corpus, folder, device
        gpu = device.type == "cuda"
        if device.type == "cpu":
            raise_mmap_threshold()
        dtype = torch.bfloat16 if gpu else torch.float32
        self.model = Model(setting, corpus.vocab_size, dtype).to(device)
        self.parts = assembled(self.model, setting, rule)
        self.optimizer = self.parts.optimizer
        self._loss = torch.compile(self.model, dynamic=False) if gpu else self.model
        self.step = 0
        self._settings = {
            "track3": asdict(setting),
            "rule": rule.label if isinstance(rule, Result) else repr(rule),
            "data": corpus.fingerprint,
        }
        self._lock: FolderLock | None = claim(folder, self._settings)
        self._resume()

    @property
    def metrics(self) -> Path:
        """Path of the file of records."""
        return self.folder / "metrics.jsonl"

    def records(self, tell: Callable[[int], None] = lambda step: None) -> Iterator[Record]:
        """Train to the end; yield each record once it is written; call `tell` per step.

        The folder is locked until the last record, or until the generator is closed.
        """
        self._lock = self._lock or claim(self.folder, self._settings)
        try:
            yield from self._trained(tell)
        finally:
            self._lock.release()
            self._lock = None

    def _trained(self, tell: Callable[[int], None]) -> Iterator[Record]:
        if self.step == 0:
            yield self._write(self._validate())
        while self.step < self.setting.steps:
            loss = self._advance()
            tell(self.step)
            if self.setting.validates(self.step):
                yield self._write({"kind": "step", "step": self.step, "loss": float(loss)})
                yield self._write(self._validate())
                self._save()
        if not self.finished:
            yield self._write({"kind": "finished", "step": self.step})

    @property
    def finished(self) -> bool:
        """True if the run has reached its end."""
        return any(r["kind"] == "finished" for r in history.read_records(self.metrics))

    def batch(self, step: int, micro_step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets [micro_batch, context], in order, cyclically."""
        size, context = self.setting.micro_batch * self.setting.context, self.setting.context
        windows = (len(self.corpus.train) - 1) // size
        if windows:
            start = (step * self.setting.accumulate + micro_step) % windows * size
            tokens = self.corpus.train.read(start, size + 1)
            return tokens[:-1].view(-1, context), tokens[1:].view(-1, context)
        raise ValueError(
            f"{self.corpus.train.source} has {len(self.corpus.train)} tokens, a micro batch needs "
            f"{size + 1}; use more data or a smaller micro_batch"
        )

    def _advance(self) -> Tensor:
        """Make one step; return its mean loss, on the device."""
        total = torch.zeros((), device=self.device)
        self.parts.ahead()
        for micro_step in range(self.setting.accumulate):
            tokens, targets = (x.to(self.device) for x in self.batch(self.step, micro_step))
            loss = self._loss(tokens, targets)
            (loss / self.setting.tokens_per_step if self.setting.mean_loss else loss).backward()
            total += loss.detach()
        self.parts.step()
        self.parts.zero_grad()
        self.step += 1
        return total / self.setting.tokens_per_step

    @torch.no_grad()
    def _validate(self) -> Record:
        total, count = torch.zeros((), device=self.device), 0
        batches = validation_batches(
            self.corpus.validation,
            batch=self.setting.micro_batch,
            context=self.setting.context,
            tokens_at_most=self.setting.validation_tokens,
        )
        with self.parts.evaluating():
            for batch in batches:
                tokens, targets = (x.to(self.device) for x in batch)
                total += self._loss(tokens, targets)
                count += targets.numel()
        return {"kind": "validation", "step": self.step, "loss": float(total) / count}

    def _write(self, record: Record) -> Record:
        history.append(self.metrics, record)
        return record

    def _save(self) -> None:
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "parts": self.parts.state_dict(),
        }
        checkpoint.save(self.folder / "checkpoint.pt", content)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if path.exists():
            content = checkpoint.load(path, self.device)
            self.model.load_state_dict(content["model"])
            self.parts.load_state_dict(content["parts"])
            self.step = content["step"]
        history.truncate_after(self.metrics, self.step if path.exists() else -1)
