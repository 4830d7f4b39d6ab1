"""Commands `polarlight accuracy` and `polarlight plot-schedule`."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table
from torch import Tensor

from polarlight.lab.accuracy.adversarial import SHAPES, largest, search
from polarlight.lab.accuracy.spectra import SPECTRA, Case, Engine, measure
from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.commands.registry import SCHEDULES, choose, engines
from polarlight.lab.report.engine_pictures import error_figure, schedule_figure

Record = dict[str, Any]


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
    out: Annotated[
        Path,
        typer.Option(help="Folder of accuracy.json, .md and .png.", callback=options.new_folder),
    ] = Path("accuracy"),
) -> None:
    """Measure every engine against the float64 singular value decomposition.

    Spectra from flat to condition 1e7, rank deficient, one zero row; shapes square, 4:1, 1:4, 30:1.
    For each: the band of output singular values, orthogonality, direction error, flops. Then search
    small matrices of thirteen families for the largest output singular value.
    """
    if size < 4:
        raise ValueError(f"--size must be >= 4, got {size}")
    if matrices < 1:
        raise ValueError(f"--search must be >= 1, got {matrices}")
    chosen = choose(names, engines(), "engine")
    records = measure_all(chosen, size)
    stretched = search_all(chosen, matrices)
    out.mkdir(parents=True, exist_ok=True)
    (out / "accuracy.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    _save(error_figure(*worst_errors(records)), out / "accuracy.png")
    heads, rows = bands(records, stretched)
    (out / "accuracy.md").write_text(markdown(heads, rows), encoding="utf-8")
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    say("\n".join(f"{out / name}" for name in ("accuracy.json", "accuracy.md", "accuracy.png")))


def measure_all(chosen: Mapping[str, Engine], size: int) -> list[Record]:
    """Measure every engine on every spectrum and shape; return one record each."""
    shapes = {"square": (size, size), "4:1": (4 * size, size), "1:4": (size, 4 * size)}
    shapes["30:1"] = (30 * size, size)
    cases = [
        (name, Case(spectrum, shape, zero_row))
        for name, shape in shapes.items()
        for spectrum, zero_row in [*((s, False) for s in SPECTRA), ("condition 1e3", True)]
    ]
    records = []
    for shape, case in track(cases, description="measuring", console=console):
        M = case.matrix()
        for name, engine in chosen.items():
            about = {"engine": name, "case": str(case), "shape": shape, "size": list(M.shape)}
            records.append(about | measure(engine, M.to(_given(name)), case.rank))
    return records


def worst_errors(records: Sequence[Record]) -> tuple[list[str], list[str], list[list[float]]]:
    """Return engines, cases, and the worst error over the shapes of each pair."""
    names = list(dict.fromkeys(r["engine"] for r in records))
    cases = list(dict.fromkeys(r["case"] for r in records))
    worst = {(n, c): 0.0 for n in names for c in cases}
    for r in records:
        key = r["engine"], r["case"]
        worst[key] = max(worst[key], r["error"])
    return names, cases, [[worst[n, c] for c in cases] for n in names]


def search_all(chosen: Mapping[str, Engine], matrices: int) -> dict[str, float]:
    """Return the largest singular value that a search finds for each engine."""
    found = {}
    for name, engine in track(chosen.items(), description="searching", console=console):
        score = partial(_stretched, engine)
        dtype = _given(name)
        worst = (search(score, shape, count=matrices, dtype=dtype) for shape in SHAPES)
        found[name] = max(w.score for w in worst)
    return found


def _stretched(engine: Engine, M: Tensor) -> Tensor:
    return largest(engine(M))


def _given(name: str) -> torch.dtype:
    """Return the dtype of an engine's input, from the engine's name."""
    return torch.float64 if name.endswith("fp64") else torch.float32


def bands(
    records: Sequence[Record], stretched: Mapping[str, float]
) -> tuple[list[str], list[list[str]]]:
    """Return a table: per engine, least and greatest output above each threshold."""
    thresholds = list(records[0]["bands"])
    rows = []
    for name in dict.fromkeys(r["engine"] for r in records):
        own = [r for r in records if r["engine"] == name]
        flops = next((r["flops"] for r in own if r["shape"] == "4:1"), 0.0)
        cells = [_span([r["bands"][t] for r in own if r["bands"][t]]) for t in thresholds]
        rows.append([name, *cells, f"{stretched[name]:.4f}", f"{flops:.2g}"])
    heads = ["engine", *(f"sigma >= {t}" for t in thresholds), "largest found", "flops at 4:1"]
    return heads, rows


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
