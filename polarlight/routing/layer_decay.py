"""Layer-wise learning-rate decay: lower rates for layers near the input, for fine-tuning."""

from collections.abc import Iterable, Mapping
from typing import Any

from polarlight.lookup import check_groups, check_number
from polarlight.routing.roles import Role

_FIRST = (Role.EMBEDDING, Role.TIED)
"""Roles of parameters that stand before the first block."""


def layerwise_lr_decay(groups: Iterable[Mapping[str, Any]], decay: float) -> list[dict[str, Any]]:
    """Return param groups split by layer, with learning rates that fall toward the input.

        lr of block k of L = lr * decay ** (L - k)        k = 0, ..., L - 1
        lr of embeddings   = lr * decay ** (L + 1)        heads and the last norm keep theirs

    The block of a parameter is the first number in its name (`layers.3.mlp.up_proj.weight`). With
    numbered blocks of several stacks, as in encoder-decoders, equal numbers get equal rates.

    Args:
        groups: Param groups with `param_names` and `lr`: those of a constructed optimizer, or the
            result of `polarlight.route` with a learning rate in each. They are not changed.
        decay: Factor between neighbouring blocks, in (0, 1]; 0.65 to 0.95 is usual.

    Returns:
        New groups for `SpectralOptimizer`. Their order within one original group is by layer.

    Raises:
        ValueError: If `decay` is out of range, a group lacks names or a learning rate, or no name
            has a number.
        TypeError: If `groups` is an optimizer or anything else but groups.

    Source: Howard and Ruder 2018, arXiv 1801.06146 ("discriminative fine-tuning"); the form with
    one power per block is that of ELECTRA, Clark et al. 2020, arXiv 2003.10555.

    Examples:
        >>> import torch, polarlight
        >>> blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(2))
        >>> model = torch.nn.ModuleDict({"layers": blocks})
        >>> groups = polarlight.Muon(model, lr=0.02).param_groups
        >>> groups = polarlight.routing.layerwise_lr_decay(groups, 0.5)
        >>> [(group["param_names"], group["lr"]) for group in groups]
        [(['layers.0.weight'], 0.005), (['layers.1.weight'], 0.01)]
        >>> optimizer = polarlight.SpectralOptimizer(groups)
    """
    check_number("decay", decay)
    if not 0 < decay <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {decay}")
    groups = check_groups("layerwise_lr_decay", groups)
    for i, group in enumerate(groups):
        lacking = [key for key in ("param_names", "lr") if group.get(key) is None]
        if lacking:
            raise ValueError(
                f"param group {i} has no {' and no '.join(lacking)}: pass a model or named "
                "parameters to the optimizer, and a learning rate to every route"
            )
    blocks = [_block_number(name) for group in groups for name in group["param_names"]]
    numbers = [block for block in blocks if block is not None]
    if not numbers:
        raise ValueError(
            "no parameter name has a block number such as 'layers.3.'; set the rates by "
            "overrides={pattern: Route(lr=...)} instead"
        )
    block_count = max(numbers) + 1
    return [part for group in groups for part in _split_by_distance(group, decay, block_count)]


def _split_by_distance(
    group: Mapping[str, Any], decay: float, block_count: int
) -> list[dict[str, Any]]:
    """Return a group split by its blocks' distance from the output, with lr * decay^distance."""
    by_distance: dict[int, list[int]] = {}
    for i, name in enumerate(group["param_names"]):
        block = _block_number(name)
        if block is None:
            distance = block_count + 1 if group.get("role") in _FIRST else 0
        else:
            distance = block_count - block
        by_distance.setdefault(distance, []).append(i)
    per_param = {
        key: value
        for key, value in group.items()
        if isinstance(value, list) and len(value) == len(group["params"])
    }
    return [
        dict(group)
        | {key: [value[i] for i in places] for key, value in per_param.items()}
        | {"lr": group["lr"] * decay**distance}
        for distance, places in sorted(by_distance.items(), reverse=True)
    ]


def _block_number(name: str) -> int | None:
    """Return the first number in a parameter's name, taken for its layer; None without one."""
    return next((int(segment) for segment in name.split(".") if segment.isdecimal()), None)
