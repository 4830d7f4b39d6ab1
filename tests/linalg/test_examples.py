"""Examples in docstrings: every public engine and stage that has one shows what it does."""

import doctest
import inspect

import pytest

from polarlight import linalg, stages

ENGINES = [
    *("NewtonSchulz", "GramNewtonSchulz", "AutoPolar", "QDWH", "ZoloPD", "EigenPolar"),
    *("OneSidedPolar", "ExactPolar", "RegularisedPolar", "ExactPower", "RationalPower", "Chaotic"),
]
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (linalg, stages)
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}


def examples_of(thing, name):
    source = inspect.cleandoc(thing.__doc__ or "")
    return doctest.DocTestParser().get_doctest(source, {}, name, None, 0)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_an_example(name):
    assert examples_of(getattr(linalg, name), name).examples


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_in_docstrings_print_their_output(name):
    test = examples_of(PUBLIC[name], name)
    said = []
    failed, _ = doctest.DocTestRunner().run(test, out=said.append)
    assert not failed, "".join(said)
