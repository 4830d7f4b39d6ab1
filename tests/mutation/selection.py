"""Selection of tests that may detect a mutant, the likeliest first."""

import ast
from collections import Counter
from functools import cache
from pathlib import PurePath

from tests.mutation.changes import PACKAGE


class Selection:
    """Tests by what they call.

    Args:
        measured: Per test its seconds and the functions it calls.
    """

    def __init__(self, measured):
        self._seconds = {test: seconds for test, (seconds, _) in measured.items()}
        self._by_function, self._by_file = {}, {}
        for test, (_, called) in measured.items():
            for file, name in called:
                self._by_function.setdefault((file, name), set()).add(test)
                self._by_file.setdefault(file, set()).add(test)

    def of(self, mutant):
        """The tests that call its function, in order; of what is done on import, see `_near`."""
        if mutant.function is None:
            return self._ordered(mutant.file, self._near(mutant.file))
        return self._ordered(mutant.file, self._by_function.get((mutant.file, mutant.function[1])))

    def _near(self, file):
        """Return the file's own tests, and tests that call it or a file that imports it."""
        near = {test for test in self._seconds if is_own(test, file)}
        return near.union(*(self._by_file.get(f, ()) for f in [file, *importers(file)]))

    def _ordered(self, file, tests):
        """Own files, own folder, others; one of each test function before a second; short first."""
        folder = f"tests/{PurePath(file).parent}/".replace("/./", "/")

        def tier(test):
            return 0 if is_own(test, file) else 1 if test.startswith(folder) else 2

        ordered = sorted(tests or (), key=lambda test: (tier(test), self._seconds[test]))
        seen, rank = Counter(), {}
        for test in ordered:
            rank[test] = seen[test.split("[")[0]]
            seen[test.split("[")[0]] += 1
        return sorted(ordered, key=lambda t: (rank[t] // 3, tier(t), rank[t], self._seconds[t]))


def is_own(test, file):
    """Tell whether a test belongs to the file: test_<file>.py, or test_<file>_steps.py."""
    name, stem = PurePath(test.split("::")[0]).name, PurePath(file).stem
    return name == f"test_{stem}.py" or name.startswith(f"test_{stem}_")


def importers(file):
    """Files of the package that import from this one."""
    module = "polarlight." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return [other for other, modules in imported().items() if module in modules]


@cache
def imported():
    """Per file of the package the modules that it imports from."""
    return {
        str(file.relative_to(PACKAGE)): {
            node.module
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom)
        }
        for file in PACKAGE.rglob("*.py")
    }
