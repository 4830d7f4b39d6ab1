"""Commands `polarlight inspect` and `polarlight watched`: pages on a checkpoint or run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from polarlight.diagnostics.sinks import read_json_lines
from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.inspection.measure import Inspection, inspect
from polarlight.lab.inspection.opening import open_checkpoint
from polarlight.lab.inspection.page import summary, write_page
from polarlight.lab.inspection.source import OpenedCheckpoint
from polarlight.lab.inspection.watched import write_watched

Checkpoint = Annotated[
    Path,
    typer.Argument(
        help=".safetensors, a file of torch.save (.pt, .pth, .bin, .ckpt), an index of shards, or "
        "a folder of Hugging Face."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of the report.", callback=options.new_folder)]


def inspect_checkpoint(checkpoint: Checkpoint, out: Out = Path("inspection")) -> None:
    """Find dead, doubled and uneven neurons in a checkpoint, layer by layer; nothing is trained.

    Roles of tensors come from their names. With optimizer state (`optimizer.pt` in the folder, or
    in the checkpoint) the momentum shows which neurons starve. One tensor is read at a time, so
    memory is that of the largest.

    ```
    polarlight inspect model.safetensors
    polarlight inspect Qwen3-0.6B/ --out qwen3
    polarlight inspect runs/quick/muon/seed0/checkpoint.pt
    ```
    """
    source = open_checkpoint(checkpoint)
    found = _read(source)
    if not found.matrices:
        raise ValueError(
            f"{checkpoint} has {len(source.weights)} tensors and none that is known as a "
            f"hidden matrix; the first are {', '.join(list(source.weights)[:5])}"
        )
    page = write_page(checkpoint.resolve().name, found, source.notes, out)
    say(summary(found))
    say(f"report: {page}")


def _read(source: OpenedCheckpoint) -> Inspection:
    """Yield all tensors, with a progress bar that counts bytes."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    result = Inspection()
    with Progress(*columns, console=console, transient=True) as progress:
        total = sum(entry.bytes for entry in source.weights.values())
        task = progress.add_task("reading", total=total)
        for name, found in inspect(source):
            progress.update(task, advance=source.weights[name].bytes, description=name)
            result = found
    return result


def watched(
    records: Annotated[Path, typer.Argument(help="File of `sinks.JsonLines`.")],
    out: Out = Path("watched"),
) -> None:
    """Draw the records that a probe wrote during your own training run.

    ```
    polarlight watched neurons.jsonl --out report
    ```
    """
    try:
        lines = list(read_json_lines(records))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{records} was not written by polarlight.diagnostics.sinks.JsonLines; expected a line "
            'of text per step, {"step": ..., "records": ...}'
        ) from error
    say(f"report: {write_watched(records.stem, lines, out)}")
