"""Momentum matrices of a real run: consecutive steps of every tall hidden matrix."""

import tempfile
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import spec_of
from polarlight.lab.train.settings import PRESETS, with_changes
from polarlight.optimizer.probe import Observation


class Keeper:
    """Keeps what the rule maps, for the gate and up projections, from a step on."""

    def __init__(self, first: int) -> None:
        self.first, self.step = first, 0
        self.kept: dict[str, list[Tensor]] = {}

    def begin(self) -> bool:
        self.step += 1
        return self.step >= self.first

    def observe(self, observation: Observation) -> None:
        if observation.group["role"] == "gate_up":
            self.kept.setdefault(observation.name, []).append(observation.momentum.float().clone())

    def end(self) -> None:
        pass


def momentum_sequences(optimizer: str, steps: int, last: int) -> dict[str, Tensor]:
    """The last `last` of `steps` momenta of each gate and up projection, [last, m, n] by name.

    The run is the preset `quick` with seed 0 on the embedded data.
    """
    plan = with_changes(
        PRESETS["quick"], {"steps": steps, "cooldown": 0.0, "validation_tokens": 2048}
    )
    keeper = Keeper(steps - last + 1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(spec_of(optimizer, seed=0), plan, load_corpus(None), Path(folder))
        run.optimizer.observe(keeper)
        for _ in track(run.records(), description=f"recording {optimizer}", total=None):
            pass
    return {name: torch.stack(momenta) for name, momenta in keeper.kept.items()}
