"""Live table of a comparison in a terminal, or plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from polarlight.lab.train.model_config import Architecture
from polarlight.lab.train.settings import Plan, Spec

Record = Mapping[str, Any]

PLAIN_EVERY = 10.0
"""Seconds between lines where output is not a terminal."""


class RunRow:
    """Latest numbers of one run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.step = 0
        self.loss: float | None = None
        self.validation: float | None = None
        self.tokens_per_second: float | None = None
        self.optimizer_share: float | None = None
        self.starved: float | None = None
        self.dead: float | None = None
        self.skipped = 0
        self.status = "waiting"

    def add(self, record: Record) -> None:
        """Update the numbers from a record."""
        self.status = f"training, {self.skipped} gradients skipped" if self.skipped else "training"
        match record["kind"]:
            case "step":
                self._add_step(record)
            case "validation":
                self.validation = record["loss"]
            case "neurons" if record["layers"]:
                layers = [layer["update"]["starved"]["0.1"] for layer in record["layers"].values()]
                self.starved = sum(layers) / len(layers)
            case "routing":
                dead = [layer["dead"] for layer in record["layers"].values()]
                self.dead = sum(dead) / len(dead)
            case "skipped":
                self.skipped += sum(record["parameters"].values())
            case "stopped":
                self.status = record["reason"]
            case "finished":
                self.status = "finished"

    def _add_step(self, record: Record) -> None:
        tokens = (record["step"] - self.step) * self._plan.tokens_per_step
        total = sum(record["time"].values())
        self.step, self.loss = record["step"], record["loss"]
        if total > 0:
            self.tokens_per_second = tokens / total
            self.optimizer_share = record["time"].get("optimizer", 0.0) / total

    def cells(self) -> list[str]:
        """Return the table's texts for `headers` without its first two columns."""
        dead = [_text(self.dead, "{:.1%}")] if has_experts(self._plan) else []
        return [
            f"{self.step}/{self._plan.steps}",
            _text(self.loss, "{:.3f}"),
            _text(self.validation, "{:.3f}"),
            _text(self.tokens_per_second, "{:,.0f}"),
            _text(self.optimizer_share, "{:.0%}"),
            _text(self.starved, "{:.1%}"),
            *dead,
            self.status,
        ]


def has_experts(plan: Plan) -> bool:
    """Tell whether the runs train a mixture of experts."""
    return plan.architecture == Architecture.MOE


def headers(plan: Plan) -> list[str]:
    """Return the titles of the table's columns."""
    experts = ["dead experts"] if has_experts(plan) else []
    numbers = ["step", "loss", "validation", "tokens/s", "optimizer", "starved", *experts]
    return ["run", "seed", *numbers, ""]


class Display:
    """Watcher that draws; use it as a context manager around the training.

    Args:
        specs: The runs, in order.
        plan: What they share.
        console: Where to draw.
    """

    def __init__(self, specs: Sequence[Spec], plan: Plan, console: Console) -> None:
        self._console = console
        self._rows = {(s.label, s.seed): RunRow(plan) for s in specs}
        self._headers = headers(plan)
        self._total = plan.steps * len(specs)
        self._bar = Progress(
            TextColumn("[bold]all runs"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("steps", total=self._total)
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=2)
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def follow(self, spec: Spec, record: Record) -> None:
        """Draw the record."""
        row = self._rows[spec.label, spec.seed]
        row.add(record)
        self._bar.update(self._task, completed=sum(row.step for row in self._rows.values()))
        if not self._console.is_terminal:
            self._line(spec, row, record)

    def _line(self, spec: Spec, row: RunRow, record: Record) -> None:
        ended = record["kind"] in ("finished", "stopped")
        if ended or time.monotonic() - self._last_line >= PLAIN_EVERY:
            self._last_line = time.monotonic()
            named = [f"{k} {v}" for k, v in zip(self._headers[2:-1], row.cells(), strict=False)]
            line = f"{spec.label} seed {spec.seed}: {', '.join(named)}, {row.status}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _picture(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in self._headers:
            table.add_column(header, justify="left" if header in ("run", "") else "right")
        for (label, seed), row in self._rows.items():
            style = "dim" if row.status in ("waiting", "finished") else ""
            table.add_row(label, str(seed), *row.cells(), style=style)
        return Group(table, self._bar)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
