"""Many small experts starve fewer neurons than one wide MLP."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polarlight.diagnostics.spectra import row_shares, starved
from polarlight.lab.claims.arms import MUON
from polarlight.lab.claims.claim import Area, Claim
from polarlight.lab.claims.verdict import lower
from polarlight.lab.train.loop import Run
from polarlight.linalg import ExactPolar
from polarlight.routing.roles.names import block_and_half

STARVED = 0.1


@torch.no_grad()
def _rows(run: Run) -> dict[str, float]:
    """Share of gate and up rows that the momentum's polar factor starves, over all matrices."""
    groups = (g for g in run.optimizer.param_groups if g["role"] in ("gate_up", "expert"))
    shares = [
        starved(row_shares(ExactPolar()(M)), STARVED).reshape(-1)
        for group in groups
        for M in _momenta(run, group)
    ]
    return {"starved gate and up rows": float(torch.cat(shares).mean())}


def _momenta(run: Run, group: Mapping[str, Any]) -> Iterator[Tensor]:
    """The momenta of gate and up matrices, [..., neurons, width]."""
    for name, p in zip(group["param_names"], group["params"], strict=True):
        parts = group["view"].split(run.optimizer.state[p]["momentum_buffer"])
        for i, M in enumerate(parts):
            if block_and_half(name, i, len(parts)) is not None:
                yield M


_MUON = replace(MUON, finish=_rows)

CLAIM = Claim(
    name="experts",
    says="Fine-grained experts hide Muon's failure: at equal parameters, many small experts, whose "
    "matrices are no longer tall, starve fewer neurons than one wide MLP.",
    source="ours; by the mathematics of polar factors, whose rows are even where there are no more "
    "rows than columns",
    area=Area.STARVATION,
    dated="2026-11-24",
    arms={
        "dense": replace(_MUON, changes={"expansion": 8.0}),
        "4 experts, tall": replace(
            _MUON, changes={"architecture": "moe", "experts": 4, "expert_expansion": 2.0}
        ),
        "16 experts, wide": replace(
            _MUON, changes={"architecture": "moe", "experts": 16, "expert_expansion": 0.5}
        ),
    },
    checks=(
        lower("16 experts, wide", "dense", measure="starved gate and up rows"),
        lower("16 experts, wide", "4 experts, tall", measure="starved gate and up rows"),
        lower("4 experts, tall", "dense", measure="starved gate and up rows"),
    ),
    notes="Equal parameters, two experts per token. Read off the momentum at the end, as Muon "
    "would use it.",
)
