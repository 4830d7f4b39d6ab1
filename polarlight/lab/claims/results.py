"""Results: what recorded runs say of a claim."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polarlight.lab.claims.claim import SWEEP_SEED, Claim, spec_for
from polarlight.lab.claims.store import SHIPPED, RunRecord, RunStore, run_setting
from polarlight.lab.claims.verdict import Finding, Samples, Verdict, judged, overall, p_of_claim
from polarlight.lab.statistics import LEVEL, holm
from polarlight.lab.tuning import Sweep

Result = Mapping[str, Any]


def result_of(
    claim: Claim, out: Path | None = None, shipped: Iterable[RunRecord] | None = None
) -> Result | None:
    """Return the result in a folder of runs, else that of the shipped runs, else None.

    Args:
        claim: The claim.
        out: A folder of runs.
        shipped: The shipped runs, for a caller with many claims; None reads them.
    """
    path = out and out / f"{claim.name}.json"
    if path and path.exists():
        found: Result = json.loads(path.read_text(encoding="utf-8"))
        return found
    return result_from(claim, RunStore([SHIPPED]) if shipped is None else shipped)


def result_from(claim: Claim, runs: Iterable[RunRecord]) -> Result | None:
    """Return the result of a claim from recorded runs of any claim; None where an arm has none.

    Only runs on one corpus count, that of most records. Each arm has its best swept learning rate.
    """
    by_arm = _matching(claim, runs)
    if set(by_arm) != set(claim.arms):
        return None
    data = Counter(r.data for found in by_arm.values() for r in found).most_common(1)[0][0]
    by_arm = {label: [r for r in found if r.data == data] for label, found in by_arm.items()}
    arms = {label: _arm(claim, label, by_arm) for label in claim.arms}
    if not all(arm["samples"].get("loss") for arm in arms.values()):
        return None
    used = [r for label, found in by_arm.items() for r in _used(found, arms[label]["lr"])]
    return about(claim, used, {}) | {"arms": arms}


def about(claim: Claim, used: Iterable[RunRecord], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result rests on beside its samples."""
    used = {(r.setting, r.data): r for r in used}.values()
    return {
        "claim": claim.name,
        "steps": claim.plan.steps,
        "changes": dict(changes),
        "cpu_seconds": round(sum(r.cpu_seconds for r in used), 1),
        "runs": len(used),
        "dates": sorted({r.date for r in used}),
        "torch": sorted({r.versions["torch"] for r in used}),
        "machines": sorted({machine_of(r) for r in used}),
    }


def machine_of(record: RunRecord) -> str:
    """Return the machine of a run in words."""
    hardware = record.hardware
    units = hardware.get("vector units")
    return hardware["device"] + (f" ({units})" if units else "")


def _matching(claim: Claim, runs: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return the records by arm whose setting is that of the claim as it stands."""
    runs, found = list(runs), dict[str, list[RunRecord]]()
    for label, arm in claim.arms.items():
        setting, spec = run_setting(arm, claim.plan_of(label)), spec_for(arm, 1.0, 0)
        settings = {
            (lr, seed): setting(replace(spec, lr=lr, seed=seed))
            for lr, seed in {(r.lr, r.seed) for r in runs}
        }
        mine = [r for r in runs if r.setting == settings[r.lr, r.seed]]
        if mine:
            found[label] = mine
    return found


def _arm(claim: Claim, label: str, by_arm: Mapping[str, list[RunRecord]]) -> dict[str, Any]:
    """Return an arm's learning rate, sweep and samples."""
    own = claim.lr_of.get(label, label)
    sweep = {r.lr: r.measures["loss"] for r in by_arm[own] if r.seed == SWEEP_SEED}
    lrs = claim.arms[own].lrs
    best = lrs[0] if len(lrs) == 1 or not sweep else _best(Sweep.of(sweep))
    lr = best * claim.lr_factor.get(label, 1.0)
    told = {f"{rate:g}": loss for rate, loss in sorted(sweep.items())} if label == own else {}
    chosen = [r for r in by_arm[label] if r.lr == lr and r.seed != SWEEP_SEED]
    return {"lr": lr, "sweep": told, "samples": samples(chosen, claim.measures(label))}


def samples(runs: Iterable[RunRecord], measures: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return by measure: one number per seed, seeds as text as in JSON."""
    ordered = sorted(runs, key=lambda r: r.seed)
    return {
        name: {str(r.seed): r.measures[name] for r in ordered if name in r.measures}
        for name in measures
    }


def _best(sweep: Sweep) -> float:
    return sweep.rates[sweep.best]


def _used(found: Iterable[RunRecord], lr: float) -> list[RunRecord]:
    return [r for r in found if r.seed == SWEEP_SEED or r.lr == lr]


def samples_of(result: Result) -> Samples:
    """Return by arm and measure: a number per seed."""
    return {
        label: {
            name: {int(seed): x for seed, x in found.items()}
            for name, found in arm["samples"].items()
        }
        for label, arm in result["arms"].items()
    }


def findings(claim: Claim, result: Result) -> list[Finding]:
    """Return what each check makes of the samples."""
    return judged(claim.checks, samples_of(result))


def verdict(claim: Claim, result: Result | None) -> Verdict:
    """Return what follows for the claim."""
    return Verdict.NOT_RUN if result is None else overall(findings(claim, result))


def page_verdicts(found: Mapping[str, tuple[Claim, Result | None]]) -> dict[str, Verdict]:
    """Return the verdicts of a whole page: reproduced ones hold after Holm over its claims."""
    run = {name: findings(c, r) for name, (c, r) in found.items() if r is not None}
    adjusted = dict(zip(run, holm([p_of_claim(f) for f in run.values()]), strict=True))
    verdicts = {}
    for name, (claim, result) in found.items():
        verdicts[name] = verdict(claim, result)
        if verdicts[name] is Verdict.REPRODUCED and adjusted[name] >= LEVEL:
            verdicts[name] = Verdict.UNDECIDED
    return verdicts
