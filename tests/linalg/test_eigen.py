"""The polar factor from the Gram matrix: as exact as squaring allows, with a cut-off."""

import pytest
import torch

from polarlight.linalg.cost import flops
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.svd import ExactPolar
from tests.linalg.spectra import FULL_RANK, SHAPES, error, known


@pytest.mark.parametrize("name", FULL_RANK)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accuracy_until_the_square_of_the_condition_meets_epsilon(name, shape, dtype):
    case, eps = known(name, *shape), torch.finfo(dtype).eps
    condition = (case.sigma[0] / case.sigma[-1]).item()
    if condition > 0.5 / eps**0.5:
        return  # see the next test
    # Eigenvectors mix by eps / (their distance), at worst eps condition^2; 5 rounding errors of it.
    assert error(EigenPolar()(case.M.to(dtype)), case.polar) < 5 * eps * condition**2 + 10 * eps


@pytest.mark.parametrize("name", ["1e5", "1e6", "1e7"])
def test_beyond_that_directions_are_cut_off_and_the_rest_stays(name):
    """Float32: singular values under 3.5e-4 of the largest go to zero, those above 1e-2 to one."""
    case = known(name, 60, 20)
    U = EigenPolar()(case.M.float()).double()
    gains = (case.left.mT @ U @ case.right).diagonal()
    assert (gains[case.sigma > 1e-2] - 1).abs().max() < 5e-3
    assert gains[case.sigma < 1e-4].abs().max() < 0.35


@pytest.mark.parametrize("name", ["half rank", "rank 1"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_null_directions_map_to_zero(name, shape, dtype):
    case, eps = known(name, *shape), torch.finfo(dtype).eps
    assert error(EigenPolar()(case.M.to(dtype)), case.polar) < 10 * eps


def test_cutoff_is_relative_to_the_largest_singular_value():
    case = known("1e2", 30, 9)
    for cutoff in (0.5, 0.05):
        expected = (case.left * (case.sigma > cutoff)) @ case.right.mT
        for scale in (1e-8, 1.0, 1e8):
            assert error(EigenPolar(cutoff)(scale * case.M), expected) < 1e-11


def test_costs_less_than_the_decomposition():
    for m, n in ((1000, 1000), (4000, 1000)):
        assert 0.65 < flops(EigenPolar(), m, n) / flops(ExactPolar(), m, n) < 0.85


@pytest.mark.parametrize("name", ["1e4", "1e5", "1e6", "1e7"])
@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (96, 96)], ids=str)
def test_directions_near_the_cut_off_mix_but_none_is_stretched(name, shape):
    """Columns near the cut-off are not orthogonal: two of them made one of length 2."""
    for seed in range(10):
        U = EigenPolar()(known(name, *shape, seed=seed).M.float())
        assert torch.linalg.matrix_norm(U.double(), 2) < 1 + 1e-5


@pytest.mark.parametrize("cutoff", [0.0, 1.0])
def test_cutoff_out_of_range_is_named(cutoff):
    with pytest.raises(ValueError, match=rf"cutoff must lie in \(0, 1\), got {cutoff}"):
        EigenPolar(cutoff)


def test_dtype_without_decompositions_is_named():
    with pytest.raises(ValueError, match="dtype must be float32, float64 or None"):
        EigenPolar(dtype=torch.float16)
