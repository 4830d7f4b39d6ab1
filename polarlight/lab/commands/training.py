"""Commands `polarlight compare` and `polarlight explain`."""

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import polarlight
from polarlight.integrations.transformers import explain_hf
from polarlight.lab.commands import options
from polarlight.lab.commands.console import console, say
from polarlight.lab.train.compare import SWEEPABLE, Comparison, Watcher, first_interrupt, specs
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.display import Display
from polarlight.lab.train.memory import require_model
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import Architecture
from polarlight.lab.train.parallel import Parallel, team
from polarlight.lab.train.recipes import build, recipes, spec_of
from polarlight.lab.train.report import results_in_words, write_report
from polarlight.lab.train.settings import PRESETS, Plan, Spec
from polarlight.rules.with_adamw import AUX_LR

KNOWN = "Optimizers:\n\n" + "\n".join(f"- **{name}**: {r.about}" for name, r in recipes().items())
_NAMES = ", ".join(asdict(Plan()))

Preset = Annotated[str, typer.Option(help=f"Sizes to start from: {', '.join(PRESETS)}.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help=f"Change the preset. Names: {_NAMES}."),
]
Model = Annotated[
    str | None,
    typer.Option(
        help=f"{' or '.join(Architecture)}: an MLP per layer, or a mixture of experts of as many "
        "neurons per token (--set experts=, experts_per_token=, expert_expansion=).",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Text file, folder of text, or token shards (.bin, llm.c's format). Default: the "
        "sources of the running Python's standard library, as bytes.",
    ),
]
VocabSize = Annotated[int | None, typer.Option(help="Vocabulary of token shards.")]
Seeds = Annotated[int, typer.Option(help="Runs per optimizer, with seeds 0, 1, ...")]


def compare(
    optimizers: Annotated[
        str, typer.Option(help="Names, separated by commas; the list is below.")
    ] = "adamw,muon,normuon,aurora",
    seeds: Seeds = 1,
    preset: Preset = "quick",
    model: Model = None,
    data: Data = None,
    vocab_size: VocabSize = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2", help=f"Train with each value. Names: {', '.join(SWEEPABLE)}."
        ),
    ] = None,
    settings: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of results. Default: runs/PRESET, or runs/PRESET-MODEL.",
            callback=options.new_folder,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Delete these runs and start again.")] = False,
    parallel: Annotated[
        str | None,
        typer.Option(help=f"Under torchrun, how a run is shared: {', '.join(Parallel)}."),
    ] = None,
) -> None:
    """Train one language model under several optimizers and write a report on the runs.

    Every run has the same data order and, per seed, the same initial weights. Stop with Ctrl-C; run
    the same command again to resume. Finished runs are skipped.

    ```
    polarlight compare --preset demo --seeds 3
    polarlight compare --optimizers muon,aurora --seeds 3
    polarlight compare --optimizers aurora --sweep lr=0.01,0.02,0.04
    polarlight compare --model moe --optimizers adamw,muon-rms,symmetric
    polarlight compare --data text/ --set mlp=relu2 --set expansion=8
    torchrun --nproc-per-node 2 -m polarlight compare --parallel fsdp
    ```
    """
    with team(parallel) as processes:
        kind = options.architecture(model)
        plan = trained_plan(preset, settings, {"steps": steps, "architecture": kind})
        runs = specs(options.optimizers(optimizers), seeds, options.sweep(sweep or []))
        corpus = load_corpus(data, vocab_size=vocab_size)
        corpus.require(plan.context)
        name = preset if kind is None else f"{preset}-{kind}"
        comparison = Comparison(plan, runs, corpus, out or Path("runs") / name, processes)
        if not processes.leads:
            comparison.train(Silent(), lambda: False)
            return
        say(f"{corpus.name}: {len(corpus.train):,} training tokens")
        say(f"sha256 {corpus.fingerprint}")
        if overwrite:
            comparison.clear()
        _train(comparison)


