"""Leave-one-out runs of a result of track 3: which of its parts help at this size.

Every arm is the result without one part, at its own rates; nothing is tuned again. A seed decides
the initial weights, and every arm has the same seeds, so that differences are taken per seed:

    d_s = loss without the part - loss with all parts,   d > 0: the part helps

Rules of the verdicts, written before the runs: paired t at 0.05 after Holm's correction over the
parts of the table; at least 6 seeds; "no matter" where the two one-sided tests against `MARGIN`
hold after Holm. A part without which a run ends without a finite loss is "needed". The others are
undecided, with the effect that 80 % power needs at the strictest of Holm's levels.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from statistics import fmean

import torch

from polarlight.lab.claims.store import RunRecord, RunStore
from polarlight.lab.statistics import LEVEL, BySeed, MeanDifference, holm, paired
from polarlight.lab.train.data import Corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.track3.loop import Track3Run
from polarlight.lab.train.track3.model import Model
from polarlight.lab.train.track3.settings import PRESETS, Track3, setting_of
from polarlight.leaderboard import Result, record
from polarlight.leaderboard.assembly import param_groups
from polarlight.optimizer.fingerprint import config_of

SEEDS = 6
"""Fewest seeds of a verdict."""

MARGIN = 0.01
"""Nats per token below which a difference is called no matter, in either direction."""

ALL = "all parts"
"""Label of the arm that nothing is left out of."""

SIZES = replace(
    PRESETS["small"],
    width=64,
    layers=1,
    head_dim=32,
    context=64,
    tokens_per_step=1024,
    micro_batch=16,
    steps=100,
    validation_tokens=16_384,
    validate_every=100,
)
"""Sizes of a run that takes seconds on one core."""


class PartVerdict(StrEnum):
    """Verdict on a part."""

    HELPS = "helps"
    HURTS = "hurts"
    NEEDED = "needed: diverges without it"
    NO_MATTER = f"no matter (within {MARGIN:g})"
    UNDECIDED = "undecided"
    TOO_FEW = f"fewer than {SEEDS} seeds"


@dataclass(frozen=True, slots=True)
class PartRow:
    """One part of the result.

    Attributes:
        part: Its name.
        without: Mean loss without it; NaN where a run diverged.
        difference: Loss without it minus loss with all parts; None where a run diverged.
        p: Of paired t, after Holm over the table.
        detectable: Effect found with 80 % power at the strictest of Holm's levels.
        verdict: What follows.
    """

    part: str
    without: float
    difference: MeanDifference | None
    p: float
    detectable: float
    verdict: PartVerdict


def arms_of(number: int, steps: int) -> dict[str, Result]:
    """Return the result with all parts, then without each of them, for runs of some steps."""
    names = [part.name for part in record(number).parts]
    if not names:
        raise ValueError(f"result {number} has no parts to leave out; 46 has thirteen")
    less = {f"without {name}": record(number, steps=steps, without=(name,)) for name in names}
    return {ALL: record(number, steps=steps), **less}


def run_setting(found: Result, setting: Track3, vocab_size: int) -> str:
    """Return a hash of all that decides a run's numbers beside the data.

    Of the setting enter the entries that differ from their defaults.
    """
    model = Model(setting, vocab_size, torch.float32)
    numbers = [
        [group["kind"], group["lr"], group["weight_decay"], config_of(group["rule"])]
        for group in param_groups(found.recipe(), model)
    ]
    plain = asdict(Track3())
    entries = {k: x for k, x in asdict(setting).items() if x != plain[k]}
    content = [entries, found.label, numbers]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Ablation:
    """Runs of a result without each of its parts.

    Attributes:
        number: Of the result.
        sizes: Sizes of the runs; seeds, initial weights and schedule are set here.
        seeds: Runs per arm.
    """

    number: int
    sizes: Track3 = SIZES
    seeds: int = SEEDS

    @property
    def name(self) -> str:
        """Name of the file of runs."""
        return f"ablation-{self.number}"

    def tasks(self) -> Iterator[tuple[str, Result, Track3]]:
        """Yield arm, result and setting of every run, seed by seed."""
        arms = arms_of(self.number, self.sizes.steps)
        for seed in range(self.seeds):
            for label, found in arms.items():
                yield label, found, replace(setting_of(found, self.sizes), seed=seed)

    def missing(self, store: RunStore, corpus: Corpus) -> list[tuple[str, int]]:
        """Return arm and seed of the runs that are not recorded."""
        return [
            (label, setting.seed)
            for label, found, setting in self.tasks()
            if self._known(store, corpus, found, setting) is None
        ]

    def losses(
        self, store: RunStore, corpus: Corpus, train: Callable[[str, Result, Track3], RunRecord]
    ) -> Mapping[str, BySeed]:
        """Return the last loss of every run by arm and seed; call `train` for missing ones.

        Args:
            store: Where runs are looked up, and added.
            corpus: The data.
            train: Arm, result, setting -> record; see `trained`.
        """
        losses: dict[str, dict[int, float]] = {}
        for label, found, setting in self.tasks():
            known = self._known(store, corpus, found, setting)
            if known is None:
                known = train(label, found, setting)
                store.add(self.name, known)
            losses.setdefault(label, {})[setting.seed] = known.measures["loss"]
        return losses

    @staticmethod
    def _known(store: RunStore, corpus: Corpus, found: Result, setting: Track3) -> RunRecord | None:
        wanted = run_setting(found, setting, corpus.vocab_size)
        return store.get(wanted, corpus.fingerprint, ["loss"])


def trained(
    label: str, found: Result, setting: Track3, corpus: Corpus, folder: Path, device: torch.device
) -> RunRecord:
    """Train one run to its end in a folder and return its record."""
    start = time.process_time()
    run = Track3Run(setting, found, corpus, folder, device)
    losses = [r["loss"] for r in run.records() if r["kind"] == "validation"]
    recipe = found.recipe()
    return RunRecord(
        setting=run_setting(found, setting, corpus.vocab_size),
        arm=label,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        aux_lr=recipe.aux.vectors,
        seed=setting.seed,
        measures={"loss": losses[-1] if losses else math.nan},
        cpu_seconds=round(time.process_time() - start, 1),
        date=datetime.now(UTC).date().isoformat(),
        data=corpus.fingerprint,
        versions=versions(),
        hardware=hardware(device),
    )


def rows(losses: Mapping[str, BySeed]) -> list[PartRow]:
    """Return what the runs say of every part, in the order of the arms."""
    base = losses[ALL]
    without = {arm.removeprefix("without "): x for arm, x in losses.items() if arm != ALL}
    whole = {name: _finite(x, base) for name, x in without.items()}
    differences = {name: paired(x, base) for name, x in without.items() if whole[name]}
    ps = _corrected(differences, [d.p() for d in differences.values()])
    equal = _corrected(differences, [d.p_equivalent(MARGIN) for d in differences.values()])
    found = []
    for name, x in without.items():
        if not whole[name]:
            found.append(PartRow(name, math.nan, None, 1.0, math.inf, PartVerdict.NEEDED))
            continue
        d = differences[name]
        verdict = _verdict(d, ps[name], equal[name])
        detectable = d.detectable(LEVEL / len(differences))
        found.append(PartRow(name, fmean(x.values()), d, ps[name], detectable, verdict))
    return found


def _finite(x: BySeed, base: BySeed) -> bool:
    """Tell whether an arm has a loss for every seed; raise where all parts have none."""
    if not all(map(math.isfinite, base.values())):
        raise ValueError("the result with all parts ended without a finite loss; nothing follows")
    return all(map(math.isfinite, x.values()))


def _corrected(named: Mapping[str, MeanDifference], ps: Sequence[float]) -> dict[str, float]:
    return dict(zip(named, holm(ps), strict=True))


def _verdict(d: MeanDifference, p: float, equal: float) -> PartVerdict:
    if d.n < SEEDS:
        return PartVerdict.TOO_FEW
    if p < LEVEL:
        return PartVerdict.HELPS if d.estimate > 0 else PartVerdict.HURTS
    return PartVerdict.NO_MATTER if equal < LEVEL else PartVerdict.UNDECIDED


HEADER = (
    "| part left out | loss without it | difference | 95 % interval | p, Holm | sign-flip p "
    "| detectable | verdict: the part |",
    "|---|---|---|---|---|---|---|---|",
)


def table(found: Sequence[PartRow], losses: Mapping[str, BySeed]) -> list[str]:
    """Return the rows as lines of a Markdown table, most helpful part first."""
    base = losses[ALL]
    lines = [*HEADER, f"| none | {fmean(base.values()):.4f} | | | | | | |"]
    ordered = sorted(found, key=lambda r: -math.inf if r.difference is None else -_estimate(r))
    return [*lines, *map(_line, ordered)]


def _estimate(row: PartRow) -> float:
    return row.difference.estimate if row.difference is not None else math.inf


def _line(row: PartRow) -> str:
    d = row.difference
    if d is None:
        return f"| {row.part} | | | | | | | {row.verdict} |"
    low, high = d.interval()
    flips = "" if d.flips is None else f"{d.flips:.3f}"
    cells = [row.part, f"{row.without:.4f}", f"{d.estimate:+.4f}", f"{low:+.4f} to {high:+.4f}"]
    cells += [f"{row.p:.3g}", flips, f"{row.detectable:.4f}", str(row.verdict)]
    return "| " + " | ".join(cells) + " |"
