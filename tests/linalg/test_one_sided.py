"""The polar factor from the Gram matrix of either side."""

import pytest
import torch

from polarlight.linalg.cost import flops
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.svd import ExactPolar
from tests.linalg.spectra import SHAPES, error, known
from tests.matrices import TALL, WIDE, gaussian

sides = pytest.mark.parametrize("side", GramSide)


@sides
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["1e2", "half rank", "rank 1"])
def test_either_side_gives_the_polar_factor(side, shape, name):
    """Also of deficient rank: a partial isometry."""
    case = known(name, *shape)
    assert error(OneSidedPolar(side)(case.M), case.polar) < 1e-9


@sides
def test_left_is_right_of_the_transpose(side):
    other = GramSide.LEFT if side is GramSide.RIGHT else GramSide.RIGHT
    M = gaussian(3, *TALL)
    assert torch.equal(OneSidedPolar(side)(M), OneSidedPolar(other)(M.mT).mT)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_damping_is_relative_to_the_chosen_gram_matrix(shape):
    """On the long side the mean eigenvalue is smaller, and with it what is taken off."""
    M = gaussian(*shape)
    exact = ExactPolar()(M)
    engine = RegularisedPolar(0.1)
    short, long = (
        (GramSide.RIGHT, GramSide.LEFT) if shape == TALL else (GramSide.LEFT, GramSide.RIGHT)
    )
    near = (OneSidedPolar(long, engine)(M) - exact).norm()
    assert near < 0.5 * (OneSidedPolar(short, engine)(M) - exact).norm()


@sides
def test_cost_is_that_of_a_matrix_square_on_that_side(side):
    m, n = TALL
    k = m if side is GramSide.LEFT else n
    assert flops(OneSidedPolar(side), m, n) == flops(OneSidedPolar(side).engine, m, k)
