"""Effect of a momentum kept in bfloat16 or int8 on the polar factor, on gradients of a real run.

    python -m benchmarks.narrow_momentum

Trains the preset `quick` under Muon with its float32 momentum and feeds the gradients of the gate
and up projections to further momenta: float32, bfloat16 and int8 (several block sizes and powers),
rounded to nearest and stochastically, with several decay rates. Compared are what is mapped and its
polar factor, over the last steps, by relative Frobenius distance from the float32 momentum's:

    momentum    of the mapped matrix itself
    exact       of its polar factor by singular values
    auto        of its polar factor by AutoPolar, the default
    engine      of AutoPolar from the exact factor, both of the float32 momentum: the yardstick

Writes `--out`, JSON, and prints a table. Minutes.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import polarlight as pl
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import spec_of
from polarlight.lab.train.settings import PRESETS, with_changes
from polarlight.optimizer.probe import Observation
from polarlight.rule import MOMENTUM

AVERAGE = pl.stages.EMA(nesterov=True)
ROUNDED = {
    f"{name}, {'stochastic' if stochastic else 'nearest'}": make(AVERAGE, stochastic=stochastic)
    for name, make in {
        "bfloat16": pl.stages.InBfloat16,
        **{
            f"int8, block {block}, power {power}": partial(
                pl.stages.InInt8, block=block, power=power
            )
            for block, power in ((128, 1.0), (128, 1.5), (128, 2.0), (64, 1.5), (256, 1.5))
        },
    }.items()
    for stochastic in (False, True)
}
MOMENTA = {"float32": AVERAGE, **ROUNDED}
EXACT, AUTO = pl.linalg.ExactPolar(), pl.linalg.AutoPolar()


def distance(X: Tensor, Y: Tensor) -> float:
    return ((X.float() - Y.float()).norm() / Y.float().norm()).item()


class Followers:
    """Momenta that see the run's gradients, measured from a step on."""

    def __init__(self, betas: list[float], first: int) -> None:
        self.betas, self.first, self.step = betas, first, 0
        self.states: dict[tuple[str, float, str], dict[str, Tensor]] = {}
        self.found: dict[tuple[float, str, str], list[float]] = {}

    def begin(self) -> bool:
        self.step += 1
        return True

    def observe(self, observation: Observation) -> None:
        if observation.group["role"] == "gate_up":
            for beta in self.betas:
                mapped = {kind: self.mapped(observation, beta, kind) for kind in MOMENTA}
                if self.step >= self.first:
                    self.measure(beta, mapped)

    def mapped(self, observation: Observation, beta: float, kind: str) -> Tensor:
        momentum, p = MOMENTA[kind], observation.parameter
        key = observation.name, beta, kind
        if key not in self.states:
            self.states[key] = momentum.new_state(p.detach())
        state = self.states[key]
        return momentum.bind_state([state])([p.grad], [state[MOMENTUM]], beta)[0]

    def measure(self, beta: float, mapped: dict[str, Tensor]) -> None:
        wide = mapped["float32"]
        exact, auto = EXACT(wide), AUTO(wide)
        self.note(beta, "float32", "engine", distance(auto, exact))
        for kind in ROUNDED:
            M = mapped[kind]
            self.note(beta, kind, "momentum", distance(M, wide))
            self.note(beta, kind, "exact", distance(EXACT(M), exact))
            self.note(beta, kind, "auto", distance(AUTO(M), auto))

    def note(self, *key_and_value: object) -> None:
        *key, value = key_and_value
        self.found.setdefault(tuple(key), []).append(value)

    def end(self) -> None:
        pass


def measured(steps: int, last: int, betas: list[float]) -> dict[tuple[float, str, str], float]:
    """Means over matrices and steps by (beta, momentum, quantity)."""
    plan = with_changes(
        PRESETS["quick"], {"steps": steps, "cooldown": 0.0, "validation_tokens": 2048}
    )
    followers = Followers(betas, steps - last + 1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(spec_of("muon", seed=0), plan, load_corpus(None), Path(folder))
        run.optimizer.observe(followers)
        for _ in track(run.records(), description="training", total=None):
            pass
    return {key: mean(values) for key, values in followers.found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--last", type=int, default=5, help="steps that are measured")
    parser.add_argument("--betas", default="0.95,0.999", help="decay rates, by commas")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/narrow_momentum.json"))
    options = parser.parse_args()
    betas = [float(beta) for beta in options.betas.split(",")]
    found = measured(options.steps, options.last, betas)
    table = Table("beta", "rounding", "momentum", "exact", "auto", "engine")
    rows = []
    for beta in betas:
        engine = found[beta, "float32", "engine"]
        for kind in ROUNDED:
            errors = {name: found[beta, kind, name] for name in ("momentum", "exact", "auto")}
            rows.append({"beta": beta, "rounding": kind, **errors, "engine": engine})
            table.add_row(f"{beta:g}", kind, *(f"{x:.2e}" for x in (*errors.values(), engine)))
    Console().print(table)
    about = {**versions(), **hardware(torch.device("cpu"))}
    command = f"python -m benchmarks.narrow_momentum --steps {options.steps} --last {options.last}"
    result = {"command": command, "about": about, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
