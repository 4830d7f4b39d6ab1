"""Engines under `torch.compile`: one graph, also where the compiler takes sizes for symbols."""

import pytest
import torch

from polarlight.linalg import (
    QDWH,
    AutoPolar,
    EigenPolar,
    GramNewtonSchulz,
    NewtonSchulz,
    ZoloPD,
)
from polarlight.linalg.weighted_iterates import WeightedIterates
from tests.matrices import gaussian
from tests.releases import needs_compiled_steps

ENGINES = [
    AutoPolar(dtype=torch.float32),
    NewtonSchulz(dtype=torch.float32),
    GramNewtonSchulz(dtype=torch.float32),
    QDWH(),
    ZoloPD(),
    EigenPolar(),
    WeightedIterates(dtype=torch.float32),
]


SHAPES = [(300, 80), (24, 20), (2, 20, 24)]
"""The first takes the Gram form and reduces QDWH to a triangular factor; the others do not."""


def assert_one_graph(engine, shapes, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(engine, dynamic=dynamic, backend="eager", fullgraph=True)
    for shape in shapes:
        M = gaussian(*shape, dtype=torch.float32)
        torch.testing.assert_close(compiled(M), engine(M), rtol=0, atol=0)


@needs_compiled_steps
@pytest.mark.parametrize(
    "count", [pytest.param(2, id="two shapes"), pytest.param(3, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("engine", ENGINES[1:], ids=str)
def test_an_engine_compiles_to_one_graph_where_sizes_are_symbols(engine, count):
    """An engine's form and plan depend on sizes, which are constants of the graph."""
    assert_one_graph(engine, SHAPES[:count], dynamic=True)


@needs_compiled_steps
def test_the_default_engine_compiles_to_one_graph_at_each_of_several_sizes():
    assert_one_graph(ENGINES[0], SHAPES, dynamic=True)


@needs_compiled_steps
@pytest.mark.parametrize(
    "engine", [QDWH(1e-3, 3), QDWH(steps=2), ZoloPD(terms=1), ZoloPD(1e-3, 1)], ids=str
)
def test_a_plan_that_is_asked_for_compiles_where_numbers_are_symbols(engine):
    assert_one_graph(engine, SHAPES[1:2], dynamic=True)


@needs_compiled_steps
def test_engines_that_differ_in_a_number_alone_compile_one_after_another():
    """The compiler takes a number for a symbol once it has seen another value of it."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda engine, M: engine(M), backend="eager", fullgraph=True)
    M = gaussian(24, 20, dtype=torch.float32)
    for engine in (QDWH(1e-3), QDWH(1e-4), QDWH(0.6), QDWH(0.6, 2), QDWH(0.6, 3)):
        torch.testing.assert_close(compiled(engine, M), engine(M), rtol=0, atol=0)


@needs_compiled_steps
@pytest.mark.in_turn(len(SHAPES), "engine", "shape")
@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_engine_compiles_to_one_graph_of_constant_sizes(engine, shape):
    assert_one_graph(engine, [shape], dynamic=False)
