"""Starved rows and whether they recover: statistics of row shares, kept on the device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polarlight.diagnostics.spectra import spread

THRESHOLDS = (0.01, 0.1, 0.25)
"""A row is starved below this fraction of an equal share; the literature names no single number."""

Record = dict[str, Any]


def share_summary(shares: Tensor) -> Record:
    """Summarize row shares [..., m] as device scalars, mean over leading dimensions.

    `starved`: fraction of rows below each threshold. `spread`: deviation over mean. `min`: the
    least share. `effective`: number of equal rows that would be as uneven, as a fraction of m:
    (sum s)^2 / (m sum s^2) = 1 / (1 + spread^2).
    """
    masks = starved_rows(shares)
    deviation = spread(shares)
    return {
        "starved": by_threshold(masks),
        "spread": deviation.mean(),
        "min": shares.min(),
        "effective": (1 / (1 + deviation.square())).mean(),
    }


def starved_rows(shares: Tensor) -> Tensor:
    """Return masks of the rows below each threshold, [..., m] -> bool [thresholds, ..., m]."""
    return torch.stack([shares < t for t in THRESHOLDS])


def by_threshold(masks: Tensor) -> Record:
    """Return the fraction of True per mask of [thresholds, ..., m], by the threshold's name."""
    fractions = masks.flatten(1).float().mean(dim=1)
    return {f"{t:g}": x for t, x in zip(THRESHOLDS, fractions, strict=True)}


class Persistence:
    """Masks of the rows that ever starved, and of those that starved in every sample since.

    Two masks per name; `state` and `restore` save and load them.
    """

    def __init__(self) -> None:
        self._ever: dict[str, Tensor] = {}
        self._recovered: dict[str, Tensor] = {}

    def __call__(self, name: str, masks: Tensor) -> Record:
        """Add a sample of masks, bool [thresholds, ..., m]; summarize all samples so far.

        Returns:
            `ever`: fraction of rows that starved in some sample. `stayed`: fraction of rows that
            starved in some sample and in every one since; `stayed / ever` is the share of starved
            rows that never recovered.
        """
        ever = self._ever.get(name)
        if ever is None or ever.shape != masks.shape:
            ever, recovered = masks, torch.zeros_like(masks)
        else:
            recovered = self._recovered[name] | (ever & ~masks)
            ever = ever | masks
        self._ever[name], self._recovered[name] = ever, recovered
        return {"ever": by_threshold(ever), "stayed": by_threshold(ever & ~recovered)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrices seen so far."""
        return tuple(self._ever)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the masks for a checkpoint."""
        return {"ever": dict(self._ever), "recovered": dict(self._recovered)}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state` returned."""
        self._ever, self._recovered = dict(state["ever"]), dict(state["recovered"])
