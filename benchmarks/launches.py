"""Launches and bytes of an optimizer step on a GPU, counted without one.

    python -m benchmarks.launches                  # all optimizers on GPT-2 small, a minute
    python -m benchmarks.launches --only Muon,Aurora --models matrices
    python -m benchmarks.launches --capability 8.0

A launch is an operator that is neither a view nor an allocation, on fake CUDA tensors
(`benchmarks/fake_cuda.py`). An operator on a list of tensors counts once; torch cuts long lists, so
that a GPU starts a few more kernels. Bytes are those that operators other than products of matrices
read and write, over the number of parameters. A step is the second one, with weight decay 0.1.

Models: `matrices` has the 72 hidden matrices of GPT-2 small, `model` all its 196 tensors. `skip` is
the default guard, which leaves out parameters with a non-finite gradient; `propagate` has none.
Peers are counted where they are installed. Writes a JSON file and prints a table.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.fake_cuda import Operations, Record, fake_cuda
from benchmarks.parameter_sets import SETS
from polarlight import NonFinite
from polarlight.lab.train.environment import versions

OUT = Path(__file__).parent / "results" / "launches.json"
DECAY = 0.1


class Block(nn.Module):
    """Layer of GPT-2 with separate projections: 6 matrices, 16 tensors."""

    def __init__(self, width: int, device: str) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, device=device) for _ in range(2))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(width, width, device=device))
        self.up_proj = nn.Linear(width, 4 * width, device=device)
        self.down_proj = nn.Linear(4 * width, width, device=device)


class GPT2(nn.Module):
    """Parameters of GPT-2, small by default: 196 tensors, of which 72 are hidden matrices."""

    def __init__(
        self,
        layers: int = 12,
        width: int = 768,
        *,
        vocabulary: int = 50257,
        context: int = 1024,
        device: str = "cuda",
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width, device=device)
        self.wpe = nn.Embedding(context, width, device=device)
        self.blocks = nn.ModuleList(Block(width, device) for _ in range(layers))
        self.norm = nn.LayerNorm(width, device=device)


def hidden_matrices() -> list[nn.Parameter]:
    """The hidden matrices of GPT-2 small."""
    return [nn.Parameter(torch.empty(shape, device="cuda")) for shape in SETS["gpt2-small"]]


class Together:
    """Several optimizers, one for each part of a model, stepped in turn."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def torch_muon(params: nn.Module | list[nn.Parameter]) -> Together:
    """`torch.optim.Muon`, and fused AdamW beside it for what is no hidden matrix."""
    if not isinstance(params, nn.Module):
        return Together(torch.optim.Muon(params, lr=0.02, weight_decay=DECAY))
    matrices = [p for p in params.blocks.parameters() if p.ndim == 2]
    others = [p for p in params.parameters() if all(p is not M for M in matrices)]
    adamw = torch.optim.AdamW(others, lr=1e-3, weight_decay=DECAY, fused=True)
    return Together(torch.optim.Muon(matrices, lr=0.02, weight_decay=DECAY), adamw)


def peer(module: str, name: str, **options: Any) -> Callable[[Any], Any]:
    """Return a maker of another library's optimizer."""

    def make(params: Any) -> Any:
        made = getattr(importlib.import_module(module), name)
        given = list(params.parameters()) if isinstance(params, nn.Module) else params
        groups = [{"params": given, **options}] if options else given
        return made(groups, lr=0.02, weight_decay=DECAY)

    return make


def ours(name: str, **options: Any) -> Callable[[Any], Any]:
    """Return a maker of one of polarlight's optimizers."""
    cls = getattr(pl, name)
    return lambda params: cls(params, lr=0.02, weight_decay=DECAY, **options)


def riemannian(params: Any) -> Any:
    rule = pl.rules.aurora(pl.rules.RiemannianPolar())
    return pl.SpectralOptimizer(params, lr=0.02, weight_decay=DECAY, rule=rule)


@dataclass(frozen=True)
class Entry:
    """An optimizer of the table.

    Attributes:
        make: Makes it for a module or a list of matrices.
        guarded: Whether it has a guard against non-finite gradients.
        steps: Steps that are counted; the fewest and the most launches of them are shown.
        models: Names of the models it is counted on.
    """

    make: Callable[[Any], Any]
    guarded: bool = True
    steps: int = 1
    models: tuple[str, ...] = ("matrices", "model")


