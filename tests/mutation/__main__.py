"""Changes the code a little and sees whether a test notices.

    python -m tests.mutation --sample 450 --seed 0 --minutes 15

Draws mutants of linalg, rules and the optimizer by the seed, the same number of each place, and
runs against each the tests that enter the changed function, the likeliest first, up to the first
failure. The tests are collected once; a process is forked per mutant. What is found is appended to
the file of results, from which the next call goes on. Ends with the share that was killed, with its
95 % interval, and every survivor.
"""

import argparse
import gc
import json
import os
import random
import select
import subprocess
import sys
import time

from tests.mutation import fresh, suite, summary
from tests.mutation.changes import PACKAGE, PLACES, ROOT, all_mutants, mutated
from tests.mutation.selection import Selection

RESULTS = ROOT / "benchmarks" / "results" / "mutants.jsonl"
CALLS = ROOT / "build" / "mutation"


def sample(count, seed, only):
    """The mutants of this seed: as many of every place, in an order in which places alternate."""
    known = [m for m in all_mutants() if not only or m.file in only]
    drawn = []
    for place in PLACES:
        there = [m for m in known if m.place == place]
        random.Random(f"{seed}:{place}").shuffle(there)
        drawn += list(enumerate(there[: -(-count // len(PLACES))]))
    return [mutant for _, mutant in sorted(drawn, key=lambda pair: pair[0])]


def calls_of(tests):
    """Return the functions each test calls, measured in two processes where its file is new.

    Other changes of the package may make that old: a test is then not chosen, and a mutant survives
    that it would kill. `make clean` forgets.
    """
    CALLS.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, test in tests.items():
        files.setdefault(name.split("::")[0], []).append(test)
    found, missing = {}, []
    for file, its in files.items():
        stamp = (ROOT / file).read_text()
        cached = CALLS / (file.replace("/", "-") + ".json")
        known = json.loads(cached.read_text()) if cached.exists() else {}
        if known.get("stamp") == stamp:
            found |= known["tests"]
        else:
            missing.append((cached, stamp, its))
    run_all([lambda job=job: measure(*job) for job in missing], limit=600, label="measuring tests")
    for cached, _, _ in missing:
        found |= json.loads(cached.read_text())["tests"]
    return {name: found[name] for name in tests if name in found}


def measure(cached, stamp, tests):
    """Measure the tests of one file, in a child process."""
    cached.write_text(json.dumps({"stamp": stamp, "tests": suite.measured(tests)}))
    return b"{}"


def run_all(jobs, limit, label, workers=2, until=None, report=None):
    """Run each job in its own child process, several at a time, with a bar.

    Args:
        jobs: Functions that return bytes of JSON.
        limit: Seconds for each.
        label: For the bar.
        workers: How many at a time.
        until: Time after which no further one is started.
        report: Called with (index, answer, seconds) of each; the answer is None if it was stopped
            or died.
    """
    waiting, running, done = list(enumerate(jobs)), {}, 0
    while running or (waiting and not (until and time.monotonic() > until)):
        while waiting and len(running) < workers and not (until and time.monotonic() > until):
            index, job = waiting.pop(0)
            pid, reading = suite.in_child(job, limit)
            running[reading] = (index, pid, time.monotonic())
        for reading in select.select(list(running), [], [], 1.0)[0]:
            index, pid, start = running.pop(reading)
            answer = os.read(reading, 65536)
            os.close(reading)
            os.waitpid(pid, 0)
            done += 1
            if report:
                report(index, json.loads(answer) if answer else None, time.monotonic() - start)
            bar(label, done, len(jobs))


def bar(label, done, total):
    """One line that is written over."""
    full = 30 * done // total
    end = "\n" if done == total else ""
    line = f"\r{label} [{'#' * full}{'.' * (30 - full)}] {done}/{total}"
    os.write(suite.TERMINAL, (line + end).encode())


def tested(code, tests, mutant, seconds):
    """A mutant's fate, found in a child: what killed it, or null, and how many tests ran."""
    tree, _ = mutated(mutant)
    code.replace(mutant, tree)
    by, ran = suite.first_failure(tests, seconds)
    return json.dumps({"by": by, "ran": ran}).encode()


def record(path, mutant, answer, seconds):
    """Appends a mutant's fate."""
    answer = answer or {"by": "stopped: it did not end, or the process died", "ran": 0}
    before, after = mutated(mutant)[1]
    entry = {
        "key": mutant.key,
        "place": mutant.place,
        "file": mutant.file,
        "line": mutant.line,
        "before": before,
        "after": after,
        "killed": answer["by"] is not None,
        **answer,
        "seconds": round(seconds, 1),
    }
    with path.open("a") as out:
        out.write(json.dumps(entry) + "\n")


def commit():
    """The commit that is checked out."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sample", type=int, default=450, help="mutants to draw (default: 450)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--minutes", type=float, default=15.0, help="start none after these")
    parser.add_argument(
        "--seconds",
        type=float,
        default=suite.SECONDS,
        help="of processor time per mutant (default: 6)",
    )
    parser.add_argument("--again", action="store_true", help="test survivors again")
    parser.add_argument("--results", default=str(RESULTS), help="file of results, to go on from")
    parser.add_argument("--report", action="store_true", help="only show what was found")
    parser.add_argument("files", nargs="*", help="of the package: rules/muon.py (default: all)")
    asked = parser.parse_args()
    drawn = sample(asked.sample, asked.seed, asked.files)
    results = summary.Results(asked.results)
    if not asked.report:
        known = results.killed() if asked.again else results.known()
        left = [m for m in drawn if m.key not in known]
        fresh.preload()
        until = time.monotonic() + 60 * asked.minutes
        survey(left, results.path, until, asked.seconds)
        results = summary.Results(asked.results)
    print(summary.text(results, drawn, commit()))


def survey(mutants, path, until, seconds):
    """Tests the mutants: those in functions by new code in place, the others by a new import."""
    afresh = fresh.Pipeline(path)

    def loop(tests):
        selection = Selection(calls_of(tests))
        code = suite.Code()
        gc.collect()
        gc.freeze()  # so that the children need not go through what was collected
        inside = [m for m in mutants if m.function is not None]
        chosen = [[tests[name] for name in selection.of(m)] for m in inside]

        def report(index, answer, seconds):
            mutant = inside[index]
            survived = answer is not None and answer["by"] is None
            if survived and (mutant.file, mutant.function[1]) in collected:
                afresh.add(mutant, selection.of(mutant))  # it had run before its code was changed
            else:
                record(path, mutant, answer, seconds)

        jobs = [
            lambda m=m, some=some: tested(code, some, m, seconds)
            for m, some in zip(inside, chosen, strict=True)
        ]
        run_all(jobs, 30 + 2 * seconds, "in functions", until=until, report=report)
        for mutant in mutants:
            if mutant.function is None:
                afresh.add(mutant, selection.of(mutant))
        afresh.save()

    collected = set()
    pid = os.fork()
    if pid == 0:
        CALLS.mkdir(parents=True, exist_ok=True)
        suite.quiet(CALLS / "log.txt")
        try:
            run_collected(loop, collected)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(pid, 0)
    afresh.load()
    jobs = [lambda m=m, names=names: fresh.tested(m, names, seconds) for m, names in afresh.jobs]
    run_all(
        jobs,
        60 + 2 * seconds,
        "on import",
        until=until,
        report=lambda index, answer, seconds: record(path, afresh.jobs[index][0], answer, seconds),
    )


def run_collected(loop, collected):
    """Collects the tests, noting in `collected` the functions called meanwhile; then the loop."""
    files = {str(f): str(f.relative_to(PACKAGE)) for f in PACKAGE.rglob("*.py")}

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename in files:
            collected.add((files[code.co_filename], code.co_name))

    def after(tests):
        sys.setprofile(None)
        loop(tests)

    sys.setprofile(note)
    suite.with_tests(after)


if __name__ == "__main__":
    main()