def trained_plan(preset: str, settings: list[str] | None, changes: Mapping[str, Any]) -> Plan:
    """Return the plan of a training run: `options.plan`, checked against the devices."""
    plan = options.plan(preset, settings or [], changes)
    if preset == "gpu":
        options.require_gpu(preset, plan.device, small="quick", anyway="--set device=cpu")
    return plan


class Silent:
    """Watcher without output, for processes other than the first."""

    def follow(self, spec: Spec, record: Mapping[str, Any]) -> None:
        """Do nothing."""


REPORT_EVERY = 120.0
"""Seconds after which the report is written for the first time, and anew."""


class Reporting:
    """Watcher that hands records on, and writes the report of what is there from time to time.

    Args:
        comparison: The runs.
        command: The command line, for the report.
        inner: The watcher that every record is handed to.
    """

    def __init__(self, comparison: Comparison, command: str, inner: Watcher) -> None:
        self._comparison, self._command, self._inner = comparison, command, inner
        self._about: dict[str, Any] = {}
        self._written = time.monotonic()
        self._announced = False

    def follow(self, spec: Spec, record: Mapping[str, Any]) -> None:
        """Hand the record on; after a validation, write the report if it is due."""
        self._inner.follow(spec, record)
        due = time.monotonic() - self._written >= REPORT_EVERY
        if not due or record["kind"] not in ("validation", "finished"):
            return
        page = self.write()
        if not self._announced:
            say(f"report so far: {page} (anew every {REPORT_EVERY / 60:g} minutes)")
            self._announced = True

    def write(self) -> Path:
        """Write the report and return its path."""
        self._about = self._about or self._comparison.about(self._command)
        out = self._comparison.out / "report"
        page = write_report(self._comparison.histories(), self._about, out)
        self._written = time.monotonic()
        return page

    def in_words(self) -> list[str]:
        """Return the result in sentences."""
        about = self._about or self._comparison.about(self._command)
        return results_in_words(self._comparison.histories(), about)


def _train(comparison: Comparison) -> None:
    """Train, write the report also after an error, and print how to continue."""
    command = shlex.join(["polarlight", *sys.argv[1:]])
    interrupted = False
    view = Display(comparison.specs, comparison.plan, console)
    reporting = Reporting(comparison, command, view)
    try:
        with first_interrupt() as stop, view:
            comparison.train(reporting, stop)
            interrupted = stop()
    finally:
        if comparison.histories():
            with console.status("writing the report"):
                page = reporting.write()
            for words in reporting.in_words():
                say(words)
            say(f"report: {page}")
    if interrupted:
        say(f"stopped and saved; go on with: {command}")
        raise typer.Exit(130)


def explain(
    optimizer: Annotated[str, typer.Option(help="Name of the optimizer.")] = "aurora",
    preset: Preset = "quick",
    model: Model = None,
    vocab_size: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 256,
    settings: Set = None,
    hf: Annotated[
        Path | None,
        typer.Option(
            help="A Hugging Face config.json, or its folder, instead of the preset; nothing is "
            "loaded."
        ),
    ] = None,
    every: Annotated[bool, typer.Option(help="One line per parameter, layers not folded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the rule of every parameter of a model, with the reason; train nothing.

    AdamW's rate beside a rule is the default of the classes, 0.003; `compare` has its own.

    ```
    polarlight explain
    polarlight explain --optimizer normuon --hf Qwen3-0.6B/config.json
    polarlight explain --optimizer symmetric --model moe
    polarlight explain --json > routing.json
    ```
    """
    spec = replace(spec_of(optimizer, seed=0), aux_lr=AUX_LR)
    if hf is not None:
        found = explain_hf(hf, lambda model: build(model, spec))
    else:
        changes = {"architecture": options.architecture(model)}
        config = options.plan(preset, settings or [], changes).model(vocab_size)
        require_model(config, torch.device("cpu"))
        found = polarlight.explain(build(GPT(config), spec))
    say(found.to_json() if as_json else found.table(every=every, width=console.width))
