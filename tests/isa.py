"""Run the numeric tests under several instruction sets; print the margins of their bounds.

`make test-isa`. Every combination is one process of pytest, whose records go to `build/isa`; the
next call continues after the last one that is complete. `--fresh` starts anew, `--report` prints
the table only. The first combination runs every test of the folders. The others run those in which
a value came within a tenth of its bound: rounding in another order moves one by far less than that.
A combination that asks for more than the CPU has would run as a lesser one: it is skipped, and the
report says why.

A machine is named by its CPU and the widest of the instruction sets that matter here. What it found
goes to `benchmarks/results/isa`, a file per machine. The report merges the files: the tightest
value of every line over all machines. `--write` puts it into `docs/reliability.md`.

A bound has enough margin if it is at least twice the worst value. A value that is no rounding error
(a singular value within its band, a loss) is allowed nearer: up to ten times the range over which
it moves between the combinations.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
OUT = REPOSITORY / "build" / "isa"
RESULTS = REPOSITORY / "benchmarks" / "results" / "isa"
PAGE = REPOSITORY / "docs" / "reliability.md"
BEGIN, END = "<!-- margins, by python -m tests.isa --write -->", "<!-- end of margins -->"
FOLDERS = ("linalg", "rules", "stages")
"""Where bounds are numeric. Trainers, pages and processes are left to `make test`."""

VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
)
COMBINATIONS = (
    ("default", "SSE4_2", "SSE41", "1"),
    ("avx2", "AVX2", "AVX2", "1"),
    ("avx512", "AVX512", "AVX512_CORE", "1"),
    ("avx512", "AVX512", "AVX512_CORE_BF16", "1"),
    ("avx512", "AVX512", "AVX512_CORE_BF16", "2"),
    ("avx512", "AVX512", "AVX512_CORE_BF16", "4"),
    ("default", "AVX512", "AVX512_CORE_BF16", "4"),
    ("avx2", "SSE4_2", "AVX512_CORE", "2"),
    ("avx2", "AVX2", "AVX2", "2"),
    ("avx2", "AVX2", "AVX2", "4"),
)
"""Every value of every variable at least once, threads also without AVX512; not all products."""

SETS = {
    "SSE4.2": "sse4_2",
    "AVX2": "avx2",
    "AVX512": "avx512_bw",
    "AVX512-BF16": "avx512_bf16",
}
"""Instruction sets from narrow to wide, and what torch calls a capability that comes with each."""

NEEDS = {
    **{"SSE4_2": "SSE4.2", "SSE41": "SSE4.2", "avx2": "AVX2", "AVX2": "AVX2", "avx512": "AVX512"},
    **{"AVX512": "AVX512", "AVX512_CORE": "AVX512", "AVX512_CORE_BF16": "AVX512-BF16"},
}
"""Value of a variable -> the set that it takes to be what it says."""

NEAR = 0.1
"""Value over bound in the first combination from which the others run a test."""
TIMES = ("tests/linalg/test_auto.py::test_measured_rates_are_in_range_and_taken_once",)
"""Tests that bound a time, or a share that is cut off at its bound."""
MARGIN = 2.0
SPREADS = 10.0


def run(combination: tuple[str, ...], tests: list[str]) -> None:
    """Run the tests in one process, and keep its records."""
    OUT.mkdir(parents=True, exist_ok=True)
    written = OUT / "running.json"
    environment = os.environ | dict(zip(VARIABLES, combination, strict=True))
    environment |= {"MARGINS": str(written), "PYTHONPYCACHEPREFIX": str(OUT / "pycache")}
    line = [sys.executable, "-m", "pytest", "-q", "-p", "tests.margins", "--no-header"]
    line += ["-p", "no:cacheprovider", "-o", "enable_assertion_pass_hook=true"]
    line += ["-o", "verbosity_assertions=2", "--tb=short"]  # else numbers are cut in the middle
    line += ["-m", "not slow and not gpu"]
    (OUT / "tests.txt").write_text("\n".join(tests))
    print(" ".join(map("=".join, zip(VARIABLES, combination, strict=True))), flush=True)
    done = subprocess.run([*line, f"@{OUT / 'tests.txt'}"], cwd=REPOSITORY, env=environment)
    if done.returncode not in (0, 1):
        sys.exit(done.returncode)
    written.rename(path_of(combination))


def near_ones() -> list[str]:
    """Return the tests of the first combination whose values are near a bound."""
    first = json.loads(path_of(COMBINATIONS[0]).read_text())
    near = [key for key, (v, bound) in first["records"].items() if v >= NEAR * bound]
    return sorted({key.rsplit(":", 1)[0] for key in near} | set(first["failures"]))


def path_of(combination: tuple[str, ...]) -> Path:
    return OUT / (name_of(combination) + ".json")


def name_of(combination: tuple[str, ...]) -> str:
    return "-".join(combination)


def capabilities() -> Mapping[str, object]:
    """Return what torch says of the CPU; releases before 2.11 know AVX512 and AVX2 only."""
    report = getattr(torch.cpu, "get_capabilities", None)
    if report is not None:
        return report()
    wide = torch.cpu._is_avx512_bf16_supported()
    known = {"avx512_bf16": wide, "avx512_bw": torch.cpu._is_avx512_supported()}
    return known | {"avx2": torch.cpu._is_avx2_supported(), "sse4_2": True}


def missing(combination: tuple[str, ...], has: Mapping[str, object]) -> str:
    """Return the instruction sets that a combination asks for and the CPU lacks; empty if none."""
    asked = {NEEDS[value] for value in combination[:3] if value in NEEDS}
    return ", ".join(name for name in SETS if name in asked and not has.get(SETS[name]))


def machine_of(has: Mapping[str, object]) -> str:
    """Return the name of a machine: its CPU, its widest set and its cores."""
    widest = [name for name, flag in SETS.items() if has.get(flag)]
    cpu = has.get("cpu_name") or platform.machine()
    return f"{cpu}, {widest[-1] if widest else 'no SSE4.2'}, {os.cpu_count()} cores"


def margins(runs: list[dict]) -> dict[str, tuple[float, float, float]]:
    """Return the worst value, its bound and the range over the runs, of every line of a test."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in runs:
        for key, (value, bound) in one["records"].items():
            if key.startswith(TIMES):
                continue
            found.setdefault(key, []).append((value, bound))
    result = {}
    for key, pairs in found.items():
        value, bound = max(pairs, key=lambda pair: pair[0] / pair[1])
        shares = [v / b for v, b in pairs]
        result[key] = (value, bound, (max(shares) - min(shares)) * bound)
    return result


