"""Processor time of runs that were not run yet, by steps, tokens and parameters."""

from collections.abc import Mapping
from functools import lru_cache

import torch

from polarlight.lab.claims.claim import SMALL, Claim
from polarlight.lab.train.model import GPT
from polarlight.lab.train.settings import Plan

SECONDS_PER_STEP = 0.095
"""Of one core, at `SMALL`: mean of the runs of 2026-11-25, 19 s each, on an AMD EPYC (AVX512)."""


def core_seconds(plan: Plan) -> float:
    """Return the estimated processor time of one run, in seconds.

    Proportional to tokens and active parameters; validation and start are not counted.
    """
    work = plan.tokens_per_step * float(_active(plan))
    base = SMALL.tokens_per_step * float(_active(SMALL))
    return plan.steps * SECONDS_PER_STEP * work / base


def hidden_parameters(plan: Plan) -> int:
    """Return the parameters that a token meets, without embedding and output tables."""
    return _active(plan) - 256 * plan.width * (1 if plan.tied else 2)


@lru_cache(maxsize=256)
def _active(plan: Plan) -> int:
    with torch.device("meta"):
        return int(GPT(plan.model(256)).active_parameter_count())


def estimate(claim: Claim, runs: Mapping[str, int] | None = None) -> str:
    """Return the estimated processor time of a claim's runs, in words.

    Args:
        claim: The claim.
        runs: Number of runs by arm. Default: the whole claim's.
    """
    seconds = 0.0
    for label, arm in claim.arms.items():
        count = claim.seeds + (len(arm.lrs) if len(arm.lrs) > 1 and label not in claim.lr_of else 0)
        count = count if runs is None else runs[label]
        seconds += count * core_seconds(claim.plan_of(label))
    return f"about {seconds / 60:.0f} core minutes"
