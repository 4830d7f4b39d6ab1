"""Command `polarlight track3`: the modded-nanoGPT optimization benchmark."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.display import PLAIN_EVERY
from polarlight.lab.train.loop import device_of
from polarlight.lab.train.recipes import recipe_of, recipes
from polarlight.lab.train.shards import GPT2_VOCAB_SIZE
from polarlight.lab.train.track3.comparison import final_losses, in_words
from polarlight.lab.train.track3.loop import Track3Run
from polarlight.lab.train.track3.published import (
    check,
    described,
    is_full_size,
    number_of,
    verdict,
)
from polarlight.lab.train.track3.settings import (
    HOW_TO_GET_SHARDS,
    PRESETS,
    RULES,
    Track3,
    setting_of,
)
from polarlight.leaderboard import Result, results
from polarlight.leaderboard import record as result_of
from polarlight.lookup import look_up, unknown
from polarlight.rule import Rule


def track3(
    optimizer: Annotated[
        str,
        typer.Option(help=f"Rule of the hidden matrices: {', '.join(RULES)}, or any of compare."),
    ] = "muon",
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "small",
    data: Annotated[
        Path | None, typer.Option(help="FineWeb shards (.bin). Default: embedded data, small only.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the rule.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of the rule.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    record: Annotated[
        int | None,
        typer.Option(help="Result of the leaderboard with its own numbers; see --list."),
    ] = None,
    without: Annotated[
        str, typer.Option(help="Parts of the result to leave out, separated by commas.")
    ] = "",
    show: Annotated[
        bool, typer.Option(help="Print the setting of --record line by line, and stop.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="List the results with steps and parts, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, or a torch device.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder. Default: runs/track3/...", callback=options.new_folder),
    ] = None,
) -> None:
    """Run modded-nanoGPT's optimization benchmark (track 3) with another rule for its matrices.

    Architecture, initial weights, summed loss, data order, schedules and AdamW are the benchmark's;
    `record-12` and `record-36` are full size and need its shards. Losses of Muon are compared with
    the published ones. The same command resumes. Finished runs of one preset are compared with
    Muon's, seed by seed.

    `--record N` runs a result of the leaderboard with all of its parts, and its own rates and
    initial weights: at reduced width with a scaled schedule, or as published with `--preset full`,
    where the last loss is held against the published one. `--show` prints the setting.

    ```
    polarlight track3 --optimizer aurora-tall
    polarlight track3 --preset record-12 --data data/fineweb10B
    polarlight track3 --record 46 --without tail-ema,row-floor
    polarlight track3 --record 46 --preset full --show
    polarlight track3 --record 46 --preset full --data data/fineweb10B
    ```
    """
    if list_:
        _list_results()
        return
    setting = _setting(preset, seed, lr, weight_decay, steps)
    what, name = _asked(optimizer, record, setting, steps, (lr, weight_decay), without, preset)
    if isinstance(what, Result):
        setting = setting_of(what, setting)
    if show:
        _show(what, setting)
        return
    if data is None and preset != "small":
        raise ValueError(f"--preset {preset} needs --data; {HOW_TO_GET_SHARDS}")
    if preset != "small":
        options.require_gpu(preset, device, small="small", anyway="--device cpu")
    where = device_of(device)
    corpus = load_corpus(data, vocab_size=GPT2_VOCAB_SIZE if preset != "small" else None)
    folder = out or Path("runs") / "track3" / preset / name / f"seed{seed}"
    _train(Track3Run(setting, what, corpus, folder, where), name, what)
    _say_verdict(setting, name, what, folder)
    if out is None:
        for words in in_words(final_losses(folder.parent.parent, folder), preset, corpus.unit):
            say(words)


def _asked(
    optimizer: str,
    record: int | None,
    setting: Track3,
    steps: int | None,
    rates: tuple[float | None, float | None],
    without: str,
    preset: str,
) -> tuple[Rule | Result, str]:
    """Return a rule or a result, and its name in paths."""
    if record is None:
        if without:
            raise ValueError("--without leaves out parts of a result; name it: --record 46")
        return _rule(optimizer), optimizer
    name = f"result-{record}" + (f"-without-{without.replace(',', '-')}" if without else "")
    return _result(record, setting, steps, rates, without, preset), name


def _show(what: Rule | Result, setting: Track3) -> None:
    """Print the setting of a result line by line."""
    if not isinstance(what, Result):
        raise ValueError("--show prints the setting of a result; name it: --record 46")
    for line in described(what, setting):
        say(line)


def _say_verdict(setting: Track3, name: str, what: Rule | Result, folder: Path) -> None:
    """Print whether a full-size run ends where the published runs do."""
    number = _number(setting, name, what)
    if number is not None:
        say(verdict(number, final_losses(folder.parent.parent, folder)[folder.parent.name]))


def _result(
    number: int,
    setting: Track3,
    steps: int | None,
    rates: tuple[float | None, float | None],
    without: str,
    preset: str,
) -> Result:
    """Return a result for a run of the setting's length, or of its own at full size."""
    if any(rate is not None for rate in rates):
        raise ValueError("--record has its own learning rates and weight decay; leave them out")
    names = tuple(name.strip() for name in without.split(",") if name.strip())
    own_length = preset != "small" and steps is None
    return result_of(number, steps=None if own_length else setting.steps, without=names)


