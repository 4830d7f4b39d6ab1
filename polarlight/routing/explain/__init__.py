"""`explain`: rule, effective learning rate and reason of each parameter, as data and as text.

print(explain(optimizer))                          repeated layers in one entry
print(explain(optimizer).table(every=True))        every parameter
explain(optimizer).to_json()
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from polarlight.lookup import check_groups, check_optimizer
from polarlight.routing.explain.rows import Piece, Row, rows_of
from polarlight.routing.explain.table import format_aligned, format_rows

if TYPE_CHECKING:
    from polarlight.execution.sharded.forecast import Summary

__all__ = ["Explanation", "Piece", "Row", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Rule, view, learning rate and reason of every parameter; `str` returns the table.

    Attributes:
        rows: One per parameter, in the order of the groups.
        sharing: One per mesh of processes that share the work: who computes how much, and what a
            step moves. Empty on one process.
    """

    rows: tuple[Row, ...]
    sharing: "tuple[Summary, ...]" = ()

    def __str__(self) -> str:
        """Return the table with repeated layers folded."""
        return self.table()

    def table(self, *, every: bool = False, width: int = 120) -> str:
        """Return rows (folded unless `every`), totals per role and shared work as text.

        Args:
            every: One entry per parameter; else equal ones of repeated layers share an entry,
                `layers.{0-27}.mlp.up_proj.weight`.
            width: Columns of the terminal; a longer name stands on a line of its own.
        """
        sections = [format_rows(self.rows, every=every, width=width), self._totals_text()]
        return "\n\n".join(sections + [fill(str(shared), width) for shared in self.sharing])

    def totals(self) -> dict[str, dict[str, int]]:
        """Return {role: {tensors, parameters, frozen}}: number of tensors, entries, frozen ones."""
        totals: dict[str, dict[str, int]] = {}
        for row in self.rows:
            entry = totals.setdefault(row.role, {"tensors": 0, "parameters": 0, "frozen": 0})
            entry["tensors"] += 1
            entry["parameters"] += row.size
            entry["frozen"] += row.size if row.frozen else 0
        return totals

    def to_json(self) -> str:
        """Return rows, totals per role and, if work is shared, plans per mesh as JSON text."""
        record: dict[str, Any] = {"parameters": [asdict(row) for row in self.rows]}
        if self.sharing:
            record["sharing"] = [asdict(shared) for shared in self.sharing]
        return json.dumps(record | {"totals": self.totals()}, indent=1)

    def _totals_text(self) -> str:
        """Return the table of totals per role, and of all, as aligned text."""
        totals = self.totals()
        whole = {key: sum(entry[key] for entry in totals.values()) for key in _COUNTED}
        rows = []
        for role, entry in (*totals.items(), ("all", whole)):
            share = 100 * entry["parameters"] / max(whole["parameters"], 1)
            rows.append([role, *(f"{entry[key]:,}" for key in _COUNTED), f"{share:.1f} %"])
        return format_aligned([["role", *_COUNTED, "share"], *rows])


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the innermost optimizer inside wrappers that hold one as `.optimizer`."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrap_optimizer(inner) if isinstance(inner, Optimizer) else optimizer


_COUNTED = ("tensors", "parameters", "frozen")


def explain(source: Optimizer | Sequence[Mapping[str, Any]]) -> Explanation:
    """Return a table of all parameters: shape, role, rule, view, engine, learning rate, reason.

    Of sharded parameters also the plan in numbers: matrices, balance, flops, and for the busiest
    process bytes, messages, partners and memory per step.

    Args:
        source: An optimizer, also one that accelerate has wrapped, or param groups as `route` makes
            them.

    Raises:
        TypeError: If it is neither, as a model.
    """
    if isinstance(source, Optimizer):
        source = unwrap_optimizer(source)
        groups: Sequence[Mapping[str, Any]] = [
            source.defaults | group for group in source.param_groups
        ]
        reasons: Mapping[str, str] = dict(getattr(source, "reasons", {}))
    else:
        if hasattr(source, "named_parameters") or isinstance(source, type):
            check_optimizer("explain", source)
        groups = check_groups("explain, beside an optimizer,", source)
        reasons = {k: v for g in groups for k, v in g.get("reasons", {}).items()}
    from polarlight.execution.sharded.forecast import dtensor_layout, forecast, summary

    executor = getattr(source, "executor", None)
    layout_of_param = getattr(executor, "layout", dtensor_layout)
    plans = forecast(groups, layout_of_param, getattr(executor, "options", None))
    sharing = tuple(map(summary, plans))
    return Explanation(tuple(rows_of(groups, reasons)), sharing)
