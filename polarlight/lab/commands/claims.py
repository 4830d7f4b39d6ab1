"""Command `polarlight reproduce`: run the claims of this literature."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from polarlight.lab.claims.claim import Claim
from polarlight.lab.claims.cost import estimate
from polarlight.lab.claims.page import write_claims, write_figures
from polarlight.lab.claims.registry import CLAIMS, GROUPS, find, parts_of
from polarlight.lab.claims.results import findings, result_of, verdict
from polarlight.lab.claims.running import Setting, count_missing, run_claim
from polarlight.lab.claims.speedup.plan import METHODS, SIZES
from polarlight.lab.claims.speedup.running import Place
from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.commands.speedup import NAME, Asked, speedup

Names = Annotated[list[str] | None, typer.Argument(help="Claims; `--list` shows them.")]


def reproduce(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="Run every claim.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Show the claims and stop.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of runs and results.", callback=options.new_folder)
    ] = Path("runs/claims"),
    page: Annotated[
        Path | None,
        typer.Option(
            help="Write all verdicts to this file. With --all: OUT/claims.md.",
            callback=options.new_file,
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Folder in which finished runs are recorded. Default: OUT."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time, one core each. Default: all cores.", min=1)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs per arm. Default: the claim's.", min=1)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, for larger sizes."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="As for compare. Default: the standard library's sources.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help=f"Of `speedup`: {', '.join(SIZES)}. Default: small.")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(help="Of `speedup` and `starvation-map`: parts of the plan, by commas."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help=f"Of `speedup`, by commas: {', '.join(METHODS)}.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print thresholds, runs and processor time and stop.")
    ] = False,
    results: Annotated[
        bool, typer.Option("--results", help="Of `speedup`: print what is recorded and stop.")
    ] = False,
) -> None:
    """Test claims about these optimizers, with seeds, sweeps and a decision rule.

    A claim is reproduced, not reproduced, or undecided at the size that was run. Learning rates are
    swept per arm first. Finished runs are kept, and claims share them: the same command resumes,
    and runs that polarlight ships are not trained again.

    ```
    polarlight reproduce --list
    polarlight reproduce down-columns
    polarlight reproduce starvation --set width=256 --set steps=1000 --seeds 6
    polarlight reproduce --all --page docs/claims.md
    polarlight reproduce starvation-map --parts 64x2-250
    polarlight reproduce speedup --size small --plan
    polarlight reproduce speedup --size small --parts 0.03M --methods adamw,muon,aurora
    ```
    """
    if listing:
        _list(out)
        return
    names = names or []
    if names == [NAME]:
        given = {"--all": everything, "--page": page, "--seeds": seeds, "--set": settings}
        _refuse(given, f"{NAME} does not read", "its plan fixes sizes and seeds: --plan shows them")
        asked = Asked(size or "small", parts, methods, plan, results)
        with _stopping():
            speedup(asked, Place(out, records, data, jobs or os.cpu_count() or 1))
        return
    _refuse(
        {"--size": size, "--methods": methods, "--results": results},
        f"only {NAME} reads",
        f"as in `polarlight reproduce {NAME} --size small`, without other claims",
    )
    chosen = _chosen(names, parts, everything)
    if not chosen and page is None:
        raise ValueError("name a claim, or use --all, --list or --page")
    changes = _changes(settings or [])
    setting = Setting(out, data, jobs or os.cpu_count() or 1, changes, seeds, records)
    if plan:
        _show_plan(chosen, setting)
        return
    out.mkdir(parents=True, exist_ok=True)
    with _stopping():
        for claim in chosen:
            _run(claim, setting)
    target = page or (out / "claims.md" if everything else None)
    if target is not None:
        write_claims(list(CLAIMS.values()), out, target)
        write_figures(target.parent / "images", out)
        say(f"verdicts: {target}")


def _refuse(given: Mapping[str, object], why: str, way_out: str) -> None:
    """Raise ValueError if one of these options was given; they would be ignored."""
    named = [name for name, value in given.items() if value]
    if named:
        raise ValueError(f"{why} {', '.join(named)}; {way_out}")


def _chosen(names: list[str], parts: str | None, everything: bool) -> list[Claim]:
    """Return the claims of these names, a group's being its parts or the named ones; or all."""
    if everything or GROUPS.keys().isdisjoint(names):
        owners = f"{NAME} and {', '.join(GROUPS)} have parts"
        _refuse({"--parts": parts}, "no plan that was named reads", owners)
    if everything:
        _refuse({", ".join(names): names}, "with --all leave out", "it runs every claim")
        return list(CLAIMS.values())
    wanted = [part.strip() for part in (parts or "").split(",") if part.strip()]
    found: list[Claim] = []
    for name in names:
        found += parts_of(name, wanted) if name in GROUPS else [find(name)]
    return found


def _show_plan(claims: list[Claim], setting: Setting) -> None:
    """Print what would be run, at which thresholds, and what is not recorded yet of it."""
    for claim in map(setting.of, claims):
        say(f"{claim.name}: {claim.runs()} runs, {estimate(claim)}; thresholds of {claim.dated}:")
        missing = count_missing(claim, setting)
        say(f"  not recorded yet: {sum(missing.values())} runs, {estimate(claim, missing)}")
        for check in claim.checks:
            say(f"  - {check.says}")


@contextmanager
def _stopping() -> Iterator[None]:
    """Leave with status 130 on Ctrl-C and say how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; run the same command again to resume from the last checkpoints")
        raise typer.Exit(130) from None


def _changes(settings: list[str]) -> tuple[tuple[str, object], ...]:
    """Return the changes to a plan as pairs that can be sent to another process."""
    base, new = options.plan("quick", [], {}), options.plan("quick", settings, {})
    names = [text.partition("=")[0].strip() for text in settings]
    return tuple((name, getattr(new, name)) for name in names if hasattr(base, name))


def _list(out: Path) -> None:
    for claim in CLAIMS.values():
        known = result_of(claim, out)
        say(f"{claim.name:<15} {verdict(claim, known)}; {claim.runs()} runs, {estimate(claim)}")
        say(f"    {claim.says}")
    for group, parts in GROUPS.items():
        say(f"{group:<15} {len(parts)} sizes: {', '.join(parts)}; --plan has the cost of each")
    say(f"{NAME:<15} steps of tuned AdamW to reach the same loss; --size small --plan has the cost")


def _run(claim: Claim, setting: Setting) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        least = setting.of(claim).runs()
        task = progress.add_task(claim.name, total=least)
        done = count(1)

        def tell(words: str) -> None:
            finished = next(done)  # sweeps may go on beyond their edges
            total = max(least, finished)
            progress.update(task, completed=finished, total=total, description=words)

        result = run_claim(claim, setting, tell)
    say(f"{claim.name}: {verdict(claim, result)}")
    for finding in findings(claim, result):
        say(f"    {finding}")
