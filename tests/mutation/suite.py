"""The tests in one process: collected once, which functions each runs, and some of them again."""

import functools
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from _pytest.runner import runtestprotocol

from tests.distributed import processes
from tests.mutation.changes import PACKAGE, ROOT

FOLDERS = [
    *("tests/linalg", "tests/rules", "tests/stages", "tests/contracts", "tests/torch_contract"),
    "tests/optimizer",
    *("tests/test_recipes.py", "tests/test_diloco.py"),
    *("tests/test_view.py", "tests/reliability", "tests/fuzz"),
    *("tests/execution", "tests/hooks", "tests/migration", "tests/properties"),
    *("tests/diagnostics", "tests/benchmarks", "tests/integrations/test_lora.py"),
    *("tests/lab/explore", "tests/routing", "tests/distributed/test_faults.py"),
    *("tests/distributed/test_models.py", "tests/distributed/test_checkpoints.py"),
]
"""Every fast test that enters what is changed, but for those of whole trainings."""

OPTIONS = ["-q", "-x", "-m", "not slow and not gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what was imported before a fork
TERMINAL = os.dup(2)  # pytest captures what goes to 2
SECONDS = 6.0
"""Of processor time: how long a mutant is tested; one that lives longer is taken for a survivor."""


class Loop:
    """A pytest plugin that hands the collected tests to a function instead of running them."""

    def __init__(self, work, order=None):
        self.work, self.order = work, order

    def pytest_collection_modifyitems(self, items):
        if self.order is not None:
            place = {name: i for i, name in enumerate(self.order)}
            items[:] = sorted(
                (item for item in items if item.nodeid in place), key=lambda x: place[x.nodeid]
            )

    def pytest_runtestloop(self, session):
        if session.testsfailed:
            raise session.Interrupted("collection failed")
        self.work({item.nodeid: item for item in session.items})
        return True


def with_tests(work, files=FOLDERS, order=None):
    """Calls `work` with the tests by their ids, in a process in which nothing is collected yet.

    Returns:
        pytest's exit code: 0 unless the collection failed.
    """
    there = [name for name in files if (ROOT / name.split("::")[0]).exists()]
    return pytest.main([*OPTIONS, *there], plugins=[Loop(work, order), Forking()])


class Forking:
    """A pytest plugin: tests of many processes fork them, so that the change is in each.

    What these call is noted too: a process of a test leaves it in `calls`, a folder.
    """

    calls = None

    def pytest_collection_modifyitems(self):
        processes.start = self.start

    @classmethod
    def start(cls, process, arguments, nprocs):
        mp.start_processes(cls._noted, (process, arguments), nprocs=nprocs, start_method="fork")

    @classmethod
    def _noted(cls, rank, process, arguments):
        if cls.calls is None:
            process(rank, *arguments)
            return
        seen, leave = set(), os._exit

        def write():
            sys.setprofile(None)
            file = Path(cls.calls) / f"{os.getpid()}.json"
            file.write_text(json.dumps(sorted(names_of(seen))))

        os._exit = lambda code: (write(), leave(code))  # a test ends processes by it
        noting(lambda: process(rank, *arguments), seen)
        write()


def first_failure(tests, seconds):
    """Run tests in order; return the id of the first that fails, or None, and their number."""
    start, ran = time.process_time(), 0
    for test, following in zip(tests, [*tests[1:], None], strict=True):
        ran += 1
        if any(report.failed for report in runtestprotocol(test, log=False, nextitem=following)):
            return test.nodeid, ran
        if time.process_time() - start > seconds:
            break
    return None, ran


def functions_called(work):
    """The package's functions that Python enters during `work`: {(file, name)}."""
    seen = set()
    noting(work, seen)
    return names_of(seen)


def noting(work, seen):
    """Does `work`; adds to `seen` the code of every function that Python enters meanwhile."""

    def note(frame, event, _):
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)


def names_of(seen):
    """File and name of the code that is the package's."""
    files = {str(f): str(f.relative_to(PACKAGE)) for f in PACKAGE.rglob("*.py")}
    return {(files[c.co_filename], c.co_name) for c in seen if c.co_filename in files}


def measured(tests):
    """Per test its seconds and the functions it calls; those that fail are left out."""
    found = {}
    for test, following in zip(tests, [*tests[1:], None], strict=True):
        reports = []
        start = time.process_time()
        with tempfile.TemporaryDirectory() as Forking.calls:
            called = functions_called(
                lambda t=test, f=following, r=reports: r.extend(
                    runtestprotocol(t, log=False, nextitem=f)
                )
            )
            for file in Path(Forking.calls).glob("*.json"):
                called |= {tuple(pair) for pair in json.loads(file.read_text())}
        Forking.calls = None
        if not any(report.failed for report in reports):
            found[test.nodeid] = [time.process_time() - start, sorted(called)]
    return found


class Code:
    """The package's functions as they live in this process, to be given other code."""

    def __init__(self):
        self._found, self._caches = {}, []
        for thing in gc.get_objects():
            if type(thing) is types.FunctionType:  # isinstance would wake lazy objects
                code = thing.__code__
                key = (code.co_filename, code.co_firstlineno, code.co_name)
                if code.co_filename.startswith(str(PACKAGE)):
                    self._found.setdefault(key, []).append(thing)
            elif type(thing) is functools._lru_cache_wrapper:
                self._caches += [thing] if thing.__module__.startswith("polarlight") else []

    def replace(self, mutant, tree):
        """Replace the code of a file's functions by that of the changed tree."""
        name = str(PACKAGE / mutant.file)
        for code in nested(compile(tree, name, "exec")):
            for function in self._found.get((name, code.co_firstlineno, code.co_name), []):
                if function.__code__ != code:
                    function.__code__ = code
        for cached in self._caches:
            cached.cache_clear()


def nested(code):
    """All code objects in one."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from nested(constant)


def in_child(work, limit):
    """A forked process that does `work` and what reads its answer.

    Args:
        work: Called in the child; returns bytes, less than a pipe holds.
        limit: Seconds of processor time after which the child is stopped.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(reading)
        quiet()
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))  # ends the process
        signal.alarm(30 * int(limit))  # the same for one that only waits; others may slow it down
        answer = b""
        try:
            answer = work()
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    return pid, reading


def quiet(log=os.devnull):
    """Redirect the tests' output to a file."""
    nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
