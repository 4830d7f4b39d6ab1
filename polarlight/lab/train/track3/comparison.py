"""Finished runs of the benchmark side by side: paired differences, and the benchmark's own rule.

The benchmark compares unpaired means with a known deviation between seeds, 0.0013 at its full size:
a difference counts from (mean_1 - mean_2) / sqrt(1 / n_1 + 1 / n_2) >= 0.004 on.

Source: KellerJordan/modded-nanogpt, track 3 (rules of its README).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from polarlight.lab.statistics import BySeed, against_reference, sentence
from polarlight.lab.statistics.family import ENOUGH
from polarlight.lab.train import history
from polarlight.lab.train.track3.settings import PRESETS

REFERENCE = "muon"
COUNTS_FROM = 0.004
OWN = ("seed", "lr", "weight_decay")
"""Entries of a run's setting in which compared runs may differ."""


def final_losses(folder: Path, like: Path) -> Mapping[str, BySeed]:
    """Return the last losses by optimizer and seed of finished runs with one setting.

    Args:
        folder: Holds OPTIMIZER/seedN folders of runs.
        like: Folder of the run whose data and setting the others must share.
    """
    wanted = _shared(like)
    found: dict[str, dict[int, float]] = {}
    for settings in sorted(folder.glob("*/seed*/settings.json")):
        run = settings.parent
        records = history.read_records(run / "metrics.jsonl")
        losses = [r["loss"] for r in records if r["kind"] == "validation"]
        ended = any(r["kind"] == "finished" for r in records)
        if ended and math.isfinite(losses[-1]) and _shared(run) == wanted:
            seed = int(json.loads(settings.read_text(encoding="utf-8"))["track3"]["seed"])
            found.setdefault(run.parent.name, {})[seed] = losses[-1]
    return found


def _shared(run: Path) -> list[object]:
    """Return what two runs must have in common to be compared."""
    content = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    return [{k: x for k, x in content["track3"].items() if k not in OWN}, content["data"]]


def in_words(losses: Mapping[str, BySeed], preset: str, unit: str) -> list[str]:
    """Return every optimizer against Muon in sentences, then what is to be typed for more seeds.

    Args:
        losses: See `final_losses`.
        preset: Name of the preset; the benchmark's own rule is added for its full size alone.
        unit: Unit of the losses.
    """
    if REFERENCE not in losses or len(losses) < 2:
        others = "another --optimizer" if REFERENCE in losses else f"--optimizer {REFERENCE}"
        return [f"For a comparison, run the same command with {others}."]
    said = []
    for one in against_reference(losses, REFERENCE):
        said.append(sentence(one, unit))
        if one.difference.error is None:
            said[-1] += f" For one, run both with --seed 1 to {ENOUGH - 1} too."
        if preset in PRESETS and preset != "small":
            said.append(f"  track 3's rule: {benchmark_rule(losses[one.arm], losses[REFERENCE])}")
    return said


def benchmark_rule(losses: BySeed, reference: BySeed) -> str:
    """Return the benchmark's statistic of two optimizers, in words.

    Examples:
        >>> benchmark_rule({0: 3.270, 1: 3.271}, {0: 3.279, 1: 3.280})
        'statistic 0.0090, counts as lower (0.004 is needed)'
    """
    difference = fmean(reference.values()) - fmean(losses.values())
    statistic = difference / math.sqrt(1 / len(losses) + 1 / len(reference))
    if abs(statistic) < COUNTS_FROM:
        verdict = "does not count"
    else:
        verdict = f"counts as {'lower' if statistic > 0 else 'higher'}"
    return f"statistic {statistic:.4f}, {verdict} ({COUNTS_FROM:g} is needed)"
