"""Examples in docstrings run: of every public object, method and namespace."""

import doctest
import importlib
import inspect
import re

import pytest
import torch

from polarlight import SpectralOptimizer
from polarlight.linalg import MatrixMap
from polarlight.rules import REGISTERED
from tests.architecture.test_structure import NAMESPACES, ROOT


def public():
    """Every public class and function by its qualified name, once."""
    found = {}
    for place in NAMESPACES:
        module = importlib.import_module(f"polarlight.{place}".rstrip("."))
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


PUBLIC = public()


WITH_EXAMPLES = [file for file in sorted(ROOT.rglob("*.py")) if ">>>" in file.read_text()]


@pytest.fixture(autouse=True)
def registered_rules():
    """Forget the rules that an example registers."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda f: f"{f.parent.name}.{f.stem}")
def test_examples_in_docstrings_print_their_output(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    name = ".".join(("polarlight", *file.relative_to(ROOT).with_suffix("").parts))
    module = importlib.import_module(name.removesuffix(".__init__"))
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert tests
    for test in tests:
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        report = []
        test.globs = dict(vars(module)) if "lab" in file.parts else {}  # as users paste them
        runner.run(test, out=report.append)
        assert not runner.failures, "".join(report)


def needs_example(value):
    """Torch-style classes, engines, monitors and hooks; not what others are derived from."""
    if inspect.isclass(value) and (inspect.isabstract(value) or getattr(value, "_is_protocol", 0)):
        return False
    if value.__module__.startswith("polarlight.hooks."):
        return True
    if not inspect.isclass(value):
        return False
    monitor = hasattr(value, "observe") and hasattr(value, "begin")
    engine = value.__module__.startswith("polarlight.linalg.") and issubclass(value, MatrixMap)
    return issubclass(value, SpectralOptimizer) or engine or monitor


def test_classes_monitors_engines_and_hooks_have_examples():
    missing = [
        value.__name__
        for value in PUBLIC.values()
        if needs_example(value) and not doctest.DocTestParser().get_examples(value.__doc__)
    ]
    assert missing == []


def test_the_section_is_called_examples():
    singular = [
        str(file.relative_to(ROOT))
        for file in ROOT.rglob("*.py")
        if re.search(r"^ *Example:$", file.read_text(), re.MULTILINE)
    ]
    assert singular == []
