"""The section on speedups: what it says of the parts that are not run."""

from polarlight.lab.claims.speedup import page
from polarlight.lab.claims.speedup.plan import parts_of
from polarlight.lab.claims.store import SHIPPED, RunStore


def test_costs_of_parts_without_runs_follow_recorded_runs_of_their_width(monkeypatch):
    records = page.records_of
    monkeypatch.setattr(
        page, "records_of", lambda p, *rest: records(p, *rest) if p.name == "0.03M" else {}
    )
    monkeypatch.setattr(page, "_dearer", lambda part, found: 3.0)
    said = " ".join(page.section(RunStore([SHIPPED])))
    for name, factor in (("0.03M-batch-1k", 3.0), ("0.13M-batch-1k", 1.0)):
        (part,) = parts_of("small", (name,))
        monkeypatch.setattr(page, "losses_of", lambda *_: {})
        hours = factor * sum(map(part.core_seconds, part.methods)) / 3600
        assert f"{name} {hours:.2g} core hours" in said
