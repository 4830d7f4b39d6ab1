"""`polarlight reproduce speedup`: spectral optimizers against tuned AdamW, by training length."""

from collections.abc import Sequence
from dataclasses import dataclass

from polarlight.lab.claims.speedup.analysis import speedups
from polarlight.lab.claims.speedup.page import FIGURE, plan_lines, result_lines, write_figure
from polarlight.lab.claims.speedup.plan import GridPart, method_of, parts_of
from polarlight.lab.claims.speedup.running import Place, corpus_of, losses_of, run_part
from polarlight.lab.claims.speedup.tuning import Losses
from polarlight.lab.commands import options
from polarlight.lab.commands.console import say

NAME = "speedup"


@dataclass(frozen=True, slots=True)
class Asked:
    """Arguments of the command.

    Attributes:
        size: Name of a size, see `speedup.plan.SIZES`.
        parts: Names of parts by commas; None takes all of the size.
        methods: Names of methods by commas; None takes those of each part.
        plan: Print the plan and stop.
        results: Print what is recorded and stop.
    """

    size: str
    parts: str | None = None
    methods: str | None = None
    plan: bool = False
    results: bool = False

    def chosen(self) -> tuple[GridPart, ...]:
        """Return the parts that are asked for."""
        return parts_of(self.size, _names(self.parts))

    def methods_of(self, part: GridPart) -> tuple[str, ...]:
        """Return the methods of a part that are asked for."""
        asked = _names(self.methods)
        for name in asked:
            method_of(name)
        return tuple(name for name in asked or part.methods if name in part.methods)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def speedup(asked: Asked, place: Place) -> None:
    """Train what is missing of the plan and print speedups with intervals; or print the plan.

    Raises:
        ValueError: If a name is unknown, or the size needs data that are not given.
    """
    parts = asked.chosen()
    methods = {part.name: asked.methods_of(part) for part in parts}
    for line in plan_lines(parts, _names(asked.methods)):
        say(line)
    if asked.plan:
        return
    _require_data(asked, place, parts)
    known: dict[str, Losses] = {}
    for part in parts:
        known[part.name] = _losses(asked, place, part, methods[part.name])
        for line in result_lines(part, known[part.name]):
            say(line)
    found = {part.name: speedups(part, known[part.name]) for part in parts}
    if any(found.values()):
        write_figure(found, place.out / FIGURE)
        say(f"figure: {place.out / FIGURE}")


def _losses(asked: Asked, place: Place, part: GridPart, methods: tuple[str, ...]) -> Losses:
    """Return the losses of a part, recorded ones alone or after training the missing runs."""
    if asked.results:
        return losses_of(part, place.store(), corpus_of(place.data).fingerprint)
    return run_part(part, place, say, methods)


def _require_data(asked: Asked, place: Place, parts: Sequence[GridPart]) -> None:
    """Refuse the size for GPUs without data or a GPU."""
    if asked.size != "gpu":
        return
    longest = max(p.plan(x).steps * p.model.tokens_per_step for p in parts for x in p.adamw_lengths)
    if place.data is None:
        raise ValueError(
            f"--size gpu needs --data with about {longest / 1e9:.1f} billion tokens or bytes; "
            "the embedded data have 0.03 billion"
        )
    options.require_gpu("gpu", "auto", small="small", anyway="--size small")
