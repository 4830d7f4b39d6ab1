"""Routing of a model: hidden matrices get a method, everything else AdamW."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from polarlight.lookup import check_overrides
from polarlight.routing.left_over import route_and_warn
from polarlight.routing.roles import MATRIX_ROLES, Role
from polarlight.routing.route import Overrides, Route
from polarlight.rule import Scale
from polarlight.rules.adamw import AdamWRule
from polarlight.rules.shared_arguments import check_adamw
from polarlight.stages.scales import MatchRmsAdamW

AUX_LR = 3e-3
"""Learning rate of AdamW beside rules whose updates are not of AdamW's size."""


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
        ValueError: If an override matches nothing, parameters without names are given any, or a
            number is out of range.
        TypeError: If `overrides` is no mapping.
    """
    check_adamw(lr, betas, weight_decay)
    check_overrides(overrides)
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
