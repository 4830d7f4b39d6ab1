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
@pytest.mark.in_turn(len(SHAPES), "engine", "shape")
@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_engine_compiles_to_one_graph_of_constant_sizes(engine, shape):
    assert_one_graph(engine, [shape], dynamic=False)
