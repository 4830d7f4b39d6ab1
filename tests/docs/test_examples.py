"""Examples in docstrings run: of every public object, method and namespace."""

import doctest
import importlib
import inspect

import pytest
import torch

from polarlight import SpectralOptimizer
from polarlight.linalg import MatrixMap
from polarlight.rules import REGISTERED
from tests.architecture.test_structure import NAMESPACES

WITHOUT_EXAMPLE = {
    *("AutoPolar", "Chaotic", "EigenPolar", "ExactPolar", "ExactPower", "GramNewtonSchulz"),
    *("NewtonSchulz", "OneSidedPolar", "QDWH", "RationalPower", "RegularisedPolar", "ZoloPD"),
}
"""Engines that have no example yet; may only shrink."""


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


def examples(value):
    """The doctests of an object of the package and of what is defined in it."""
    tests = doctest.DocTestFinder().find(value, getattr(value, "__name__", None), globs={})
    return [test for test in tests if test.examples]


@pytest.fixture(autouse=True)
def registered_rules():
    """Forget the rules that an example registers."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if examples(value)])
def test_examples_in_docstrings_print_their_output(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for test in examples(PUBLIC[name]):
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        report = []
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
    missing = {
        value.__name__
        for value in PUBLIC.values()
        if needs_example(value) and not doctest.DocTestParser().get_examples(value.__doc__)
    }
    assert missing <= WITHOUT_EXAMPLE
