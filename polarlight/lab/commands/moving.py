"""Command `polarlight translate-lr`: the equivalent learning rate in other libraries."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from polarlight.lab.commands.console import console, say
from polarlight.migration.conventions import (
    CONVENTIONS,
    Convention,
    UpdateSize,
    convention_of,
    translate_lr,
    update_rms,
)

CONVENTIONS_LIST = "Conventions:\n\n" + "\n".join(
    f"- **{name}**: {convention.where}" for name, convention in CONVENTIONS.items()
)
Shape = tuple[int, int]
Row = dict[str, Any]


def translate(
    source: Annotated[
        str, typer.Option("--from", help="Convention of the learning rate; see below.")
    ],
    lr: Annotated[float, typer.Option(help="The learning rate.")],
    shape: Annotated[
        list[str],
        typer.Option(
            metavar="OUTxIN", help="Shape of a weight, fan_out x fan_in. May be repeated."
        ),
    ],
    target: Annotated[
        str | None, typer.Option("--to", help="Convention of the result. Default: all.")
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay beside it; lr * weight decay is kept.")
    ] = 0.0,
    beta: Annotated[
        float, typer.Option(help="Decay of the momentum; matters for PolarGrad and SGD alone.")
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    r"""Translate a learning rate between libraries, for equal updates.

    One `lr` moves a 3072 x 768 weight up to 55 times further in one library than in another: each
    scales the polar factor by its own function of the weight's shape. The translation keeps the
    root mean square change of an entry per step (`update rms`) and the decay per step.

    ```
    polarlight translate-lr --from moonlight --lr 3e-4 --shape 3072x768
    polarlight translate-lr --from torch --to polarlight-rms --lr 0.02 --shape 3072x768 \
        --shape 768x3072 --weight-decay 0.1
    ```

    Where two shapes need different learning rates, one number cannot translate: keep the scale
    instead, for example `polarlight.Muon(model, lr=3e-4, scale=polarlight.stages.MatchRmsAdamW())`.
    """
    kind, shapes = convention_of(source), [shape_of(text) for text in shape]
    targets = _targets(kind, target)
    rows = [_row(kind, other, lr, weight_decay, beta, one) for one in shapes for other in targets]
    if as_json:
        say(json.dumps(rows, indent=1))
        return
    for one in shapes:
        console.print(_table(kind, lr, one, [r for r in rows if r["shape"] == list(one)]))
    for other in targets if target is not None else ():
        say(_advice(kind, other, [r for r in rows if r["convention"] == other.name]))


def _targets(kind: Convention, target: str | None) -> list[Convention]:
    if target is not None:
        return [convention_of(target)]
    return [other for other in CONVENTIONS.values() if other.size is kind.size]


def _row(
    source: Convention, target: Convention, lr: float, decay: float, beta: float, shape: Shape
) -> Row:
    there = translate_lr(lr, source=source, target=target, shape=shape, beta=beta)
    return {
        "convention": target.name,
        "where": target.where,
        "shape": list(shape),
        "lr": there,
        "weight_decay": decay * lr / there if there else decay,
        "update_rms": update_rms(there, target, shape) if target.size is UpdateSize.POLAR else None,
        "here": f"polarlight.{target.here}",
    }


def _table(source: Convention, lr: float, shape: Shape, rows: Sequence[Row]) -> Table:
    m, n = shape
    table = Table(
        "convention",
        "lr",
        "weight decay",
        "update rms",
        "takes this lr here",
        title=f"{source.name} lr {lr:g} on {m} x {n}",
    )
    for row in rows:
        rms = "-" if row["update_rms"] is None else f"{row['update_rms']:.4g}"
        numbers = f"{row['lr']:.4g}", f"{row['weight_decay']:.4g}", rms
        table.add_row(row["convention"], *numbers, row["here"])
    return table


def _advice(source: Convention, target: Convention, rows: Sequence[Row]) -> str:
    """Return a sentence: one learning rate for all shapes, or a way without one."""
    rates = [row["lr"] for row in rows]
    if max(rates) - min(rates) <= 1e-9 * max(rates):
        return f"lr={rates[0]:.4g} under {target.name} moves these shapes as before"
    return (
        f"{target.name} needs a learning rate per shape, {min(rates):.4g} to {max(rates):.4g}: "
        f"keep the scale and the learning rate instead, with polarlight.{source.here}"
    )


def shape_of(text: str, option: str = "--shape") -> Shape:
    """`3072x768` as (fan_out, fan_in)."""
    sizes = text.lower().split("x")
    if len(sizes) != 2 or not all(size.strip().isdigit() for size in sizes):
        raise ValueError(f"{option} takes fan_out x fan_in, such as 3072x768; got {text!r}")
    return int(sizes[0]), int(sizes[1])
