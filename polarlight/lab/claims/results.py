"""Results of claims: their files, and the findings and verdict that follow."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polarlight.lab.claims.claim import Claim
from polarlight.lab.claims.verdict import Finding, Samples, Verdict, overall

SHIPPED = Path(__file__).parent / "results"
"""What was found so far, as it came from `polarlight reproduce`."""

Result = Mapping[str, Any]


def result_of(claim: Claim, out: Path | None = None) -> Result | None:
    """Return the result in a folder of runs, else the one shipped with polarlight, else None."""
    for folder in (out, SHIPPED):
        path = folder and folder / f"{claim.name}.json"
        if path and path.exists():
            found: Result = json.loads(path.read_text(encoding="utf-8"))
            return found
    return None


def samples_of(result: Result) -> Samples:
    """Return a number per seed, by arm and measure."""
    return {label: arm["samples"] for label, arm in result["arms"].items()}


def findings(claim: Claim, result: Result) -> list[Finding]:
    """Return the finding of each check on the samples."""
    return [check(samples_of(result)) for check in claim.checks]


def verdict(claim: Claim, result: Result | None) -> Verdict:
    """Return the verdict on the claim."""
    return Verdict.NOT_RUN if result is None else overall(findings(claim, result))
