"""Commands `polarlight find-lr` and `polarlight transfer-lr`."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.commands.moving import shape_of
from polarlight.lab.commands.training import Data, Preset, Set, VocabSize, trained_plan
from polarlight.lab.statistics.family import ENOUGH
from polarlight.lab.train.compare import first_interrupt
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import Corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.loop import device_of
from polarlight.lab.train.lr_figure import SLACK, Searched, draw, predictions
from polarlight.lab.train.lr_search import LrSearch, SearchStoppedError, at_width
from polarlight.lab.train.recipes import recipe_of
from polarlight.lab.train.report.significance import with_seeds
from polarlight.lab.train.settings import Plan
from polarlight.lab.tuning import find_lr
from polarlight.migration import convention_of, operator_step, transfer_lr

SPREAD = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Where a search starts, in units of the recipe's own learning rate."""


def find(
    optimizers: Annotated[str, typer.Option(help="Names, by commas; see `compare`.")] = "aurora",
    rates: Annotated[
        str | None,
        typer.Option(help="First rates, by commas. Default: 1/4 to 4 times the recipe's rate."),
    ] = None,
    extend: Annotated[int, typer.Option(help="Most rates to add beyond an end.")] = 3,
    widths: Annotated[
        str | None,
        typer.Option(help="Search at each of these widths, by commas. Default: the preset's."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs per rate, with seeds 0, 1, ...")] = 1,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a run.")] = 100,
    aux_lr: Annotated[float | None, typer.Option(help="AdamW's rate for the rest.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the hidden matrices.")] = None,
    preset: Preset = "quick",
    model: Annotated[str | None, typer.Option(help="dense or moe; see `compare`.")] = None,
    data: Data = None,
    vocab_size: VocabSize = None,
    settings: Set = None,
    out: Annotated[
        Path, typer.Option(help="Folder of results.", callback=options.new_folder)
    ] = Path("runs/find-lr"),
) -> None:
    r"""Find the best learning rate of an optimizer by short runs, at one width or several.

    Each rate trains from the same start on the same data. The search extends while the best rate is
    at an end of the range; the optimum lies between rates, from a parabola in log lr. Stop with
    Ctrl-C; run the same command again to resume. With `--widths` the figure shows the optimum over
    width, and the prediction of equal operator norms (`transfer-lr`).

    ```
    polarlight find-lr
    polarlight find-lr --optimizers muon,aurora --seeds 2 --steps 200
    polarlight find-lr --optimizers muon-rms-to-rms,muon-rms --widths 64,128,256
    ```

    Short runs favour high rates and no weight decay: search with the longest runs you can afford,
    and take the lower end of the rates within 0.01 nats for a long run. In your own loop:
    `polarlight.lab.tuning.find_lr(train, rates)` takes any function from a rate to a loss.
    """
    kind = options.architecture(model)
    plan = trained_plan(preset, settings, {"steps": steps, "architecture": kind})
    names, wide = options.optimizers(optimizers), _widths(widths)
    grids = {name: _grid(name, rates) for name in names}
    corpus = load_corpus(data, vocab_size=vocab_size)
    corpus.require(plan.context)
    numbers = {"aux_lr": aux_lr, "weight_decay": weight_decay}
    searches = [
        LrSearch(
            optimizer=name,
            plan=_short(one),
            corpus=corpus,
            out=out,
            seeds=seeds,
            numbers={key: value for key, value in numbers.items() if value is not None},
            base_width=wide[0] if wide else None,
        )
        for name in names
        for one in ([at_width(plan, width) for width in wide] or [plan])
    ]
    say(f"{corpus.name}: {len(corpus.train):,} training tokens; {len(searches)} searches")
    _report(_searched(searches, grids, extend), out, corpus, plan.device)


class _Follower:
    """Progress bar of one search: results as lines, steps as progress."""

    def __init__(self, bar: Progress, search: LrSearch) -> None:
        self._bar, self._title = bar, f"{search.optimizer}, width {search.plan.width}"
        self._run = search.plan.steps
        self._runs = search.seeds
        self._done, self._last = 0, 0
        self._task = bar.add_task(self._title, total=None)

    def result(self, lr: float, loss: float, done: int, planned: int) -> None:
        """Print the loss of a finished rate."""
        say(f"{self._title}: lr {lr:.4g}, loss {loss:.4f} ({done} of {planned})")
        self._done, self._last = done * self._runs * self._run, 0
        total = planned * self._runs * self._run
        self._bar.update(self._task, completed=self._done, total=total)

    def record(self, record: Mapping[str, Any]) -> None:
        """Advance the bar by a record of a run."""
        step = int(record["step"])
        if step < self._last:  # the next seed
            self._done += self._run
        self._last = step
        self._bar.update(self._task, completed=self._done + step)


def _searched(
    searches: Sequence[LrSearch], grids: Mapping[str, list[float]], extend: int
) -> list[Searched]:
    """Run all searches in order; exit with status 130 if the user stops them."""
    found = []
    try:
        with first_interrupt() as stop, _bar() as bar:
            for search in searches:
                follower = _Follower(bar, search)
                sweep = find_lr(
                    replace(search, stop=stop, watch=follower.record),
                    grids[search.optimizer],
                    extend=extend,
                    follow=follower.result,
                )
                found.append(
                    Searched(
                        search.optimizer, search.plan.width, sweep, search.step(), search.losses
                    )
                )
    except SearchStoppedError:
        say(f"stopped and saved; go on with: {_command()}")
        raise typer.Exit(130) from None
    return found


