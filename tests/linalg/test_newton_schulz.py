"""Newton-Schulz and the exact factor against the float64 singular value decomposition."""

import pytest
import torch

from polarlight.linalg.coefficients import CUBIC5, DEEPSEEK_V4, JORDAN, SIMPLE_QUINTIC, YOU
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import Schatten4
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.svd import ExactPolar
from tests.linalg.spectra import FULL_RANK, error, known
from tests.matrices import gaussian

SCHEDULES = [JORDAN, YOU, SIMPLE_QUINTIC, DEEPSEEK_V4, CUBIC5, polar_express(5)]
SHAPES = [(24, 6), (6, 24), (8, 8), (3, 24, 6), (2, 3, 6, 24), (1, 5), (5, 1), (1, 1)]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def svd_polar(M):
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


@shapes
def test_exact_polar_is_the_factor_of_the_svd(shape):
    M = gaussian(*shape)
    torch.testing.assert_close(ExactPolar()(M), svd_polar(M))


@shapes
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_newton_schulz_maps_singular_values_by_its_schedule(shape, schedule):
    M = gaussian(*shape)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    relative = S / S.norm(dim=-1, keepdim=True)
    mapped = relative.clone().apply_(schedule)
    # float64 rounding, amplified by slopes up to 8e4
    torch.testing.assert_close(
        NewtonSchulz(schedule)(M), (U * mapped.unsqueeze(-2)) @ Vh, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_the_normalisation_is_what_the_schedule_sees(schedule):
    M = gaussian(12, 7)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    mapped = (S / (S**4).sum() ** 0.25).apply_(schedule)
    torch.testing.assert_close(
        NewtonSchulz(schedule, normalisation=Schatten4())(M), (U * mapped) @ Vh, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_iteration_dtype_limits_the_accuracy(dtype, tolerance):
    M = gaussian(64, 16, dtype=torch.float32)
    U = NewtonSchulz(SIMPLE_QUINTIC, dtype=dtype)(M)
    assert U.dtype == torch.float32
    # bfloat16 keeps 8 bits: 4e-3 per product, a few times that after twelve steps
    torch.testing.assert_close(U, svd_polar(M.double()).float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FULL_RANK)
@pytest.mark.parametrize("shape", [(48, 48), (60, 20), (20, 60)], ids=str)
def test_exact_polar_over_conditioning(name, shape):
    case = known(name, *shape)
    condition = (case.sigma[0] / case.sigma[-1]).item()
    # The polar factor moves by about eps * condition when its argument is rounded.
    assert error(ExactPolar()(case.M), case.polar) < 2e-15 * condition
    if condition < 1e4:  # beyond 1 / (60 eps) float32 cuts off
        assert error(ExactPolar()(case.M.float()), case.polar) < 1e-6 * condition


@pytest.mark.parametrize("name", ["half rank", "rank 1"])
def test_rank_deficient_input_gives_a_partial_isometry(name):
    case = known(name, 24, 12)
    # As exact as the matrix: its null space is known to eps.
    torch.testing.assert_close(ExactPolar()(case.M), case.polar, rtol=0, atol=1e-14)
    assert error(ExactPolar()(case.M.float()), case.polar) < 1e-6


def test_cutoff_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"cutoff must lie in \[0, 1\), got 1\.5"):
        ExactPolar(cutoff=1.5)
