"""Commands `polarlight accuracy` and `polarlight plot-schedule`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Column, Table

from polarlight.lab.accuracy.record import Budget, Entry, measured
from polarlight.lab.accuracy.spectra import THRESHOLDS
from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.commands.registry import SCHEDULES, choose, engines, unbounded
from polarlight.lab.report.engine_pictures import error_figure, schedule_figure
from polarlight.lab.train.environment import hardware, versions


def plot_schedule(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Schedules: {', '.join(SCHEDULES)}. Default: a few.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The picture, a .png or .svg file.", callback=options.new_file)
    ] = Path("schedules.png"),
    lowest: Annotated[float, typer.Option(help="Left end of the axis.")] = 1e-6,
) -> None:
    """Draw what schedules do to a singular value: the map from sigma / norm to the output.

    ```
    polarlight plot-schedule
    polarlight plot-schedule jordan deepseek-v4 polar-express --out maps.svg
    ```
    """
    if not 0 < lowest < 1:
        raise ValueError(f"--lowest must lie in (0, 1), got {lowest:g}")
    default = ["jordan", "simple", "polar-express", "polar-express-8", "deepseek-v4"]
    chosen = choose(",".join(names or default), SCHEDULES, "schedule")
    _save(schedule_figure(chosen, lowest), out)
    table = Table("schedule", "steps", "slope at 0", "output at 1e-4", "1e-3", "1e-2", "1e-1", "1")
    for name, f in chosen.items():
        outputs = (f"{f(sigma):.4f}" for sigma in (1e-4, 1e-3, 1e-2, 1e-1, 1.0))
        table.add_row(name, str(len(f.steps)), f"{f.slope:,.0f}", *outputs)
    console.print(table)
    say(f"picture: {out}")


def accuracy(
    names: Annotated[
        str, typer.Option("--engines", help="Names, separated by commas. Default: all.")
    ] = "",
    size: Annotated[int, typer.Option(help="Short side of the matrices.")] = 128,
    matrices: Annotated[
        int, typer.Option("--search", help="Matrices per family and shape of the search.")
    ] = 64,
    rounds: Annotated[int, typer.Option(help="Steps of the climb of the search.")] = 30,
    large: Annotated[bool, typer.Option("--large", help="Search up to 128 x 128 too.")] = False,
    out: Annotated[
        Path,
        typer.Option(help="Folder of accuracy.json, .md and .png.", callback=options.new_folder),
    ] = Path("accuracy"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the record in --out.")] = False,
) -> None:
    """Measure every engine against the float64 singular value decomposition.

    Spectra from flat to condition 1e7, rank deficient, one zero row; shapes square, 4:1, 1:4, 30:1.
    For each: the band of output singular values, orthogonality, direction error, flops. Then search
    matrices of thirteen families for the largest output singular value, and for the least one of
    those that the engine promises to lift. Stop with Ctrl-C; run the same command again to resume.
    """
    if size < 4:
        raise ValueError(f"--size must be >= 4, got {size}")
    if matrices < 1:
        raise ValueError(f"--search must be >= 1, got {matrices}")
    if rounds < 0:
        raise ValueError(f"--rounds must be >= 0, got {rounds}")
    chosen = choose(names, engines() | unbounded(), "engine")
    record = out / "accuracy.json"
    if fresh:
        record.unlink(missing_ok=True)
    machine = hardware(torch.device("cpu")) | versions()
    follow = partial(track, description="measuring", console=console)
    budget = Budget(size, matrices, rounds, large)
    entries = measured(chosen, budget, machine, record, follow)
    _save(error_figure(*worst_errors(entries)), out / "accuracy.png")
    heads, rows = bands(entries)
    (out / "accuracy.md").write_text(markdown(heads, rows), encoding="utf-8")
    table = Table(Column(heads[0], no_wrap=True), *heads[1:])
    for row in rows:
        table.add_row(*row)
    console.print(table)
    say(", ".join(f"{name}: {value}" for name, value in machine.items()))
    say("\n".join(f"{out / name}" for name in ("accuracy.json", "accuracy.md", "accuracy.png")))


def worst_errors(
    entries: Mapping[str, Entry],
) -> tuple[list[str], list[str], list[list[float]]]:
    """Return engines, cases, and the worst error over the shapes of each pair."""
    cases = list(dict.fromkeys(c["case"] for e in entries.values() for c in e["cases"]))
    errors = [[_worst(entry, case, "error") for case in cases] for entry in entries.values()]
    return list(entries), cases, errors


def _worst(entry: Entry, case: str, measure: str) -> float:
    """Return the largest value of a measure over the shapes of a case."""
    return max(float(c[measure]) for c in entry["cases"] if c["case"] == case)


def bands(entries: Mapping[str, Entry]) -> tuple[list[str], list[list[str]]]:
    """Return a table: per engine, its output on spectra, both ends found, and operations."""
    thresholds = [f"{t:g}" for t in THRESHOLDS]
    rows = []
    for name, entry in entries.items():
        cases = entry["cases"]
        flops = next(c["flops"] for c in cases if c["shape"] == "4:1")
        cells = [_span([c["bands"][t] for c in cases if c["bands"][t]]) for t in thresholds]
        cells.append(f"{_worst(entry, 'condition 1e2', 'orthogonality'):.2g}")
        cells.append(f"{_worst(entry, 'rank 1', 'error'):.2g}")
        cells += [_end(entry["least"]), _end(entry["largest"]), f"{flops:.2g}"]
        rows.append([name, *cells])
    heads = ["engine", *(f"sigma >= {t}" for t in thresholds), "orthogonality at 1e2"]
    heads += ["error at rank 1", "least found (promised)", "largest found (promised)"]
    return [*heads, "flops at 4:1"], rows


def _end(end: Entry | None) -> str:
    """Return an end of a band as it was found, and as it is promised."""
    if end is None:
        return "-"
    value, promised = end["value"], end["promised"]
    if abs(value - 1) < 1e-4 and abs(promised - 1) < 1e-4:
        return f"1 {value - 1:+.1e} (1 {promised - 1:+.1e})"
    return f"{value:.4f} ({promised:.4f})"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _span(found: Sequence[Sequence[float]]) -> str:
    if not found:
        return "-"
    return f"{min(low for low, _ in found):.4f} .. {max(high for _, high in found):.4f}"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(path)
    elif path.suffix == ".svg":
        figure.savefig(path)
    else:
        raise ValueError(f"--out must end in .png or .svg, got {path}")
