"""A training run on a GPU: track 3 with Muon, and with Aurora in its slot."""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.report import Found, OutOfTimeError, Report, within


def training(report: Report, found: Found) -> None:
    """Loss and tokens per second of track 3 with Muon and with Aurora in its slot."""
    from polarlight.lab.train.corpus import load_corpus
    from polarlight.lab.train.shards import GPT2_VOCAB_SIZE
    from polarlight.lab.train.track3.settings import PRESETS

    full_size = report.data is not None
    found["data"] = "FineWeb shards" if full_size else "embedded"
    setting = replace(PRESETS["record-36" if full_size else "small"], validate_every=50)
    corpus = load_corpus(report.data, vocab_size=GPT2_VOCAB_SIZE if full_size else None)
    if report.tiny:
        setting = replace(setting, steps=4, horizon=None, validate_every=2, validation_tokens=2048)
    runs = found["runs"] = {}
    for left, name in ((2, "muon"), (1, "aurora-tall")):
        run = runs[name] = {}
        run |= within(report.left / left, trained, report, setting, corpus, name, run) or {}


def trained(report: Report, setting: Any, corpus: Any, name: str, found: Found) -> None:
    """Train until the run or its time is over; fill in losses and tokens per second."""
    from polarlight.lab.train.track3.loop import Track3Run
    from polarlight.lab.train.track3.settings import RULES

    losses, ends = found.setdefault("losses", []), []
    margin = min(5.0, 0.05 * report.left)  # for the end of the run

    def tell(step: int) -> None:
        report.synchronize()
        ends.append(time.monotonic())
        found["steps"] = step
        if report.left < margin:
            raise OutOfTimeError

    with tempfile.TemporaryDirectory() as folder:
        run = Track3Run(setting, RULES[name], corpus, Path(folder), report.device)
        losses.extend(validation_losses(run.records(tell)))
    # The median leaves validations and compilation out.
    between = [b - a for a, b in pairwise(ends)]
    if between:
        found["tokens_per_second"] = setting.tokens_per_step / statistics.median(between)


def validation_losses(records: Iterable[Any]) -> Iterator[tuple[int, float]]:
    """Yield step and validation loss until the run ends or its time is over."""
    try:
        for record in records:
            if record["kind"] == "validation":
                yield record["step"], record["loss"]
    except OutOfTimeError:
        return
