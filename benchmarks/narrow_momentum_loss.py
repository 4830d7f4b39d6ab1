"""Effect of a momentum kept in bfloat16 or int8 on the loss, with paired seeds.

    python -m benchmarks.narrow_momentum_loss            # train what is missing, then report
    python -m benchmarks.narrow_momentum_loss --report   # the table again

Trains the preset `demo` (0.6 million parameters, 200 steps) under Muon and Aurora at the recipes'
rates, with the momentum in float32, in bfloat16 (`InBfloat16`, stochastic) and in int8 (`InInt8`,
blocks of 128, nearest). A seed fixes weights and data. Validation loss after the last step, in
nats/token.

Written down before the runs (2026-12-01): eight seeds; each narrow momentum against float32 under
the same rule, paired, four comparisons. "Costs nothing here" needs equivalence within 0.01
nats/token, a tenth of what Muon gains over AdamW in this preset (0.096, `docs/log.md`): two
one-sided tests, p by Holm below 0.05. "Changes the loss" needs a two-sided p by Holm below 0.05.

Each run is one line of `--out`; a run whose line is there is skipped.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from polarlight.lab.statistics import holm, paired
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.loop import Run
from polarlight.lab.train.recipes import recipe_of, spec_of
from polarlight.lab.train.settings import PRESETS, with_changes
from polarlight.stages import InBfloat16, InInt8

RULES = ("muon", "aurora")
KEPT_IN = {
    "float32": lambda momentum: momentum,
    "bfloat16": InBfloat16,
    "int8": InInt8,
}
"""Makes the momentum that is kept from the rule's own."""

MARGIN = 0.01
"""Largest difference that counts as none, in nats/token."""


def recipe(rule, kept_in):
    """Return the recipe of a rule with its momentum kept in a dtype."""
    plain = recipe_of(rule)

    def narrow():
        made = plain.rule()
        return replace(made, momentum=KEPT_IN[kept_in](made.momentum))

    return replace(plain, rule=narrow)


def final_loss(rule, kept_in, seed, plan, corpus):
    """Return the last validation loss of a run in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of(rule, seed=seed)
        run = Run(spec, plan, corpus, Path(folder), recipe(rule, kept_in))
        return [r["loss"] for r in run.records() if r["kind"] == "validation"][-1]


def read(path):
    """Return the losses by (rule, dtype) and seed."""
    losses = {(rule, kept_in): {} for rule in RULES for kept_in in KEPT_IN}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        losses[record["rule"], record["kept in"]][record["seed"]] = record["loss"]
    return losses


def train_missing(path, seeds, steps):
    """Train every run without a line, seed by seed."""
    known, corpus = read(path), load_corpus(None)
    changes = {"steps": steps, "validate_every": 10**9, "neurons_every": 10**9}
    plan = with_changes(PRESETS["demo"], changes)
    about = {**versions(), **hardware(torch.device("cpu"))}
    arms = [(*arm, seed) for seed in range(seeds) for arm in known if seed not in known[arm]]
    for rule, kept_in, seed in track(arms, description="training", disable=not arms):
        loss = final_loss(rule, kept_in, seed, plan, corpus)
        record = {"rule": rule, "kept in": kept_in, "seed": seed, "loss": loss, "steps": plan.steps}
        with path.open("a") as file:
            file.write(json.dumps(record | about) + "\n")


def report(losses):
    """Return the table of all arms: differences from float32, and both kinds of p by Holm."""
    narrow = [arm for arm in losses if arm[1] != "float32"]
    found = {arm: paired(losses[arm], losses[arm[0], "float32"]) for arm in narrow}
    differ = holm([difference.p() for difference in found.values()])
    equal = holm([difference.p_equivalent(MARGIN) for difference in found.values()])
    ps = dict(zip(narrow, zip(differ, equal, strict=True), strict=True))
    heads = ("rule", "momentum in", "loss", "to float32 (95 %)", "p differs", f"p within {MARGIN}")
    table = Table(*heads, box=box.MARKDOWN)
    for arm, by_seed in losses.items():
        row = [*arm, f"{fmean(by_seed.values()):.4f}"]
        if arm in found:
            low, high = found[arm].interval()
            row.append(f"{found[arm].estimate:+.4f} ({low:+.4f} to {high:+.4f})")
            row += [f"{p:.3f}" for p in ps[arm]]
        table.add_row(*row)
    return table


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/narrow_momentum_loss.jsonl")
    )
    parser.add_argument("--report", action="store_true", help="report what is there; train nothing")
    options = parser.parse_args()
    if not options.report:
        train_missing(options.out, options.seeds, options.steps)
    Console(width=120).print(report(read(options.out)))


if __name__ == "__main__":
    main()
