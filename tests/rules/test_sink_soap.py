"""SinkSOAP: the float64 reference, the oracle, and even energies."""

import pytest
import torch

from polarlight.rules import sink_soap
from polarlight.stages.sink_soap import SinkSoap
from tests.matrices import SHAPES, gaussian
from tests.oracle import A, B, numbers, updates
from tests.reference import sink_soap as reference
from tests.rules.trajectory import distance

FROM_FLOOR = {"rtol": 0, "atol": 1e-5}
"""The oracle's floor is 1e-8 itself, ours a fraction of the mean energy, 0.02: 3e-6 apart."""


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(shape):
    # Measured here: 9e-12, square 4e-15. The floor of 1e-8 enlarges the rounding of small energies.
    assert distance(sink_soap(), reference.step, shape) < 1e-8


def test_updates_follow_the_oracles():
    D = numbers([0.626853, -0.573196, -0.187974], [0.533289, 0.973206, -0.107892])
    stage = SinkSoap()
    buffers = {name: A.new_zeros(shape) for name, shape in stage.buffer_shapes(A.shape).items()}
    stage(0.0975 * A, {**buffers, "gradient": A})
    found = stage(0.0975 * B + 0.95 * 0.95 * 0.05 * A, {**buffers, "gradient": B})
    torch.testing.assert_close(found / found.norm() * 2**0.5, D, **FROM_FLOOR)
    after = numbers([0.629042, -0.554907, -0.303356], [0.535151, 0.942154, -0.174118])
    torch.testing.assert_close(updates(sink_soap(), A, B)[1], after, **FROM_FLOOR)


@pytest.mark.parametrize("shape", SHAPES)
def test_energies_in_the_eigenbases_are_even(shape):
    stage, G = SinkSoap(rounds=200), gaussian(*shape)
    buffers = {name: G.new_zeros(size) for name, size in stage.buffer_shapes(G.shape).items()}
    for t in range(20):  # until both factors have full rank
        G = gaussian(*shape, seed=t)
        D = stage(G, {**buffers, "gradient": G})
    left, right = (torch.linalg.eigh(buffers[f"{s}_factor"])[1] for s in ("left", "right"))
    energies = (left.mT @ D @ right).square()
    for side in (0, 1):
        torch.testing.assert_close(
            energies.mean(side), energies.mean().expand(shape[1 - side]), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"beta": 1.0}, r"beta must lie in \[0, 1\)"),
        ({"rounds": 0}, "rounds must be >= 1, got 0"),
        ({"floor": 0.0}, "floor must be > 0, got 0.0"),
    ],
)
def test_invalid_arguments_raise_with_their_value(numbers, said):
    with pytest.raises(ValueError, match=said):
        SinkSoap(**numbers)
