"""Keyword arguments that all torch-style classes share."""

import inspect
from typing import Any, TypedDict

from torch import Tensor

from polarlight.execution.job import Executor
from polarlight.execution.param_task import ParamExecutor
from polarlight.lookup import check_betas, check_rate, unknown
from polarlight.optimizer import NonFinite
from polarlight.routing.route import Overrides
from polarlight.view import MatrixView


class Shared(TypedDict, total=False):
    """Keyword arguments that every torch-style class takes.

    Attributes:
        maximize: Ascend instead of descend.
        executor: Where and in which batch directions are computed: `Batched()` (the default),
            `OneByOne()` or `Sharded(group=...)`.
        nonfinite: What to do about a gradient with a NaN or an Inf: `NonFinite.SKIP` leaves its
            parameter out of the step (the default), `RAISE` stops, `PROPAGATE` uses it.
        view: Which part of a parameter is a matrix, for parameters without names. In a model the
            views are inferred; `overrides={pattern: Route(view=...)}` changes one.
        overrides: Other routes for some parameters: `{Role.CONV: Role.HIDDEN}` gives convolutions
            the method, `{"*.layers.0.*": Route(lr=1e-3)}` a layer its own learning rate, and
            `{"decoder.*": AdamWRule()}` excludes. Keys: roles, patterns on names, or pairs of both.
            A pattern must match a parameter; a role may be one that the model lacks.
        aux_lr: AdamW's learning rate. None takes 3e-3, or `lr` where the scale is
            `MatchRmsAdamW`: updates of matrices are as large as AdamW's then.
        aux_betas: AdamW's decay rates, (0.9, 0.95) by default.
        aux_weight_decay: AdamW's weight decay, never applied to vectors. None takes 0, or
            `weight_decay` where the scale is `MatchRmsAdamW`.
    """

    maximize: bool
    executor: Executor | ParamExecutor | None
    nonfinite: NonFinite
    view: MatrixView | None
    overrides: Overrides | None
    aux_lr: float | Tensor | None
    aux_betas: tuple[float, float]
    aux_weight_decay: float | None


def check_names(cls: type, shared: Shared) -> None:
    """Raise TypeError if a keyword is no argument of the class."""
    for name in shared:
        if name not in Shared.__annotations__:
            own = [*inspect.signature(cls).parameters][:-1]
            known = [*own, *Shared.__annotations__]
            raise TypeError(str(unknown(name, known, f"{cls.__name__} takes no argument")))


def check_view(view: MatrixView | None, groups: Any) -> None:
    """Raise ValueError if every group brings another view than the one that is given."""
    if view is None or not isinstance(groups, list):
        return
    views = [group.get("view") if isinstance(group, dict) else None for group in groups]
    if views and all(found not in (None, view) for found in views):
        raise ValueError(
            f"view={view} is used by no parameter: it is for parameters without names, and these "
            "have the views that routing inferred; overrides={pattern: Route(view=...)} changes one"
        )


def check_adamw(lr: object, betas: object, weight_decay: object, prefix: str = "") -> None:
    """Raise ValueError unless AdamW's numbers are in their ranges; lr and decay may be None.

    Args:
        lr: Learning rate.
        betas: Decay rates.
        weight_decay: Weight decay.
        prefix: Of the arguments' names, `aux_` where they stand beside others.
    """
    check_betas(f"{prefix}betas", betas)
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if value is not None:
            check_rate(f"{prefix}{name}", value)
