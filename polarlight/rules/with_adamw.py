"""A method on hidden matrices beside AdamW: routing, and what all torch-style classes share."""

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypedDict, Unpack, cast

from torch import Tensor, nn

from polarlight.execution.job import Executor
from polarlight.execution.work import WorkExecutor
from polarlight.lookup import unknown
from polarlight.optimizer import NonFinite, SpectralOptimizer
from polarlight.routing.left_over import route_and_warn
from polarlight.routing.roles import MATRIX_ROLES, Role
from polarlight.routing.route import Overrides, Route
from polarlight.rule import Scale, UpdateRule
from polarlight.rules.adamw import AdamWRule
from polarlight.stages.scales import MatchRmsAdamW
from polarlight.view import MatrixView

AUX_LR = 3e-3
"""Learning rate of AdamW beside rules whose updates are not of AdamW's size."""


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
        aux_lr: AdamW's learning rate. None takes 3e-3, or `lr` where the scale is
            `MatchRmsAdamW`: updates of matrices are as large as AdamW's then.
        aux_betas: AdamW's decay rates, (0.9, 0.95) by default.
        aux_weight_decay: AdamW's weight decay, never applied to vectors. None takes 0, or
            `weight_decay` where the scale is `MatchRmsAdamW`.
    """

    maximize: bool
    executor: Executor | WorkExecutor | None
    nonfinite: NonFinite
    view: MatrixView | None
    overrides: Overrides | None
    aux_lr: float | Tensor | None
    aux_betas: tuple[float, float]
    aux_weight_decay: float | None


class WithAdamW(SpectralOptimizer):
    """A rule on hidden matrices, AdamW on the rest: what the torch-style classes construct.

    Args:
        params: A module or `model.named_parameters()`: hidden matrices get the rule; embeddings,
            heads, norms and biases get AdamW. Or matrices alone, or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        rule: Rule of the matrices.
        **shared: See `Shared`.

    Warns:
        UserWarning: If no parameter gets the rule, or AdamW gets what may be matrices.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If a number is out of range, a bare tensor is no matrix, an override matches
            nothing, or a view is given that no group uses.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> rule = polarlight.rules.row_then_polar()
        >>> optimizer = polarlight.rules.WithAdamW(model, lr=4e-3, rule=rule)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        *,
        rule: UpdateRule,
        **shared: Unpack[Shared],
    ) -> None:
        _check_names(type(self), shared)
        view = shared.get("view")
        groups = with_adamw(
            params,
            lr=shared.get("aux_lr"),
            betas=shared.get("aux_betas", (0.9, 0.95)),
            weight_decay=shared.get("aux_weight_decay"),
            beside=(rule.scale, lr, weight_decay),
            overrides=shared.get("overrides"),
            stacklevel=2 if type(self) is WithAdamW else 3,  # over the constructor of the class
        )
        _check_view(view, groups)
        super().__init__(
            groups,
            lr,
            weight_decay,
            momentum,
            rule=rule,
            view=view,
            maximize=shared.get("maximize", False),
            executor=shared.get("executor"),
            nonfinite=shared.get("nonfinite", NonFinite.SKIP),
        )


def _check_names(cls: type, shared: Shared) -> None:
    """Raise TypeError if a keyword is no argument of the class."""
    for name in shared:
        if name not in Shared.__annotations__:
            own = [*inspect.signature(cls).parameters][:-1]
            known = [*own, *Shared.__annotations__]
            raise TypeError(str(unknown(name, known, f"{cls.__name__} takes no argument")))


def _check_view(view: MatrixView | None, groups: Any) -> None:
    """Raise ValueError if every group brings another view than the one that is given."""
    if view is None or not isinstance(groups, list):
        return
    views = [group.get("view") if isinstance(group, dict) else None for group in groups]
    if views and all(found not in (None, view) for found in views):
        raise ValueError(
            f"view={view} is used by no parameter: it is for parameters without names, and these "
            "have the views that routing inferred; overrides={pattern: Route(view=...)} changes one"
        )


def _derived(
    lr: float | Tensor | None,
    weight_decay: float | None,
    beside: tuple[Scale, float | Tensor, float] | None,
) -> tuple[float | Tensor, float]:
    """Return AdamW's learning rate and weight decay, where they are not given."""
    default: tuple[float | Tensor, float] = AUX_LR, 0.0
    if beside is not None and isinstance(beside[0], MatchRmsAdamW):
        _, rate, decay = beside
        default = rate.clone() if isinstance(rate, Tensor) else rate, decay
    return default[0] if lr is None else lr, default[1] if weight_decay is None else weight_decay


def with_adamw(
    params: object,
    *,
    lr: float | Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float | None = None,
    beside: tuple[Scale, float | Tensor, float] | None = None,
    overrides: Overrides | None = None,
    stacklevel: int = 1,
) -> Any:
    """Groups in which hidden matrices keep the optimizer's rule and everything else gets AdamW.

    Args:
        params: A module or its named parameters, which are routed by role; anything else (tensors,
            dicts) is returned as it is.
        lr: AdamW's learning rate, for embeddings, heads, routers, convolutions and vectors. None
            derives it.
        betas: AdamW's decay rates.
        weight_decay: AdamW's weight decay; vectors never decay. None derives it.
        beside: Scale, learning rate and weight decay of the matrices, to derive from: under
            `MatchRmsAdamW` AdamW gets the same two numbers, else 3e-3 and 0.
        overrides: Exceptions, by role or by pattern on names: `{Role.CONV: Role.HIDDEN}` gives
            convolutions the optimizer's rule, `{"*.layers.0.*": Route(lr=1e-3)}` a layer its own
            learning rate, `{"decoder.*": AdamWRule()}` excludes; see `routing.route.Overrides`.
        stacklevel: Of the warning, as in `warnings.warn`: 1 is the caller.

    Warns:
        UserWarning: If no parameter is left for the optimizer's rule, or AdamW gets what may be
            matrices: kernels, raw parameters of no known role. An override ends the warning.

    Raises:
        ValueError: If an override matches nothing, or parameters without names are given any.
    """
    lr, weight_decay = _derived(lr, weight_decay, beside)
    if isinstance(params, Tensor):
        return params  # for torch to refuse: its rows are not parameters
    if not isinstance(params, nn.Module):
        params = list(cast(Iterable[object], params))
        if not params or not all(isinstance(entry, tuple) for entry in params):
            if overrides:
                raise ValueError(
                    f"overrides go by roles and names, and parameters without names have none: got "
                    f"{list(overrides)}; pass the model or model.named_parameters()"
                )
            return params
    vector = Route(rule=AdamWRule(betas[1]), lr=lr, momentum=betas[0], weight_decay=0.0)
    table: dict[Role | str, Route] = {
        role: replace(vector, weight_decay=weight_decay) for role in Role
    }
    table |= dict.fromkeys(MATRIX_ROLES, Route())
    table[Role.VECTOR] = vector
    named = cast(nn.Module, params)
    return route_and_warn(named, table, overrides, stacklevel=stacklevel + 1)
