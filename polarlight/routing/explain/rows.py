"""Rows of the table of `explain`, one per parameter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from polarlight.routing.view_text import view_call
from polarlight.rule import UpdateRule
from polarlight.view import MatrixView, Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One matrix, or batch of equal matrices, into which the view splits a parameter.

    Attributes:
        shape: [..., fan_out, fan_in]; the parameter's own where its rule is elementwise.
        engine: What computes the update, in words.
        lr: The group's learning rate times the rule's scale for this shape; None where the group
            leaves its learning rate to the optimizer.
        rms: Root mean square change of an entry per step, weight decay aside; None if it depends
            on the gradients.
    """

    shape: tuple[int, ...]
    engine: str
    lr: float | None
    rms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Row of the table: rule, view, learning rate and reason of one parameter.

    Attributes:
        name: Its name, or `-`.
        shape: Its shape.
        role: Its role, or `-`.
        rule: Name of its rule; `default` where the group leaves it to the optimizer.
        view: Which part of it is a matrix, as the call that makes the view.
        lr: Learning rate of its group, before the rule's scale.
        weight_decay: Decoupled weight decay of its group; None where left to the optimizer.
        pieces: What the view makes of it.
        frozen: Whether it takes no gradient.
        reason: How role and view are known.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    rule: str
    view: str
    lr: float | None
    weight_decay: float | None
    pieces: tuple[Piece, ...]
    frozen: bool
    reason: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)


def rows_of(groups: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> Iterator[Row]:
    """Yield one `Row` per parameter of the groups; `reasons` are by parameter name."""
    for group in groups:
        names = group.get("param_names") or ["-"] * len(group["params"])
        lr = None if group.get("lr") is None else float(group["lr"])
        decay = None if group.get("weight_decay") is None else float(group["weight_decay"])
        rule, view = group.get("rule"), group.get("view") or Whole()
        for name, p in zip(names, group["params"], strict=True):
            yield Row(
                name=name,
                shape=tuple(p.shape),
                role=str(group.get("role") or "-"),
                rule="default" if rule is None else rule.name,
                view=view_call(view),
                lr=lr,
                weight_decay=decay,
                pieces=tuple(_pieces(p, rule, view, lr)),
                frozen=not p.requires_grad,
                reason=reasons.get(name, "given by the caller"),
            )


def _pieces(p: Tensor, rule: object, view: MatrixView, lr: float | None) -> Iterator[Piece]:
    """Yield one `Piece` per part of a view: shape, engine, lr times scale, rms of the update."""
    if not isinstance(rule, UpdateRule):
        engine = "-" if rule is None else "elementwise"
        yield Piece(shape=tuple(p.shape), engine=engine, lr=lr, rms=None)
        return
    for shape in view.shapes(p.shape):
        m, n = shape[-2:]
        rms = rule.update_rms(m, n)
        yield Piece(
            shape=tuple(shape),
            engine=rule.engine(m, n, p.dtype, p.device),
            lr=None if lr is None else lr * rule.scale(m, n),
            rms=None if lr is None or rms is None else lr * rms,
        )