def _list_results() -> None:
    """Print every covered result with its steps, its loss and its parts."""
    for found in results().values():
        named = ", ".join(part.name for part in found.parts)
        scored = f"{found.loss:.4f} after {found.steps} steps, {found.runs} runs"
        say(f"{found.number:3} {found.title}: {scored}{'; ' if named else ''}{named}")
    say("source: KellerJordan/modded-nanogpt, records/track_3_optimization")


def _setting(
    preset: str, seed: int, lr: float | None, weight_decay: float | None, steps: int | None
) -> Track3:
    base = look_up(preset, PRESETS, "preset")
    given = {"lr": lr, "weight_decay": weight_decay, "steps": steps}
    numbers: dict[str, float | None] = {k: x for k, x in given.items() if x is not None}
    if steps is not None:
        numbers["horizon"] = None  # another length has a schedule of its own
    return replace(base, seed=seed, **numbers)  # type: ignore[arg-type]


def _rule(name: str) -> Rule:
    if name in RULES:
        return RULES[name]
    if name not in recipes():
        raise unknown(name, [*RULES, *recipes()], "unknown rule")
    recipe = recipe_of(name)
    if recipe.groups is not None:
        raise ValueError(f"{name} is a recipe for whole models; choose from {', '.join(RULES)}")
    return recipe.rule()


def _train(run: Track3Run, name: str, what: Rule | Result) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=run.setting.steps, completed=run.step)
        said = time.monotonic()

        def tell(step: int) -> None:
            nonlocal said
            progress.update(task, completed=step)
            if not console.is_terminal and time.monotonic() - said >= PLAIN_EVERY:
                said = time.monotonic()
                say(f"step {step} of {run.setting.steps}")

        for record in run.records(tell):
            if record["kind"] == "validation":
                compared = _compared(run.setting, name, what, record)
                note = f"  ({compared})" if compared else ""
                progress.console.print(
                    f"step {record['step']}: validation {record['loss']:.4f}{note}", highlight=False
                )
    say(f"records: {run.metrics}")


def _compared(setting: Track3, name: str, what: Rule | Result, record: dict[str, Any]) -> str:
    """Return the comparison of a validation loss with the published one, if there is one."""
    number = _number(setting, name, what)
    return "" if number is None else check(number, record["step"], record["loss"])


def _number(setting: Track3, name: str, what: Rule | Result) -> int | None:
    """Return the published result that a run is, None if it is none."""
    if isinstance(what, Result):
        return what.number if is_full_size(setting, what) else None
    return number_of(setting) if name == "muon" else None
