"""Warnings about parameters that may have the wrong rule: AdamW's or the one for matrices."""

import warnings
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from polarlight.routing.roles import Part, Role
from polarlight.routing.route import (
    Overrides,
    ParamGroup,
    RoutedParam,
    Table,
    groups_of,
    is_elementwise,
    resolve,
)

_KERNELS = 0.1
"""Kernels are worth a word from this share of all trainable parameters on."""

_TABLE = 8
"""Sides of a matrix in this ratio are those of an embedding or output layer rather than hidden."""

_NAMED = 3


def route_and_warn(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    table: Table,
    overrides: Overrides | None = None,
    *,
    stacklevel: int,
) -> list[ParamGroup]:
    """Return param groups as `route` does; warn of matrices under AdamW, embeddings under a rule.

    Args:
        model: As for `route`, like the next two.
        table: Routes.
        overrides: Exceptions.
        stacklevel: As in `warnings.warn`, counted from the caller.
    """
    routed = resolve(model, table, overrides)
    warn_of_matrices_under_adamw(routed, stacklevel=stacklevel + 1)
    if not isinstance(model, nn.Module):
        _warn_of_likely_tables(routed, stacklevel=stacklevel + 1)
    return groups_of(routed)


def warn_of_matrices_under_adamw(routed: Sequence[RoutedParam], *, stacklevel: int) -> None:
    """Warn once if AdamW gets every parameter, or some that may be matrices.

    These are raw parameters that nothing is known of, and kernels if they are many. An override
    says that a parameter is meant to be where it is. Of complex ones the optimizer's error tells.

    Args:
        routed: Every parameter with its route.
        stacklevel: As in `warnings.warn`, counted from the caller.
    """
    trained = [
        found
        for found in routed
        if (p := found.assignment.parameter).requires_grad and not p.is_complex()
    ]
    elementwise = [found for found in trained if is_elementwise(found.entry)]
    left = [found for found in elementwise if found.keys[0] is None and _may_be_matrix(found)]
    if trained and len(elementwise) == len(trained) and not any(f.keys[0] for f in trained):
        text = (
            f"no parameter gets the optimizer's rule; AdamW takes {_share_text(trained, trained)}"
        )
        warnings.warn(_warning_text(text, left or trained), UserWarning, stacklevel + 1)
        return
    kernels = [found for found in left if found.assignment.role is Role.CONV]
    if _entry_count(kernels) < _KERNELS * _entry_count(trained):
        left = [found for found in left if found not in kernels]
    if left:
        text = f"AdamW takes what may be matrices, {_share_text(left, trained)}"
        warnings.warn(_warning_text(text, left), UserWarning, stacklevel + 1)


def _warn_of_likely_tables(routed: Sequence[RoutedParam], *, stacklevel: int) -> None:
    """Warn once of long matrices under the optimizer's rule that may be embeddings or outputs."""
    likely = [
        found
        for found in routed
        if found.assignment.parameter.requires_grad
        and found.assignment.role is Role.HIDDEN
        and found.assignment.part is Part.NONE
        and found.keys[0] is None
        and not is_elementwise(found.entry)
        and _TABLE * min(found.assignment.parameter.shape) <= max(found.assignment.parameter.shape)
    ]
    if likely:
        key = repr(likely[0].assignment.name)
        warnings.warn(
            "names alone do not tell embeddings and output layers with unusual names from hidden "
            f"ones, and these get the optimizer's rule: {_listed(likely)}. Pass the model itself, "
            f"or overrides={{{key}: Role.EMBEDDING}}; Role.HIDDEN ends this warning",
            UserWarning,
            stacklevel + 1,
        )


def _listed(some: Sequence[RoutedParam]) -> str:
    """Format names and shapes of up to three parameters, and the number of the others."""
    first = [f"{f.assignment.name} {tuple(f.assignment.parameter.shape)}" for f in some[:_NAMED]]
    return ", ".join(first) + (f" and {len(some) - _NAMED} more" if len(some) > _NAMED else "")


def _may_be_matrix(routed: RoutedParam) -> bool:
    """Return whether a parameter may need the matrices' rule: unknown role, or a plain kernel."""
    assignment = routed.assignment
    if assignment.role is Role.CONV:
        return assignment.part not in (Part.DEPTHWISE, Part.PATCH)
    return not assignment.known


def _entry_count(some: Sequence[RoutedParam]) -> int:
    """Return the number of entries of all these parameters together."""
    return sum(found.assignment.parameter.numel() for found in some)


def _share_text(some: Sequence[RoutedParam], trained: Sequence[RoutedParam]) -> str:
    """Format the entries of some parameters in per cent of all `trained` ones."""
    return f"{_entry_count(some) / max(_entry_count(trained), 1):.0%} of the trainable parameters"


def _warning_text(start: str, listed: Sequence[RoutedParam]) -> str:
    """Return the text: `start`, up to three `listed` parameters, overrides to move or keep them."""
    if any(found.assignment.role is Role.CONV for found in listed):
        key = "Role.CONV"
    else:
        key = repr(listed[0].assignment.name) if _may_be_matrix(listed[0]) else "pattern or role"
    return (
        f"{start}: {_listed(listed)}. overrides={{{key}: Role.HIDDEN}} gives them the rule, "
        f"overrides={{{key}: rules.AdamWRule()}} keeps AdamW without this warning"
    )