def _report(found: Sequence[Searched], out: Path, corpus: Corpus, device: str) -> None:
    """Write the table, the picture and the numbers."""
    out.mkdir(parents=True, exist_ok=True)
    canvas: Any = FigureCanvasAgg(draw(found, corpus.unit))
    canvas.figure.set_dpi(110)
    canvas.print_png(out / "find-lr.png", metadata={"Software": None})
    about = {
        "command": _command(),
        "data": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "versions": versions(),
        "hardware": hardware(device_of(device)),
        "found": [one.record() for one in found],
    }
    (out / "find-lr.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for one in found:
        say(_in_words(one, corpus.unit))
    console.print(_table(found))
    say(f"picture and numbers: {out / 'find-lr.png'}, {out / 'find-lr.json'}")


def _in_words(one: Searched, unit: str) -> str:
    """Return the best rate, and the rates that the seeds cannot tell from it."""
    sweep, seeds = one.sweep, max(map(len, one.losses.values()), default=0)
    best = f"{one.optimizer}, width {one.width}: lr {sweep.rates[sweep.best]:.4g} ended lowest"
    if one.alike is None:
        again = with_seeds(_command(), ENOUGH)
        return f"{best}; one seed cannot tell rates apart. For intervals, run: {again}"
    others = ", ".join(f"{lr:.4g}" for lr in one.alike if lr != sweep.rates[sweep.best])
    told = f"rates {others} cannot be told from it" if others else "every other rate is worse"
    how = f"95 %, n = {seeds}, paired, {len(one.losses) - 1} comparisons"
    return f"{best} ({min(sweep.losses):.4f} {unit}); {told} ({how})."


def _table(found: Sequence[Searched]) -> Table:
    table = Table(
        "optimizer", "width", "best lr", "equal steps", "within 0.01 nats", "loss", "at an end"
    )
    for name in dict.fromkeys(one.optimizer for one in found):
        some = [one for one in found if one.optimizer == name]
        for one, predicted in zip(some, predictions(some), strict=True):
            best, (low, high) = one.sweep.optimum, one.sweep.within(SLACK)
            table.add_row(
                *(name, str(one.width), f"{best.lr:.3g}"),
                f"{predicted:.3g}" if len(some) > 1 else "-",
                *(f"{low:.3g} to {high:.3g}", f"{best.loss:.4f}", best.edge or ""),
            )
    return table


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _command() -> str:
    return shlex.join(["polarlight", *sys.argv[1:]])


def _short(plan: Plan) -> Plan:
    """Return the plan with validation at start and end only, no probes, and a short warmup."""
    return replace(
        plan,
        validate_every=plan.steps,
        neurons_every=plan.steps,
        warmup=min(plan.warmup, plan.steps // 4),
    )


def _numbers(text: str, option: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers by commas, got {text!r}") from None
    if not all(number > 0 for number in found):
        raise ValueError(f"{option} takes numbers > 0, got {text!r}")
    return found


def _widths(text: str | None) -> list[int]:
    found = _numbers(text, "--widths") if text else []
    if any(width != int(width) for width in found) or len(set(found)) < len(found):
        raise ValueError(f"--widths takes whole numbers, each once, got {text!r}")
    return [int(width) for width in found]


def _grid(optimizer: str, rates: str | None) -> list[float]:
    """Return the first grid of rates of a search."""
    if rates is not None:
        return _numbers(rates, "--rates")
    return [recipe_of(optimizer).lr * factor for factor in SPREAD]


def transfer(
    lr: Annotated[float, typer.Option(help="The learning rate that was tuned.")],
    shape: Annotated[
        str,
        typer.Option("--shape", metavar="OUTxIN", help="A hidden weight of the model it is of."),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="OUTxIN", help="The same weight of the other model.")
    ],
    convention: Annotated[
        str, typer.Option(help="Convention of the rate; `translate-lr` lists them.")
    ] = "polarlight",
    weight_decay: Annotated[float, typer.Option(help="Weight decay beside it.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Transfer a learning rate and weight decay to a wider or narrower model.

    Keeps the RMS-to-RMS norm of a step, lr * scale(out, in) * sqrt(in / out), the change of the
    layer's output, and lr * weight decay.

    ```
    polarlight transfer-lr --lr 4e-3 --convention moonlight --shape 256x256 --to 1024x1024
    polarlight transfer-lr --lr 1e-3 --convention adamw --shape 3072x768 --to 8192x2048
    ```

    Source: Yang, Simon and Bernstein (2023), arXiv 2310.17813.
    """
    before, after = shape_of(shape, "--shape"), shape_of(to, "--to")
    there, decay = transfer_lr(
        lr, convention=convention, shape=before, to=after, weight_decay=weight_decay
    )
    step = operator_step(there, convention, after)
    if as_json:
        say(json.dumps({"lr": there, "weight_decay": decay, "operator_step": step}))
        return
    name = convention_of(convention).name
    say(f"{name}: lr {lr:.4g} on {shape} is lr {there:.4g} on {to}")
    if weight_decay:
        say(f"weight decay {weight_decay:.4g} is {decay:.4g}: lr * weight decay is kept")
    say(f"both move the layer's output by {step:.4g} per step and input, root mean square")
