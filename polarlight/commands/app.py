"""The `polarlight` command, put together from its parts."""

import typer

import polarlight
from polarlight.commands import engines, sharding, training
from polarlight.commands.console import console

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def about() -> None:
    """Spectral optimizers for language models: train them side by side, see what each does.

    Start with `polarlight compare`: it needs no data and no GPU.
    """


app.command(epilog=training.KNOWN)(training.compare)
app.command()(training.explain)
app.command()(engines.plot_schedule)
app.command()(engines.accuracy)
app.command("check-sharding")(sharding.check)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(polarlight.__version__, highlight=False)
