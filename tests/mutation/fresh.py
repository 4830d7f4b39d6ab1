"""Mutants of what is carried out on import: the package is imported anew, with the change in it."""

import json
import os
import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

from tests.mutation import suite
from tests.mutation.changes import PACKAGE, Mutant, mutated
from tests.mutation.selection import is_own


def preload():
    """Imports what every child needs and nothing of the package."""
    for name in ("torch", "numpy", "torch.testing._internal.common_optimizers"):
        import_module(name)
    if loaded := [name for name in sys.modules if name.split(".")[0] == "polarlight"]:
        raise RuntimeError(f"{loaded[0]} must not be imported yet")


class Changed:
    """A finder that gives one module other code."""

    def __init__(self, mutant, tree):
        self._path = str(PACKAGE / mutant.file)
        self._name = "polarlight." + mutant.file.removesuffix(".py").replace("/", ".")
        self._code = compile(tree, self._path, "exec")

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        loader = SourceFileLoader(name, self._path)
        loader.get_code = lambda _: self._code
        return spec_from_file_location(name, self._path, loader=loader)


def tested(mutant, names, seconds):
    """A mutant's fate, found in a child: the tests of its own file first, then the others."""
    tree, _ = mutated(mutant)
    sys.meta_path.insert(0, Changed(mutant, tree))
    own = [name for name in names if is_own(name, mutant.file)]
    ran = 0
    for order in (own, [name for name in names if name not in set(own)]):
        answers = []
        files = list(dict.fromkeys(name.split("::")[0] for name in order))
        work = answers.append
        if order:
            suite.with_tests(lambda tests, say=work: say(first(tests, seconds)), files, order)
        if order and not answers:
            return json.dumps({"by": "collection", "ran": ran}).encode()
        by, more = answers[0] if answers else (None, 0)
        ran += more
        if by:
            return json.dumps({"by": by, "ran": ran}).encode()
    return json.dumps({"by": None, "ran": ran}).encode()


def first(tests, seconds):
    """The first failure among the collected tests."""
    return suite.first_failure(list(tests.values()), seconds)


class Pipeline:
    """Mutants that wait for a fresh import; passes them from a child to its parent."""

    def __init__(self, path):
        self._file = Path(f"{path}.waiting.{os.getpid()}")
        self.jobs = []

    def add(self, mutant, names):
        self.jobs.append((mutant, list(names)))

    def save(self):
        """In the child."""
        self._file.write_text(json.dumps([[vars(m), names] for m, names in self.jobs]))

    def load(self):
        """In the parent."""
        if not self._file.exists():
            raise SystemExit(
                "the tests could not be collected, or that ended early: see build/mutation/log.txt"
            )
        for fields, names in json.loads(self._file.read_text()):
            function = fields.pop("function")
            owner = tuple(function) if function else None
            self.jobs.append((Mutant(**fields, function=owner), names))
        self._file.unlink()
