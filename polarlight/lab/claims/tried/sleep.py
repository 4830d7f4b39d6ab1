"""Starved neurons: do they recover under another rule, and does the loss need them?"""

from dataclasses import dataclass, replace

import torch

from polarlight.lab.claims.arms import BALANCED, FINE_MUON
from polarlight.lab.claims.claim import Area, Claim
from polarlight.lab.claims.neurons import mlps_of, starved_neurons
from polarlight.lab.claims.verdict import least, lower, most
from polarlight.lab.train.loop import Run
from polarlight.lab.train.model import SwiGLU
from polarlight.optimizer import Observation
from polarlight.rules import aurora


@dataclass(slots=True)
class Switch:
    """Probe that gives the tall matrices Aurora's rule after half of the steps."""

    run: Run
    at: int

    def begin(self) -> bool:
        """Switch before the first step of the second half, also in a resumed run."""
        if self.run.step >= self.at:
            for group in self.run.optimizer.param_groups:
                if group["role"] == "gate_up":
                    group["rule"] = aurora(BALANCED)
        return False

    def observe(self, observation: Observation) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


def _switch(run: Run) -> None:
    run.optimizer.observe(Switch(run, run.plan.steps // 2))


@torch.no_grad()
def _pruned(run: Run) -> dict[str, float]:
    """Return the loss increase when neurons with both gate and up rows starved are removed.

    And what it gains when as many others are cut, drawn at random.
    """
    whole = run._validate()[0]["loss"]
    mlps = mlps_of(run)
    masks = [starved_neurons(run, mlp) for mlp in mlps]
    generator = torch.Generator().manual_seed(0)
    drawn = [mask[torch.randperm(len(mask), generator=generator)] for mask in masks]
    return {
        "pruned share": float(torch.cat(masks).float().mean()),
        "cost of pruning starved": _cost(run, mlps, masks) - whole,
        "cost of pruning others": _cost(run, mlps, drawn) - whole,
    }


def _cost(run: Run, mlps: list[SwiGLU], masks: list[torch.Tensor]) -> float:
    """Return the validation loss without these neurons; restore the weights."""
    kept = [mlp.down_proj.weight.clone() for mlp in mlps]
    for mlp, mask in zip(mlps, masks, strict=True):
        mlp.down_proj.weight[:, mask] = 0
    loss = float(run._validate()[0]["loss"])
    for mlp, weight in zip(mlps, kept, strict=True):
        mlp.down_proj.weight.copy_(weight)
    return loss


_STEPS = {"steps": 500, "validate_every": 500, "checkpoint_every": 500}

CLAIM = Claim(
    name="sleep",
    says="Starved neurons can recover: in a Muon run that switches to Aurora half-way they do, "
    "with a lower loss; and pruning the starved neurons of Muon costs nothing.",
    source="ours",
    area=Area.STARVATION,
    dated="2026-11-25",
    arms={
        "muon": replace(FINE_MUON, changes=_STEPS, finish=_pruned),
        "muon, then aurora": replace(FINE_MUON, changes=_STEPS, prepare=_switch),
    },
    lr_of={"muon, then aurora": "muon"},
    checks=(
        lower("muon, then aurora", "muon", measure="starved by the momentum"),
        lower("muon, then aurora", "muon"),
        least("muon", "pruned share", 0.01),
        most("muon", "cost of pruning starved", 0.005),
    ),
    reported={
        "muon": ("cost of pruning others", "never recovered by the momentum"),
        "muon, then aurora": ("never recovered by the momentum",),
    },
    notes="Pruned are neurons whose gate and up rows both have less than 0.1 of an equal share of "
    "the momentum's leverage, which is what counts as starved in the first check. A run of the "
    "switching arm that is interrupted starts again.",
)
