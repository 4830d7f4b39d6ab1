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


@needs_compiled_steps
@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_an_engine_compiles_to_one_graph(engine, dynamic):
    """An engine's form and plan depend on sizes, which are constants of the graph.

    300 x 80 takes the Gram form and reduces QDWH to a triangular factor; the others do not.
    """
    torch._dynamo.reset()
    compiled = torch.compile(engine, dynamic=dynamic, backend="eager", fullgraph=True)
    for shape in ((300, 80), (24, 20), (2, 20, 24)):
        M = gaussian(*shape, dtype=torch.float32)
        torch.testing.assert_close(compiled(M), engine(M), rtol=0, atol=0)
