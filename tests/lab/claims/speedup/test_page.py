"""The section on speedups: what it says of the parts that are not run."""

from polarlight.lab.claims.speedup import page
from polarlight.lab.claims.speedup.plan import parts_of
from polarlight.lab.claims.store import RunStore


def test_costs_of_parts_without_runs_follow_recorded_runs_of_their_width(monkeypatch):
    parts = parts_of("small", ("0.03M", "0.03M-batch-1k", "0.13M-batch-1k"))
    monkeypatch.setattr(page, "SIZES", {"small": parts})
    monkeypatch.setattr(page, "losses_of", lambda *_: {})
    monkeypatch.setattr(page, "records_of", lambda p, *_: {1: 1} if p is parts[0] else {})
    monkeypatch.setattr(page, "_dearer", lambda part, found: 3.0)
    said = " ".join(page.section(RunStore([])))
    for part, factor in zip(parts[1:], (3.0, 1.0), strict=True):
        hours = factor * sum(map(part.core_seconds, part.methods)) / 3600
        assert f"{part.name} {hours:.2g} core hours" in said
