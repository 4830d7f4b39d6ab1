"""Claims: text, arms that are trained, and checks that decide."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from polarlight.lab.claims.verdict import Check
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import AUX_LR, TrainingRecipe
from polarlight.lab.train.settings import Plan, Spec

SMALL = Plan(
    width=128,
    layers=2,
    heads=4,
    context=64,
    batch=16,
    steps=200,
    warmup=10,
    validate_every=200,
    validation_tokens=65_536,
    log_every=25,
    neurons_every=25,
    checkpoint_every=100,
    precision="fp32",
)
"""The setting of all claims, unless they change it: 0.6 million parameters, 200 thousand bytes."""

SEEDS = 4
SWEEP_SEED = 1000
LRS = (0.01, 0.02, 0.04)
"""Learning rates that are swept; recipes of AdamW's size bring their own."""


class Area(StrEnum):
    """Subject of a claim, for the summary of the page."""

    STARVATION = "Starvation of neurons"
    AURORA = "Aurora"
    ROWS = "Row normalization"
    POLAR = "The polar factor"
    SYMMETRY = "Rules by layer"


Finish = Callable[[Run], Mapping[str, float]]
"""Measures a trained run once it is finished; the numbers are kept beside its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a comparison.

    Attributes:
        recipe: How its optimizer is built.
        lrs: Learning rates to choose from, on a seed that is used for nothing else, and from those
            beyond if the best is at an edge; a single one is taken as it is.
        changes: Entries of the plan that are different here.
        prepare: Called with a run before it trains, to add probes.
        finish: Called with a finished run; its numbers are measures by their names.
    """

    recipe: TrainingRecipe
    lrs: tuple[float, ...] = LRS
    changes: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Run], None] | None = None
    finish: Finish | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim and how it is tried.

    Attributes:
        name: For the command line.
        says: The claim.
        source: Who says so, and where.
        arms: What is trained, by label.
        checks: Its parts; all of them have to be reproduced.
        area: Where it stands on the page.
        dated: Day on which thresholds and margins were written, before the runs they judge.
        effect: Published size of the effect, in words; empty where none is known.
        notes: What the reduced setting cannot tell, or leaves out.
        plan: The reduced setting.
        seeds: Runs per arm, with the chosen learning rate.
        lr_of: Arms that take the learning rate of another one.
        lr_factor: By arm of `lr_of`: factor on that rate, 1 unless it is here.
        reported: Measures that are told of an arm and decide nothing, beside those of the checks.
    """

    name: str
    says: str
    source: str
    arms: Mapping[str, Arm]
    checks: Sequence[Check]
    area: Area
    dated: str
    effect: str = ""
    notes: str = ""
    plan: Plan = SMALL
    seeds: int = SEEDS
    lr_of: Mapping[str, str] = field(default_factory=dict)
    lr_factor: Mapping[str, float] = field(default_factory=dict)
    reported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def plan_of(self, label: str) -> Plan:
        """The setting of an arm."""
        return replace(self.plan, **self.arms[label].changes)

    def measures(self, label: str | None = None) -> list[str]:
        """Return the names of the measures in use, in all arms or in one; loss and RMS always."""
        asked = [c.measure for c in self.checks if label is None or label in c.weights]
        for arm, told in self.reported.items():
            asked += told if label in (None, arm) else ()
        return list(dict.fromkeys([*asked, "loss", "update rms"]))

    def runs(self) -> int:
        """Return the number of runs, with sweeps that do not extend beyond their ends."""
        swept = [arm.lrs for label, arm in self.arms.items() if label not in self.lr_of]
        sweeps = sum(len(lrs) for lrs in swept if len(lrs) > 1)
        return sweeps + self.seeds * len(self.arms)


def shrunk(claim: Claim, changes: Mapping[str, Any], seeds: int | None = None) -> Claim:
    """The claim in another setting, for trying out the machinery or for a larger size."""
    return replace(claim, plan=replace(claim.plan, **changes), seeds=seeds or claim.seeds)


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a claim."""

    claim: str
    arm: str
    lr: float
    seed: int


def spec_for(arm: Arm, lr: float, seed: int) -> Spec:
    """The run's own numbers; the rule stands in it in full, so that another one is another run."""
    return Spec(
        label=arm.recipe.about,
        optimizer=repr(arm.recipe.rule()),
        seed=seed,
        lr=lr,
        aux_lr=AUX_LR,
        momentum=arm.recipe.momentum,
        weight_decay=0.0,
    )


def run_folder(out: Path, arm: Arm, plan: Plan, spec: Spec) -> Path:
    """Return the folder of a run; claims with equal arms share it.

    The hash is over the setting, the rule, and the names of what is done beside training.
    """
    extras = [getattr(f, "__qualname__", "") for f in (arm.prepare, arm.finish, arm.recipe.groups)]
    content = [asdict(plan), asdict(spec), extras]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    return out / "runs" / f"{spec.label.replace(' ', '_')}-{digest.hexdigest()[:10]}"
