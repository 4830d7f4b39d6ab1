"""The command line: strings become objects here and nowhere else."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import polarlight
from polarlight.train import options
from polarlight.train.compare import SWEEPABLE, Comparison, first_interrupt, specs
from polarlight.train.corpus import load_corpus
from polarlight.train.display import Display
from polarlight.train.model import GPT
from polarlight.train.recipes import RECIPES, build, spec_of
from polarlight.train.report import write_report
from polarlight.train.settings import PRESETS, Plan

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()

_KNOWN = "\n\n".join(f"[bold]{name}[/]: {recipe.about}" for name, recipe in RECIPES.items())
_NAMES = ", ".join(asdict(Plan()))

Preset = Annotated[str, typer.Option(help=f"Sizes to start from: {', '.join(PRESETS)}.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help=f"Change the preset. Names: {_NAMES}."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Text file, folder of text, or token shards (.bin, llm.c's format). Default: the "
        "sources of the running Python's standard library, as bytes.",
    ),
]
VocabSize = Annotated[int | None, typer.Option(help="Vocabulary of token shards.")]
Seeds = Annotated[int, typer.Option(help="Runs per optimizer, with seeds 0, 1, ...")]


@app.callback()
def about() -> None:
    """Spectral optimizers for language models: train them side by side, see what each does.

    Start with [bold]polarlight compare[/]: it needs no data and no GPU.
    """


@app.command(epilog=f"Optimizers:\n\n{_KNOWN}")
def compare(
    optimizers: Annotated[
        str, typer.Option(help="Names, separated by commas; the list is below.")
    ] = "adamw,muon,normuon,aurora",
    seeds: Seeds = 1,
    preset: Preset = "quick",
    data: Data = None,
    vocab_size: VocabSize = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2", help=f"Train with each value. Names: {', '.join(SWEEPABLE)}."
        ),
    ] = None,
    settings: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder of results [runs/PRESET].")] = None,
    overwrite: Annotated[bool, typer.Option(help="Delete these runs and start again.")] = False,
) -> None:
    """Train one language model under several optimizers and report what each did to it.

    Every run has the same data order and, per seed, the same initial weights. Ctrl-C saves and
    says how to go on; the same command resumes, and skips what is finished.

    [bold]polarlight compare[/]                                   four optimizers, minutes on a
    laptop

    [bold]polarlight compare --optimizers muon,aurora --seeds 3[/]

    [bold]polarlight compare --optimizers aurora --sweep lr=0.01,0.02,0.04 --out runs/lr[/]

    [bold]polarlight compare --data text/ --set mlp=relu2 --set expansion=8[/]
    """
    with _plain_errors():
        plan = options.plan(preset, settings or [], {"steps": steps})
        runs = specs(options.optimizers(optimizers), seeds, options.sweep(sweep or []))
        corpus = load_corpus(data, vocab_size=vocab_size)
        corpus.require(plan.context)
        comparison = Comparison(plan, runs, corpus, out or Path("runs") / preset)
        console.print(f"{corpus.name}: {len(corpus.train):,} training tokens", highlight=False)
        console.print(f"sha256 {corpus.fingerprint}", highlight=False)
        if overwrite:
            comparison.clear()
        _train(comparison)


def _train(comparison: Comparison) -> None:
    """Trains, writes the report whatever happens, and says how to go on."""
    command = shlex.join(["polarlight", *sys.argv[1:]])
    interrupted = False
    try:
        with first_interrupt() as stop, Display(comparison.specs, comparison.plan, console) as view:
            comparison.train(view, stop)
            interrupted = stop()
    finally:
        histories = comparison.histories()
        if histories:
            page = write_report(histories, comparison.about(command), comparison.out / "report")
            console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if interrupted:
        console.print(f"stopped and saved; go on with: {command}", highlight=False, soft_wrap=True)
        raise typer.Exit(130)


@app.command()
def explain(
    optimizer: Annotated[str, typer.Option(help="Name of the optimizer.")] = "aurora",
    preset: Preset = "quick",
    vocab_size: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 256,
    settings: Set = None,
) -> None:
    """Print which rule every parameter of the model would get, and why; nothing is trained."""
    with _plain_errors():
        plan = options.plan(preset, settings or [], {})
        model = GPT(plan.model(vocab_size))
        table = polarlight.explain(build(model, spec_of(optimizer, seed=0)))
        console.print(table, highlight=False, markup=False, soft_wrap=True)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(polarlight.__version__, highlight=False)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake is one line on stderr and exit status 2, not a traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
