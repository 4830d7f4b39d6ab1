"""Starved neurons pruned, given an equal share of the update once, or left."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarlight.lab.claims import neurons
from polarlight.lab.claims.arms import FINE_MUON, at
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import Within, least, lower
from polarlight.lab.train.loop import Run
from polarlight.lab.train.model import SwiGLU
from polarlight.optimizer import Observation

AFTER = 300
"""Steps between the intervention and the loss."""

_FOUND = "intervention.json"

Act = Callable[[Run, SwiGLU, Tensor], None]


@dataclass(slots=True)
class Intervention:
    """Probe that acts on starved neurons once, at the end of one step."""

    run: Run
    act: Act

    def begin(self) -> bool:
        """Tell whether this is the step; earlier and later ones are left alone."""
        return self.run.step + 1 == max(1, self.run.plan.steps - AFTER)

    def observe(self, observation: Observation) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Act, and write how many neurons were starved."""
        mlps = neurons.mlps_of(self.run)
        masks = [neurons.starved_neurons(self.run, mlp) for mlp in mlps]
        for mlp, mask in zip(mlps, masks, strict=True):
            self.act(self.run, mlp, mask)
        share = float(torch.cat(masks).float().mean())
        text = json.dumps({"starved at the intervention": share})
        (self.run.folder / _FOUND).write_text(text, encoding="utf-8")


def _prune(run: Run) -> None:
    run.optimizer.observe(Intervention(run, neurons.prune))


def _give_share(run: Run) -> None:
    run.optimizer.observe(Intervention(run, neurons.give_share))


def _leave(run: Run) -> None:
    run.optimizer.observe(Intervention(run, lambda *_: None))


def _found(run: Run) -> dict[str, float]:
    found: dict[str, float] = json.loads((run.folder / _FOUND).read_text(encoding="utf-8"))
    return found


_RATE = 0.04
_MUON = replace(
    at(FINE_MUON, width=64, heads=2, steps=500, validate_every=500), lrs=(_RATE,), finish=_found
)


def _arm(prepare: Callable[[Run], None]) -> Arm:
    return replace(_MUON, prepare=prepare)


_ARMS = {"pruned": _arm(_prune), "given a share": _arm(_give_share), "left": _arm(_leave)}

CLAIM = Claim(
    name="intervention",
    says="Neurons that starve under Muon at a high learning rate are lost: 300 steps after they "
    "were pruned the loss is the same, and an equal share of the update, given once, lowers it.",
    source="ours; that starved neurons never recover is from the Aurora blog (2026)",
    area=Area.STARVATION,
    dated="2026-11-30",
    arms=_ARMS,
    seeds=8,
    checks=(
        least("left", "starved at the intervention", 0.05),
        Within("losses with starved neurons pruned and left agree to 0.01",
               {"pruned": 1.0, "left": -1.0}, 0.01),
        lower("given a share", "left"),
    ),
    reported=dict.fromkeys(_ARMS, ("starved at the intervention", "starved neurons")),
    notes="Width 64, learning rate 0.04, four times Muon's best at this size and 250 steps. At "
    "step 200 of 500 the neurons whose gate and up rows both have less than 0.1 of an equal share "
    "of the momentum's leverage are pruned (weights and momenta zero), or their rows' update of "
    "that step is brought to the norm of an equal share in its own direction, or nothing is done.",
)  # fmt: skip
