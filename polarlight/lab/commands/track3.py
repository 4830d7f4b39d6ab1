"""Command `polarlight track3`: the modded-nanoGPT optimization benchmark."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.loop import device_of
from polarlight.lab.train.recipes import recipe_of, recipes
from polarlight.lab.train.shards import GPT2_VOCAB_SIZE
from polarlight.lab.train.track3.loop import Track3Run
from polarlight.lab.train.track3.settings import (
    HOW_TO_GET_SHARDS,
    PRESETS,
    RULES,
    Track3,
    check,
)
from polarlight.lookup import look_up, unknown
from polarlight.rule import Rule


def track3(
    optimizer: Annotated[
        str,
        typer.Option(help=f"Rule of the hidden matrices: {', '.join(RULES)}, or any of compare."),
    ] = "muon",
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "small",
    data: Annotated[
        Path | None, typer.Option(help="FineWeb shards (.bin). Default: embedded data, small only.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the rule.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of the rule.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    device: Annotated[str, typer.Option(help="auto, or a torch device.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder. Default: runs/track3/...", callback=options.new_folder),
    ] = None,
) -> None:
    """Run modded-nanoGPT's optimization benchmark (track 3) with another rule for its matrices.

    Architecture, initial weights, summed loss, data order, schedules and AdamW are the benchmark's;
    `record-12` and `record-36` are full size and need its shards. Losses of Muon are compared with
    the published ones. The same command resumes.

    ```
    polarlight track3 --optimizer aurora-tall
    polarlight track3 --preset record-12 --data data/fineweb10B
    ```
    """
    setting = _setting(preset, seed, lr, weight_decay, steps)
    if data is None and preset != "small":
        raise ValueError(f"--preset {preset} needs --data; {HOW_TO_GET_SHARDS}")
    if preset != "small":
        options.require_gpu(preset, device, small="small", anyway="--device cpu")
    where = device_of(device)
    corpus = load_corpus(data, vocab_size=GPT2_VOCAB_SIZE if preset != "small" else None)
    folder = out or Path("runs") / "track3" / preset / optimizer / f"seed{seed}"
    run = Track3Run(setting, _rule(optimizer), corpus, folder, where)
    _train(run, optimizer)


def _setting(
    preset: str, seed: int, lr: float | None, weight_decay: float | None, steps: int | None
) -> Track3:
    base = look_up(preset, PRESETS, "preset")
    given = {"lr": lr, "weight_decay": weight_decay, "steps": steps}
    numbers: dict[str, float | None] = {k: x for k, x in given.items() if x is not None}
    if steps is not None:
        numbers["horizon"] = None  # another length has a schedule of its own
    return replace(base, seed=seed, **numbers)  # type: ignore[arg-type]


def _rule(name: str) -> Rule:
    if name in RULES:
        return RULES[name]
    if name not in recipes():
        raise unknown(name, [*RULES, *recipes()], "unknown rule")
    recipe = recipe_of(name)
    if recipe.groups is not None:
        raise ValueError(f"{name} is a recipe for whole models; choose from {', '.join(RULES)}")
    return recipe.rule()


def _train(run: Track3Run, name: str) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=run.setting.steps, completed=run.step)
        for record in run.records(lambda step: progress.update(task, completed=step)):
            if record["kind"] == "validation":
                compared = check(run.setting, record["step"], record["loss"])
                note = f"  ({compared})" if compared and name == "muon" else ""
                progress.console.print(
                    f"step {record['step']}: validation {record['loss']:.4f}{note}", highlight=False
                )
    say(f"records: {run.metrics}")
