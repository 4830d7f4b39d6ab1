"""Trains the preset `quick` under variants of Aurora and their neighbours, to choose defaults.

    python -m benchmarks.aurora_variants --seeds 3 --out runs/aurora-variants

Prints mean and spread of the final validation loss; resumable, like `polarlight compare`.
"""

import argparse
from pathlib import Path

from rich.console import Console

import polarlight as pl
from polarlight.lab.claims.solvers import PolarFirst
from polarlight.lab.train import recipes
from polarlight.lab.train.compare import Comparison, first_interrupt, specs
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.display import Display
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.lab.train.report import write_report
from polarlight.lab.train.settings import PRESETS

SIX = pl.linalg.NewtonSchulz(pl.linalg.polar_express(6))
AUTO = pl.linalg.AutoPolar()
SOLVERS = {
    "release": pl.rules.BalancedPolar(
        pl.linalg.NewtonSchulz(pl.linalg.schedules.SIMPLE_QUINTIC), 2, 0.5
    ),
    "release-1": pl.rules.BalancedPolar(SIX, 1),
    "release-2": pl.rules.BalancedPolar(SIX, 2, 0.5),
    "release-2-shape": pl.rules.BalancedPolar(SIX, 2, None),
    "release-3": pl.rules.BalancedPolar(SIX, 3, 0.5),
    "quick-2": pl.rules.BalancedPolar(AUTO, 2, 0.5),
    "paper-2": pl.rules.FeedbackPolar(SIX, 2),
    "paper-3": pl.rules.FeedbackPolar(SIX, 3),
    "polar-first-2": PolarFirst(SIX, 2),
    "polar-first-3": PolarFirst(SIX, 3),
    "warm": pl.rules.WarmPolar(),
    "warm-six": pl.rules.WarmPolar(SIX),
    "warm-still": pl.rules.WarmPolar(follow=0.0),
    "warm-shape": pl.rules.WarmPolar(exponent=None),
    "riemannian": pl.rules.RiemannianPolar(SIX),
}
VARIANTS = {
    **{
        f"aurora-{name}": (lambda solver=solver: pl.rules.aurora(solver))
        for name, solver in SOLVERS.items()
    },
    "muon-auto": pl.rules.muon,
    "muon-jordan": lambda: pl.rules.muon(polar=pl.linalg.NewtonSchulz(pl.linalg.schedules.JORDAN)),
    "muon-exact": lambda: pl.rules.muon(polar=SIX),
    "normuon-auto": pl.rules.normuon,
    "normuon-exact": lambda: pl.rules.normuon(polar=SIX),
    "unormuon-exact": lambda: pl.rules.unormuon(polar=SIX),
    "freon": pl.rules.freon,
    "kaon": pl.rules.kaon,
    "polar-adamw": pl.rules.polar_adamw,
    "soap": pl.rules.soap,
    "kl-soap": pl.rules.kl_soap,
    "polargrad": lambda: pl.rules.polargrad(polar=SIX),
    "muoneq-original": lambda: pl.rules.muoneq(polar=SIX, scale=pl.stages.Original()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", default="0.02", help="learning rates, by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/aurora-variants"))
    options = parser.parse_args()
    known = {
        name: TrainingRecipe(rule=make, lr=0.02, about=name) for name, make in VARIANTS.items()
    }
    recipes.RECIPES = {**recipes.RECIPES, **known}
    sweep = {"lr": [float(lr) for lr in options.lr.split(",")]}
    runs = specs(options.variants.split(","), options.seeds, sweep)
    comparison = Comparison(PRESETS["quick"], runs, load_corpus(None), options.out)
    with first_interrupt() as stop, Display(runs, comparison.plan, Console()) as view:
        comparison.train(view, stop)
    write_report(
        comparison.histories(),
        comparison.about("python -m benchmarks.aurora_variants"),
        options.out / "report",
    )


if __name__ == "__main__":
    main()