def is_tight(value: float, bound: float, spread: float) -> bool:
    return bound < MARGIN * value and bound - value < SPREADS * spread


def worst_by_line(found: dict[str, tuple[float, float, float]]) -> dict[str, tuple]:
    """Return the tightest case of every line, over the parameters of its test."""
    lines: dict[str, tuple] = {}
    for key, (value, bound, spread) in found.items():
        test, line = key.rsplit(":", 1)
        place = f"{test.split('::')[0]}:{line}"
        tight = is_tight(value, bound, spread)
        if place not in lines or (tight, value / bound) > (lines[place][0], lines[place][5]):
            lines[place] = (tight, test, value, bound, spread, value / bound)
    return lines


def summary() -> dict:
    """Return what this machine found: combinations, those left out and why, and every line."""
    has = capabilities()
    runs = {name_of(c): json.loads(path_of(c).read_text()) for c in COMBINATIONS if done(c)}
    lines = worst_by_line(margins(list(runs.values())))
    return {
        "machine": machine_of(has),
        "torch": torch.__version__,
        "combinations": {name: [run["tests"], len(run["failures"])] for name, run in runs.items()},
        "skipped": {name_of(c): lacks for c in COMBINATIONS if (lacks := missing(c, has))},
        "failed": sorted({test for run in runs.values() for test in run["failures"]}),
        "lines": {place: list(found[:5]) for place, found in lines.items()},
    }


