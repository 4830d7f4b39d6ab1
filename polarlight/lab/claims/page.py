"""Page `docs/claims.md`: a verdict per claim, with the numbers behind it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from polarlight.lab.claims.claim import SMALL, Claim
from polarlight.lab.claims.results import Result, findings, result_of, verdict
from polarlight.lab.claims.verdict import Verdict
from polarlight.lab.train.model import GPT
from polarlight.lab.train.settings import Plan

HEAD = """# Claims, tested

Written by `polarlight reproduce --page docs/claims.md`; numbers come from `polarlight reproduce
NAME`. Verdicts hold at the reduced size and nowhere else: a part counts as reproduced if its
estimate lies two errors on the claimed side, as not reproduced if it lies two errors on the other,
and is undecided in between; a claim is reproduced if all of its parts are. Errors come from the
spread between seeds, pooled over the arms compared. Learning rates were swept per arm on a seed of
their own, beyond an edge by a factor of two at a time, twice at most; where the best is at the
edge even so, a better one may lie beyond it.
"""


def write_claims(claims: Sequence[Claim], out: Path | None, path: Path) -> None:
    """Write the page from the results in `out` and from those shipped with polarlight."""
    found = {claim.name: result_of(claim, out) for claim in claims}
    path.write_text("\n".join(_lines(claims, found)) + "\n", encoding="utf-8")


def _lines(claims: Sequence[Claim], found: Mapping[str, Result | None]) -> Iterator[str]:
    yield HEAD
    spent = sum(result["cpu_seconds"] for result in found.values() if result)
    yield f"Processor time of all runs below: {spent / 60:.0f} core minutes; runs that several"
    yield "claims share count for each of them.\n"
    yield "| claim | verdict | seeds | runs |"
    yield "|---|---|---|---|"
    for claim in claims:
        result = found[claim.name]
        seeds = result["seeds"] if result else claim.seeds
        word = verdict(claim, result)
        runs = _runs(result) if result else claim.runs()
        yield f"| [{claim.name}](#{claim.name}) | {word} | {seeds} | {runs} |"
    for claim in claims:
        yield from _section(claim, found[claim.name])


def _runs(result: Result) -> int:
    """Return the number of runs behind a result, with its sweeps."""
    arms = result["arms"].values()
    return sum(len(arm["sweep"]) + len(arm["samples"]["loss"]) for arm in arms)


def _section(claim: Claim, result: Result | None) -> Iterator[str]:
    yield f"\n## {claim.name}\n"
    yield f"{claim.says}\n"
    yield f"Source: {claim.source}.\n"
    if claim.notes:
        yield f"{claim.notes}\n"
    if result is None:
        yield f"**{Verdict.NOT_RUN.capitalize()}.** `polarlight reproduce {claim.name}`:"
        yield f"{claim.runs()} runs, {estimate(claim)}. Its checks:\n"
        yield from (f"- {check.says}" for check in claim.checks)
        return
    yield f"**{verdict(claim, result).capitalize()}**, {_setting(result)}.\n"
    yield from (f"- {finding}" for finding in findings(claim, result))
    yield ""
    yield from _table(claim, result)


def _setting(result: Result) -> str:
    changes = ", ".join(f"{key} = {value}" for key, value in result["changes"].items())
    minutes = f"{result['cpu_seconds'] / 60:.0f} core minutes"
    changed = f" with {changes}" if changes else ""
    return f"{result['seeds']} seeds{changed}, {minutes}, torch {result['versions']['torch']}"


def _table(claim: Claim, result: Result) -> Iterator[str]:
    arms = result["arms"]
    names = claim.measures()
    yield f"| arm | lr | {' | '.join(names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    for label, arm in arms.items():
        cells = " | ".join(_cell(arm["samples"].get(name, [])) for name in names)
        yield f"| {label} | {_rate(arm)} | {cells} |"


def _rate(arm: Mapping[str, Any]) -> str:
    """Return an arm's learning rate, its sweep, and a note if a better one may lie outside."""
    swept = [float(lr) for lr in arm["sweep"]]
    if len(swept) < 2:
        return f"{arm['lr']:g} (not swept)"
    words = ", ".join(f"{lr:g}" for lr in swept)
    edge = "; at the edge" if arm["lr"] in (min(swept), max(swept)) else ""
    return f"{arm['lr']:g} (of {words}{edge})"


def _cell(samples: Sequence[float]) -> str:
    samples = [x for x in samples if not math.isnan(x)]
    if not samples:
        return "-"
    spread = f" ± {stdev(samples):.2g}" if len(samples) > 1 else ""
    return f"{fmean(samples):.4g}{spread}"


SECONDS_PER_STEP = 0.095
"""Of one core, at `SMALL`: of the runs behind the first results, 19 s each."""


def estimate(claim: Claim) -> str:
    """Return the processor time of a claim in words, by steps, tokens and parameters."""
    steps = 0.0
    for label, arm in claim.arms.items():
        runs = claim.seeds + (len(arm.lrs) if len(arm.lrs) > 1 and label not in claim.lr_of else 0)
        plan = claim.plan_of(label)
        steps += runs * plan.steps * _work(plan) / _work(SMALL)
    return f"about {steps * SECONDS_PER_STEP / 60:.0f} core minutes"


def _work(plan: Plan) -> float:
    with torch.device("meta"):
        return plan.tokens_per_step * float(GPT(plan.model(256)).active_parameter_count())
