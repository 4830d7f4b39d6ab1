"""Command `polarlight explore`: a page that shows a method's rounds on a matrix."""

import webbrowser
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from polarlight.lab.commands import options
from polarlight.lab.commands.console import say
from polarlight.lab.commands.registry import SCHEDULES
from polarlight.lab.explore import page
from polarlight.lab.train import checkpoint
from polarlight.lab.train.model import GPT
from polarlight.lab.train.recipes import build, spec_of
from polarlight.lab.train.settings import Plan
from polarlight.rule import MOMENTUM

_MOST = 24


def explore(
    out: Annotated[Path, typer.Option(help="The page to write.", callback=options.new_file)] = Path(
        "explore.html"
    ),
    run: Annotated[
        Path | None,
        typer.Option(help="A run's folder: its momenta can be chosen as the matrix."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write a page on which a matrix goes through two methods, round by round.

    It opens on Muon beside Aurora and a matrix whose rows starve under Muon, and shows row shares,
    singular values, alignment, and a schedule's output for any singular value.
    The page is one file with plain JavaScript and loads nothing.

    ```
    polarlight explore --open
    polarlight explore --run runs/quick/aurora/seed0
    ```
    """
    momenta = {} if run is None else _momenta(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(SCHEDULES, momenta), encoding="utf-8")
    say(f"page: {out.resolve()}")
    if show:
        webbrowser.open(out.resolve().as_uri())


def _momenta(run: Path) -> dict[str, Tensor]:
    """Return the momentum buffers of matrices in a run's checkpoint, by name."""
    if not (run / "settings.json").exists():
        raise ValueError(f"{run} is no run's folder, such as runs/quick/aurora/seed0")
    settings = options.json_in(run / "settings.json", "--run")
    content = checkpoint.load(run / "checkpoint.pt", torch.device("cpu"))
    vocabulary = content["model"]["model.embed_tokens.weight"].shape[0]
    with torch.device("meta"):
        model = GPT(Plan(**settings["plan"]).model(vocabulary))
    optimizer = build(model, spec_of(settings["run"]["optimizer"], seed=0))
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    states = content["optimizer"]["state"]
    found = {name: states.get(i, {}).get(MOMENTUM) for i, name in enumerate(names)}
    matrices = {name: M for name, M in found.items() if M is not None and M.ndim == 2}
    return dict(list(matrices.items())[:_MOST])