OPTIMIZERS = {
    "torch.optim.Muon": Entry(torch_muon, guarded=False),
    "Muon": Entry(ours("Muon")),
    "NorMuon": Entry(ours("NorMuon")),
    "Aurora": Entry(ours("Aurora")),
    "SOAP": Entry(ours("SOAP"), steps=10),
    "PolarAdamW": Entry(ours("PolarAdamW")),
    "Riemannian Aurora": Entry(riemannian, models=("matrices",)),
    "heavyball.Muon": Entry(peer("heavyball", "Muon"), guarded=False),
    "pytorch_optimizer.Muon": Entry(
        peer("pytorch_optimizer", "Muon", use_muon=True), guarded=False, models=("matrices",)
    ),
}
MODELS: dict[str, Callable[[], Any]] = {"matrices": hidden_matrices, "model": GPT2}


def parameters_of(model: Any) -> list[nn.Parameter]:
    return list(model.parameters()) if isinstance(model, nn.Module) else list(model)


def step_records(
    make: Callable[[Any], Any], model: Any, *, steps: int = 1, policy: NonFinite | None = None
) -> list[Record]:
    """Return the operators of each step after the first one.

    Args:
        make: Makes the optimizer.
        model: A module or a list of parameters; gets new gradients in each step.
        steps: Number of steps to record.
        policy: What our optimizers do about non-finite gradients; None for others.
    """
    optimizer, records = make(model), []
    if policy is not None:
        optimizer.nonfinite = policy
    for _ in range(steps + 1):
        for p in parameters_of(model):
            p.grad = torch.empty_like(p)
        with Operations() as operations:
            optimizer.step()
        records.append(Record(operations.operations))
    return records[1:]


def counts(entry: Entry, model: str, policy: NonFinite | None) -> dict[str, Any]:
    """Return launches and bytes per parameter of one optimizer on one model."""
    params = MODELS[model]()
    records = step_records(entry.make, params, steps=entry.steps, policy=policy)
    least, most = (f(records, key=lambda r: r.launches) for f in (min, max))
    size = sum(p.numel() for p in parameters_of(params))
    found = {
        "launches": least.launches,
        "bytes_per_parameter": round(least.bytes / size, 1),
        "by_operator": least.by_name(),
    }
    if entry.steps > 1:
        found |= {"most_launches": most.launches, "most_by_operator": most.by_name()}
    return found


def measured(
    labels: Iterable[str], models: Iterable[str], capability: tuple[int, int]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the counts by model, optimizer and policy; an absent peer is left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    wanted = [(m, x) for m in models for x in labels if m in OPTIMIZERS[x].models]
    for model, label in track(wanted, description="counting"):
        entry = OPTIMIZERS[label]
        policies = [NonFinite.SKIP, NonFinite.PROPAGATE] if entry.guarded else [None]
        for policy in policies:
            try:
                with fake_cuda(capability):
                    result = counts(entry, model, policy)
            except ModuleNotFoundError as missing:
                print(f"{label} is left out: {missing.name} is not installed", file=sys.stderr)
                continue
            by_policy = found.setdefault(model, {}).setdefault(label, {})
            by_policy["none" if policy is None else policy.value] = result
    return found


def table(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Return launches and bytes per parameter as a table."""
    shown = Table("model", "optimizer", "guard", "launches", "bytes / parameter")
    for model, by_label in found.items():
        for label, by_policy in by_label.items():
            for policy, result in by_policy.items():
                most = f" to {result['most_launches']}" if "most_launches" in result else ""
                row = f"{result['launches']}{most}", f"{result['bytes_per_parameter']:.0f}"
                shown.add_row(model, label, policy, *row)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="optimizers: " + ", ".join(OPTIMIZERS))
    parser.add_argument("--models", default=",".join(MODELS), help=", ".join(MODELS))
    parser.add_argument("--capability", default="9.0", help="compute capability, as 8.0")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file")
    options = parser.parse_args()
    labels = options.only.split(",") if options.only else list(OPTIMIZERS)
    for kind, given, known in (
        ("optimizer", labels, OPTIMIZERS),
        ("model", options.models.split(","), MODELS),
    ):
        if unknown := [x for x in given if x not in known]:
            parser.error(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    major, minor = map(int, options.capability.split("."))
    found = measured(labels, options.models.split(","), (major, minor))
    about = {
        "command": recorded_command("benchmarks.launches", sys.argv[1:]),
        "capability": options.capability,
        **versions(),
    }
    options.out.write_text(json.dumps({"about": about, "counts": found}, indent=2) + "\n")
    Console().print(table(found))


if __name__ == "__main__":
    main()
