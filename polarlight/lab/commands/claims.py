"""Command `polarlight reproduce`: run the claims of this literature."""

import os
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from polarlight.lab.claims.claim import Claim
from polarlight.lab.claims.page import estimate, write_claims
from polarlight.lab.claims.registry import CLAIMS, find
from polarlight.lab.claims.results import findings, result_of, verdict
from polarlight.lab.claims.running import Setting, run_claim
from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say

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
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time, one core each. Default: all cores.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs per arm. Default: the claim's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, for larger sizes."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="As for compare. Default: the standard library's sources.")
    ] = None,
) -> None:
    """Test claims about these optimizers, with seeds, sweeps and a decision rule.

    A claim is reproduced, not reproduced, or undecided at the size that was run. Learning rates are
    swept per arm first. Finished runs are kept, and claims share them: the same command resumes.

    ```
    polarlight reproduce --list
    polarlight reproduce down-columns
    polarlight reproduce starvation --set width=256 --set steps=1000 --seeds 6
    polarlight reproduce --all --page docs/claims.md
    ```
    """
    if listing:
        _list(out)
        return
    chosen = list(CLAIMS.values()) if everything else [find(name) for name in names or []]
    if not chosen and page is None:
        raise ValueError("name a claim, or use --all, --list or --page")
    setting = Setting(out, data, jobs or os.cpu_count() or 1, _changes(settings or []), seeds)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for claim in chosen:
            _run(claim, setting)
    except KeyboardInterrupt:
        say("stopped; run the same command again to resume from the last checkpoints")
        raise typer.Exit(130) from None
    target = page or (out / "claims.md" if everything else None)
    if target is not None:
        write_claims(list(CLAIMS.values()), out, target)
        say(f"verdicts: {target}")


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
