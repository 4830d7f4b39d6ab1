"""Run the numeric tests under several instruction sets; print the margins of their bounds.

`make test-isa`. Every combination is one process of pytest, whose records go to `build/isa`; the
next call continues after the last one that is complete. `--fresh` starts anew, `--report` prints
the table only. The first combination runs every test of the folders. The others run those in which
a value came within a tenth of its bound: rounding in another order moves one by far less than that.

A bound has enough margin if it is at least twice the worst value. A value that is no rounding error
(a singular value within its band, a loss) is allowed nearer: up to ten times the range over which
it moves between the combinations.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
OUT = REPOSITORY / "build" / "isa"
FOLDERS = ("linalg", "rules")
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
)
"""Every value of every variable at least once; not all products."""

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
    return OUT / ("-".join(combination) + ".json")


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


def report(count: int) -> int:
    """Print the tightest lines; return 1 unless all ran, passed and kept their margin."""
    paths = [path_of(combination) for combination in COMBINATIONS]
    runs = {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}
    lines = worst_by_line(margins(list(runs.values())))
    print("| combination | tests | failed |\n|---|---|---|")
    for name, one in runs.items():
        print(f"| {name} | {one['tests']:,} | {len(one['failures'])} |")
    failed = sorted({test for one in runs.values() for test in one["failures"]})
    tight = sum(line[0] for line in lines.values())
    print(f"\n{len(lines):,} lines with numeric bounds, {tight} with too little margin\n")
    print("| line | value | bound | value / bound | range |\n|---|---|---|---|---|")
    order = sorted(lines.items(), key=lambda item: (item[1][0], item[1][5]), reverse=True)
    shown = [item for item in order if item[1][0] or item[1][4] > 0]
    for place, (short, _, value, bound, spread, share) in shown[:count]:
        mark = " **too little**" if short else ""
        print(f"| {place}{mark} | {value:.3g} | {bound:.3g} | {share:.2f} | {spread:.1g} |")
    for test in failed:
        print(f"FAILED {test}")
    return int(bool(failed or tight or len(runs) < len(COMBINATIONS)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument("--report", action="store_true", help="print the table only")
    parser.add_argument("--lines", type=int, default=25, help="lines of the table")
    parser.add_argument("tests", nargs="*", default=[f"tests/{name}" for name in FOLDERS])
    options = parser.parse_args()
    for combination in () if options.report else COMBINATIONS:
        if options.fresh or not path_of(combination).exists():
            first = combination == COMBINATIONS[0]
            run(combination, options.tests if first else near_ones())
    return report(options.lines)


if __name__ == "__main__":
    sys.exit(main())
