"""Share of mutants that the tests kill, its interval, and the survivors."""

import json
from collections import Counter
from pathlib import Path

from tests.mutation.changes import PLACES, all_mutants

VERDICTS = Path(__file__).with_name("survivors.json")
"""Survivors that were looked at and change nothing that anyone could notice, with the reason."""


class Results:
    """A file of results, one JSON object per line; the last one of a mutant counts."""

    def __init__(self, path):
        self.path = Path(path)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self._latest = {entry["key"]: entry for entry in map(json.loads, lines)}

    def known(self):
        return set(self._latest)

    def killed(self):
        return {key for key, entry in self._latest.items() if entry["killed"]}

    def of(self, mutants):
        """The entries of those that were tested."""
        return [self._latest[m.key] for m in mutants if m.key in self._latest]


def interval(killed, total):
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, killed / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * (share * (1 - share) / total + z * z / (4 * total**2)) ** 0.5 / (1 + z * z / total)
    return middle - half, middle + half


def text(results, drawn, commit):
    """A table by place, and the survivors."""
    entries = results.of(drawn)
    reasons = {name_of(entry): entry["why"] for entry in json.loads(VERDICTS.read_text())}
    population = Counter(m.place for m in all_mutants())
    rows = [f"{len(entries)} of {len(drawn)} mutants tested; commit {commit}"]
    for place in PLACES:
        here = [entry for entry in entries if entry["place"] == place]
        rows += [f"  {place:9} {shares(here, reasons)}, of {population[place]}"] if here else []
    rows += [f"  {'together':9} {shares(entries, reasons)}"] if entries else []
    for entry in sorted(entries, key=lambda e: (e["file"], e["line"])):
        if not entry["killed"]:
            rows += [f"{entry['file']}:{entry['line']}  {entry['before']}  ->  {entry['after']}"]
            rows += [f"    {reasons[name_of(entry)]}"] if name_of(entry) in reasons else []
    return "\n".join(rows)


def shares(entries, reasons):
    """Killed of all, and of those that a test could notice."""
    killed, total = sum(entry["killed"] for entry in entries), len(entries)
    equal = sum(not entry["killed"] and name_of(entry) in reasons for entry in entries)
    low, high = interval(killed, total)
    return (
        f"{killed} of {total} killed, {killed / total:.1%} ({low:.1%} to {high:.1%}); "
        f"{equal} of the survivors are equivalent"
    )


def name_of(entry):
    """Return a change's identity, independent of its line."""
    return entry["file"], entry["before"], entry["after"]
