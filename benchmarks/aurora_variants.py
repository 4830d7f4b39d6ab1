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
from polarlight.lab.train.recipes import Recipe
from polarlight.lab.train.report import write_report
from polarlight.lab.train.settings import PRESETS

SIX = pl.NewtonSchulz(pl.polar_express(6))
AUTO = pl.AutoPolar()
SOLVERS = {
    "release": pl.BalancedPolar(pl.NewtonSchulz(pl.SIMPLE_QUINTIC), 2, 0.5),
    "release-1": pl.BalancedPolar(SIX, 1),
    "release-2": pl.BalancedPolar(SIX, 2, 0.5),
    "release-2-shape": pl.BalancedPolar(SIX, 2, None),
    "release-3": pl.BalancedPolar(SIX, 3, 0.5),
    "quick-2": pl.BalancedPolar(AUTO, 2, 0.5),
    "paper-2": pl.FeedbackPolar(SIX, 2),
    "paper-3": pl.FeedbackPolar(SIX, 3),
    "polar-first-2": PolarFirst(SIX, 2),
    "polar-first-3": PolarFirst(SIX, 3),
    "warm": pl.WarmPolar(),
    "warm-six": pl.WarmPolar(SIX),
    "warm-still": pl.WarmPolar(follow=0.0),
    "warm-shape": pl.WarmPolar(exponent=None),
    "riemannian": pl.RiemannianPolar(SIX),
}
VARIANTS = {
    **{
        f"aurora-{name}": (lambda solver=solver: pl.aurora(solver))
        for name, solver in SOLVERS.items()
    },
    "muon-auto": pl.muon,
    "muon-jordan": lambda: pl.muon(polar=pl.NewtonSchulz(pl.JORDAN)),
    "muon-exact": lambda: pl.muon(polar=SIX),
    "normuon-auto": pl.normuon,
    "normuon-exact": lambda: pl.normuon(polar=SIX),
    "unormuon-exact": lambda: pl.unormuon(polar=SIX),
    "freon": pl.freon,
    "kaon": pl.kaon,
    "polar-adamw": pl.polar_adamw,
    "soap": pl.soap,
    "kl-soap": pl.kl_soap,
    "polargrad": lambda: pl.polargrad(polar=SIX),
    "muoneq-original": lambda: pl.muoneq(polar=SIX, scale=pl.Original()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", default="0.02", help="learning rates, by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/aurora-variants"))
    options = parser.parse_args()
    known = {name: Recipe(rule=make, lr=0.02, about=name) for name, make in VARIANTS.items()}
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
