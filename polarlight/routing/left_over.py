"""A warning about parameters that AdamW gets although a rule for matrices was named."""

import warnings
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from polarlight.routing.roles import Part, Role
from polarlight.routing.route import (
    Overrides,
    ParamGroup,
    Routed,
    Table,
    groups_of,
    is_elementwise,
    resolve,
)

_KERNELS = 0.1
"""Kernels are worth a word from this share of all trainable parameters on."""

_NAMED = 3


def route_and_warn(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    table: Table,
    overrides: Overrides | None = None,
    *,
    stacklevel: int,
) -> list[ParamGroup]:
    """Return param groups as `route` does; warn if AdamW gets parameters that may be matrices.

    Args:
        model: As for `route`, like the next two.
        table: Routes.
        overrides: Exceptions.
        stacklevel: As in `warnings.warn`, counted from the caller.
    """
    routed = resolve(model, table, overrides)
    warn_of_left_over(routed, stacklevel=stacklevel + 1)
    return groups_of(routed)


def warn_of_left_over(routed: Sequence[Routed], *, stacklevel: int) -> None:
    """Warn once if no parameter gets the optimizer's rule, or AdamW gets possible matrices.

    These are raw parameters that nothing is known of, and kernels if they are many. An override
    says that a parameter is meant to be where it is.

    Args:
        routed: Every parameter with its route.
        stacklevel: As in `warnings.warn`, counted from the caller.
    """
    trained = [found for found in routed if found.assignment.parameter.requires_grad]
    elementwise = [found for found in trained if is_elementwise(found.entry)]
    left = [found for found in elementwise if found.keys[0] is None and _may_be_matrix(found)]
    if trained and len(elementwise) == len(trained) and not any(f.keys[0] for f in trained):
        share = f"no parameter gets the optimizer's rule; AdamW takes {_share(trained, trained)}"
        warnings.warn(_warning_text(share, left or trained), UserWarning, stacklevel + 1)
        return
    kernels = [found for found in left if found.assignment.role is Role.CONV]
    if _entries(kernels) < _KERNELS * _entries(trained):
        left = [found for found in left if found not in kernels]
    if left:
        share = f"AdamW takes what may be matrices, {_share(left, trained)}"
        warnings.warn(_warning_text(share, left), UserWarning, stacklevel + 1)


def _may_be_matrix(routed: Routed) -> bool:
    """Return whether AdamW may be a mistake: role unknown, or a plain convolution kernel."""
    assignment = routed.assignment
    if assignment.role is Role.CONV:
        return assignment.part not in (Part.DEPTHWISE, Part.PATCH)
    return not assignment.known


def _entries(some: Sequence[Routed]) -> int:
    """Return the number of entries of all these parameters together."""
    return sum(found.assignment.parameter.numel() for found in some)


def _share(some: Sequence[Routed], trained: Sequence[Routed]) -> str:
    """Format the entries of some parameters as per cent of those trained."""
    return f"{_entries(some) / max(_entries(trained), 1):.0%} of the trainable parameters"


def _warning_text(start: str, listed: Sequence[Routed]) -> str:
    """Return the warning's text: up to three of the listed parameters, and overrides to type."""
    first = [f"{f.assignment.name} {tuple(f.assignment.parameter.shape)}" for f in listed[:_NAMED]]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    if any(found.assignment.role is Role.CONV for found in listed):
        key = "Role.CONV"
    else:
        key = repr(listed[0].assignment.name) if _may_be_matrix(listed[0]) else "pattern or role"
    return (
        f"{start}: {', '.join(first)}{more}. overrides={{{key}: Role.HIDDEN}} gives them the rule, "
        f"overrides={{{key}: rules.AdamWRule()}} keeps AdamW without this warning"
    )