def done(combination: tuple[str, ...]) -> bool:
    return path_of(combination).exists()


def keep(found: dict) -> None:
    """Write the file of a machine, in place of an earlier one."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    slug = "".join(c if c.isalnum() else "-" for c in found["machine"].lower())
    (RESULTS / f"{slug}.json").write_text(json.dumps(found, indent=1) + "\n")


def merged(machines: list[dict]) -> dict[str, tuple]:
    """Return of every line the tightest case over the machines, with the number of the machine.

    A line of a machine is kept as [tight, test, value, bound, range].
    """
    lines: dict[str, tuple] = {}
    for number, one in enumerate(machines, 1):
        for place, (tight, test, value, bound, spread) in one["lines"].items():
            rank = (tight, value / bound)
            if place not in lines or rank > (lines[place][0], lines[place][5]):
                lines[place] = (tight, test, value, bound, spread, value / bound, number)
    return lines


def table(machines: list[dict], count: int) -> Iterator[str]:
    """Return the lines of the report, as Markdown."""
    lines = merged(machines)
    tight = sum(line[0] for line in lines.values())
    yield "| | machine | instruction sets, threads | tests | failed |"
    yield "|---|---|---|---|---|"
    for number, one in enumerate(machines, 1):
        for name, (tests, failed) in one["combinations"].items():
            about = f"{one['machine']}, torch {one['torch']}"
            yield f"| {number} | {about} | {name} | {tests:,} | {failed} |"
        for name, lacks in one["skipped"].items():
            yield f"| {number} | | {name} | skipped: the CPU lacks {lacks} | |"
    yield f"\n{len(lines):,} lines with numeric bounds, {tight} with too little margin:\n"
    yield "| line below `tests/` | value | bound | value / bound | range | machine |"
    yield "|---|---|---|---|---|---|"
    order = sorted(lines.items(), key=lambda item: (item[1][0], item[1][5]), reverse=True)
    shown = [item for item in order if item[1][0] or item[1][4] > 0]
    for place, (short, _, value, bound, spread, share, number) in shown[:count]:
        line = f"`{place.removeprefix('tests/')}`" + (" **too little**" if short else "")
        numbers = f"{value:.3g} | {bound:.3g} | {share:.2f} | {spread:.1g} | {number}"
        yield f"| {line} | {numbers} |"


def report(count: int, write: bool) -> int:
    """Print the merged table; return 1 unless this machine ran all it can, without a fault."""
    machines = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    text = "\n".join(table(machines, count))
    print(text)
    for one in machines:
        for test in one["failed"]:
            print(f"FAILED {test} ({one['machine']})")
    if write:
        before, rest = PAGE.read_text().split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    own = summary()
    left = len(COMBINATIONS) - len(own["combinations"]) - len(own["skipped"])
    tight = any(line[0] for line in own["lines"].values())
    return int(bool(own["failed"] or tight or left))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument("--report", action="store_true", help="print the table only")
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--lines", type=int, default=25, help="lines of the table")
    parser.add_argument("tests", nargs="*", default=[f"tests/{name}" for name in FOLDERS])
    options = parser.parse_args()
    has = capabilities()
    for combination in () if options.report else COMBINATIONS:
        if lacks := missing(combination, has):
            print(f"{name_of(combination)}: skipped, the CPU lacks {lacks}")
        elif options.fresh or not done(combination):
            first = combination == COMBINATIONS[0]
            run(combination, options.tests if first else near_ones())
            keep(summary())
    return report(options.lines, options.write)


if __name__ == "__main__":
    sys.exit(main())
