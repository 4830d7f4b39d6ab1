"""The `polarlight` command, built from its subcommands."""

from typing import Annotated

import typer

import polarlight
from polarlight.lab.commands import (
    ablating,
    claims,
    converting,
    doctor,
    engines,
    exploring,
    exporting,
    inspection,
    moving,
    options,
    sharding,
    track3,
    training,
    tuning,
)
from polarlight.lab.commands.console import OneLineErrors, console

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        console.print(polarlight.__version__, highlight=False)
        raise typer.Exit()


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE",
            help="Module to import first; the rules that it registers become optimizers.",
        ),
    ] = None,
) -> None:
    """Spectral optimizers for language models: train, compare and inspect them.

    Start with `polarlight compare --preset demo --seeds 3`: it needs no data and no GPU.
    """
    for module in plugin or ():
        options.module_named(module)


app.command(epilog=training.KNOWN)(training.compare)
app.command()(training.explain)
app.command()(claims.reproduce)
app.command()(track3.track3)
app.command()(ablating.ablate)
app.command(name="inspect")(inspection.inspect_checkpoint)
app.command()(inspection.watched)
app.command()(engines.plot_schedule)
app.command()(engines.accuracy)
app.command("translate-lr", epilog=moving.CONVENTIONS_LIST)(moving.translate)
app.command("find-lr", epilog=training.KNOWN)(tuning.find)
app.command("transfer-lr")(tuning.transfer)
app.command(epilog=converting.SOURCES_LIST)(converting.convert)
app.command("check-sharding")(sharding.check)
app.command()(exporting.export)
app.command()(exploring.explore)


@app.command("doctor")
def examine(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print versions and devices, and for every engine whether it runs here."""
    raise typer.Exit(doctor.main(["--json"] if as_json else []))


@app.command("version")
def show_version() -> None:
    """Print the version."""
    print_version(True)
