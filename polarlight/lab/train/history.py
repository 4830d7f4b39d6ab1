"""History of a run: its records, written and read as one JSON object per line.

    {"kind": "step", "step", "loss", "lr", "tokens", "seconds", "time": {part: seconds}}
    {"kind": "validation", "step", "loss", "seconds"}
    {"kind": "routing", "step", "layers": {router's name: record of router_load.describe}}
    {"kind": "neurons", "step", "layers": {parameter name: record of NeuronMonitor}}
    {"kind": "activations", "step", "layers": {module name: record of ActivationMonitor}}
    {"kind": "skipped", "step", "parameters": {parameter name: steps it was left out of}}
    {"kind": "stopped", "step", "reason"}
    {"kind": "finished", "step"}

`step` counts finished optimizer steps, `tokens` and `seconds` add up from the start of the run
(training only: no validation, probes or checkpoints), `time` is spent since the step record before,
by part of the step: data, forward_backward, optimizer. Losses are cross entropies, without the
load-balancing loss of a mixture. A routing record tells how the tokens of the validation before it
were spread over the experts; runs of dense models have none, and mixtures have no activations. A
skipped record follows a step record before which gradients were not finite; its numbers count from
the step record before.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polarlight.lab.train import durable

Record = dict[str, Any]


class HistoryError(ValueError):
    """Error: the file of records is damaged; names the line."""


@dataclass(slots=True)
class History:
    """Records of one run, by kind and in order."""

    label: str
    seed: int
    settings: Record = field(default_factory=dict)
    steps: list[Record] = field(default_factory=list)
    validations: list[Record] = field(default_factory=list)
    routing: list[Record] = field(default_factory=list)
    neurons: list[Record] = field(default_factory=list)
    activations: list[Record] = field(default_factory=list)
    skipped: list[Record] = field(default_factory=list)
    stopped: str | None = None
    finished: bool = False

    @property
    def final_loss(self) -> float | None:
        """Last validation loss of a finished run, else None."""
        return self.validations[-1]["loss"] if self.finished and self.validations else None

    def add(self, record: Record) -> None:
        """Add one record to the list of its kind."""
        lists = {
            "step": self.steps,
            "validation": self.validations,
            "routing": self.routing,
            "neurons": self.neurons,
            "activations": self.activations,
            "skipped": self.skipped,
        }
        kind = record["kind"]
        if kind in lists:
            lists[kind].append(record)
        elif kind == "stopped":
            self.stopped = record["reason"]
        elif kind == "finished":
            self.finished = True


def load(folder: Path) -> History:
    """Return the history of the run in a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    run = settings["run"]
    history = History(label=run["label"], seed=run["seed"], settings=settings)
    for record in read_records(folder / "metrics.jsonl"):
        history.add(record)
    return history


def append(path: Path, record: Record) -> None:
    """Append one record to the file, as a whole line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=True) + "\n")


def read_records(path: Path) -> list[Record]:
    """Yield all whole records of the file, without an incomplete last line.

    Raises:
        HistoryError: If there is damage before a whole record.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    records = [_record(line) for line in lines if line]
    whole = records.index(None) if None in records else len(records)
    if any(record is not None for record in records[whole:]):
        raise HistoryError(
            f"{path}, line {whole + 1} is no record, and others come after it; "
            "move the file away, or choose another --out"
        )
    return [record for record in records if record is not None]


def _record(line: bytes) -> Record | None:
    """Parse the record in a line; None if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(record, dict) and isinstance(record.get("kind"), str)
    return record if known and isinstance(record.get("step"), int) else None


def truncate_after(path: Path, step: int) -> None:
    """Drop the records after `step`, which a resumed run writes again."""
    kept = [r for r in read_records(path) if r["step"] <= step and r["kind"] != "stopped"]
    durable.replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
