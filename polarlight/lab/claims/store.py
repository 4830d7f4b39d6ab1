"""Finished runs as JSON lines, one file per claim, so that work goes on over days and machines.

    {"setting": "3f0c...", "arm": "muon", "lr": 0.02, "weight_decay": 0.0, "aux_lr": 0.01,
     "seed": 0, "measures": {"loss": 1.75, ...}, "cpu_seconds": 19.1, "date": "2026-11-25",
     "data": "6647...", "versions": {...}, "hardware": {...}}

`setting` is a hash over what decides a run's numbers beside the data: plan, rule, rates, seed and
what is done beside training. A run is not trained again where its setting and data are there with
all measures that are asked for.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from polarlight.lab.claims.claim import Arm
from polarlight.lab.train.model import GPT
from polarlight.lab.train.settings import Plan, Spec
from polarlight.optimizer.fingerprint import config_of

BYTES = 256
"""Vocabulary of the model that recipes are asked about."""

SHIPPED = Path(__file__).parent / "results"
"""Runs that polarlight ships."""

NO_INFLUENCE = ("log_every", "checkpoint_every", "device", "compile")
"""Entries of a plan that do not decide a run's numbers."""

NUMBERS = ("seed", "lr", "aux_lr", "momentum", "weight_decay")
"""Entries of a spec that do; its rule enters by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One finished run.

    Attributes:
        setting: See `run_setting`.
        arm: Label of the arm.
        lr: Learning rate of the hidden matrices.
        weight_decay: Their weight decay.
        aux_lr: AdamW's learning rate for the rest.
        seed: Seed of weights and data order.
        measures: By name. What is no number is null in the file, such as the loss of a run that
            diverged.
        cpu_seconds: Processor time of training and measuring.
        date: Day on which it finished.
        data: Fingerprint of the corpus.
        versions: Of python, torch and what else decides numbers.
        hardware: Machine, see `environment.hardware`.
        note: What else is to be known of it.
    """

    setting: str
    arm: str
    lr: float
    weight_decay: float
    aux_lr: float
    seed: int
    measures: Mapping[str, float] = field(hash=False)
    cpu_seconds: float
    date: str
    data: str
    versions: Mapping[str, str] = field(hash=False)
    hardware: Mapping[str, str] = field(hash=False)
    note: str = ""

    @property
    def diverged(self) -> bool:
        """Tell whether the run ended without a finite loss."""
        return not math.isfinite(self.measures["loss"])

    def line(self) -> str:
        """Return the record as one line of a file."""
        content = asdict(self)
        told = self.measures.items()
        content["measures"] = {k: x if math.isfinite(x) else None for k, x in told}
        if not self.note:
            del content["note"]
        return json.dumps(content) + "\n"


def run_setting(arm: Arm, plan: Plan) -> Callable[[Spec], str]:
    """Return the function from a run of an arm to the hash of all that decides its numbers.

    Data and machine do not enter. The rule enters as a checkpoint names it, with registered names
    and the fields that differ from their defaults, so that renaming a class leaves the hash alone;
    of the plan enter the entries that differ from their defaults.
    """
    extras: list[object] = [getattr(f, "__qualname__", "") for f in (arm.prepare, arm.finish)]
    extras.append("" if arm.recipe.groups is None else _routed(arm, plan))
    plain = asdict(Plan())
    entries = {k: x for k, x in asdict(plan).items() if k not in NO_INFLUENCE and x != plain[k]}
    about = [entries, config_of(arm.recipe.rule()), extras]
    beginning = hashlib.sha256(f"[{_text(about)}, ".encode())  # of a list: the long part once

    def setting(spec: Spec) -> str:
        whole = beginning.copy()
        numbers = {name: getattr(spec, name) for name in NUMBERS}
        whole.update(f"{_text(numbers)}]".encode())
        return whole.hexdigest()[:16]

    return setting


def _text(value: object) -> str:
    """Return a value as JSON that is the same on every run."""
    return json.dumps(value, sort_keys=True, default=str)


def _routed(arm: Arm, plan: Plan) -> list[object]:
    """Return what a recipe for whole models gives each role."""
    with torch.device("meta"):
        model = GPT(plan.model(BYTES))
    found = arm.recipe.groups_of(model, 1.0, 1.0)
    return [
        [str(g.get("role")), g.get("lr"), config_of(g.get("rule")), config_of(g.get("view"))]
        for g in found
    ]


class RunStore:
    """The runs in some folders; new ones are added to the last of them.

    Args:
        folders: Folders of `NAME.jsonl` files, in the order in which they are read; of two records
            of one run the later one counts, with the measures that only the earlier one has.

    Raises:
        ValueError: If a line is no record.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._found: dict[tuple[str, str], RunRecord] = {}
        for folder in self.folders:
            for path in sorted(folder.glob("*.jsonl")):
                for record in read_runs(path):
                    self._keep(record)

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self._found.values())

    def get(self, setting: str, data: str, measures: Iterable[str]) -> RunRecord | None:
        """Return the run of this setting on this data if it has all of the measures.

        A run that diverged has no measures beside its loss, and never will.
        """
        record = self._found.get((setting, data))
        if record is None:
            return None
        return record if record.diverged or set(measures) <= set(record.measures) else None

    def add(self, name: str, record: RunRecord) -> None:
        """Append a record to `NAME.jsonl` of the last folder."""
        folder = self.folders[-1]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(record.line())
        self._keep(record)

    def _keep(self, record: RunRecord) -> None:
        """Let a record take the place of an earlier one of the same run, and take its measures."""
        key = record.setting, record.data
        if key in self._found:
            measures = {**self._found[key].measures, **record.measures}
            record = replace(record, measures=measures)
        self._found[key] = record


def read_runs(path: Path) -> Iterator[RunRecord]:
    """Yield the records of a file; a last line without its end was cut off and is left out.

    Raises:
        ValueError: If another line is no record; the message has its number.
    """
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            content: dict[str, Any] = json.loads(line)
            told = content["measures"].items()
            content["measures"] = {k: math.nan if x is None else float(x) for k, x in told}
            yield RunRecord(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is no run; move the file away") from error
