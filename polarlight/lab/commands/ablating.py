"""Command `polarlight ablate`: a result of track 3 without each of its parts."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from polarlight.lab.claims.ablation import SEEDS, SIZES, Ablation, rows, table, trained
from polarlight.lab.claims.store import SHIPPED, RunRecord, RunStore
from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.loop import device_of
from polarlight.lab.train.track3.settings import Track3
from polarlight.leaderboard import Result


def ablate(
    number: Annotated[
        int, typer.Option("--record", help="Result of the leaderboard; see track3 --list.")
    ] = 46,
    seeds: Annotated[int, typer.Option(help="Runs per part.", min=1)] = SEEDS,
    steps: Annotated[int, typer.Option(help="Steps of a run.", min=1)] = SIZES.steps,
    width: Annotated[int, typer.Option(help="Width of the model.", min=1)] = SIZES.width,
    layers: Annotated[int, typer.Option(help="Blocks of the model.", min=1)] = SIZES.layers,
    data: Annotated[
        Path | None, typer.Option(help="As for compare. Default: the standard library's sources.")
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Folder in which finished runs are recorded. Default: OUT."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of unfinished runs.", callback=options.new_folder)
    ] = Path("runs/ablation"),
    device: Annotated[str, typer.Option(help="auto, or a torch device.")] = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Print the missing runs and stop.")] = False,
) -> None:
    """Train a result of track 3 without each of its parts and say which parts help at this size.

    Runs have reduced width, a scaled schedule, the result's own rates and common seeds. Finished
    runs are recorded one by one, and a recorded run is not trained again, those that polarlight
    ships included: the same command resumes. Verdicts: paired t after Holm's correction over the
    table, six seeds at least. They hold at this size alone.

    ```
    polarlight ablate --record 46 --plan
    polarlight ablate --record 46
    polarlight ablate --record 30 --width 128 --steps 400 --seeds 8
    ```
    """
    sizes = replace(
        SIZES, width=width, layers=layers, steps=steps, validate_every=steps, horizon=None
    )
    asked, corpus = Ablation(number, sizes, seeds), load_corpus(data)
    store = RunStore([SHIPPED, records or out])
    if plan:
        missing = asked.missing(store, corpus)
        say(f"{len(missing)} of {len(list(asked.tasks()))} runs are missing")
        return
    where = device_of(device)

    def train(label: str, found: Result, setting: Track3) -> RunRecord:
        folder = out / asked.name / label.replace(" ", "-") / f"seed{setting.seed}"
        made = trained(label, found, setting, corpus, folder, where)
        say(f"{label}, seed {setting.seed}: {made.measures['loss']:.4f}")
        return made

    losses = asked.losses(store, corpus, train)
    for line in table(rows(losses), losses):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    say(f"losses in {corpus.unit}; width {width}, layers {layers}, steps {steps}, seeds {seeds}")
