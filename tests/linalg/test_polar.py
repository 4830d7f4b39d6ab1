"""Polar engines against the float64 singular value decomposition."""

import pytest
import torch

from polarlight.linalg.coefficients import DEEPSEEK_V4, JORDAN, SIMPLE_QUINTIC, YOU
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.svd import ExactPolar

SCHEDULES = [JORDAN, YOU, SIMPLE_QUINTIC, DEEPSEEK_V4, polar_express(5)]
ENGINES = [ExactPolar(), *(NewtonSchulz(s) for s in SCHEDULES)]
SHAPES = [(24, 6), (6, 24), (8, 8), (3, 24, 6), (2, 3, 6, 24), (1, 5), (5, 1), (1, 1)]

engines = pytest.mark.parametrize("engine", ENGINES, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def gaussian(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_iteration_dtype_limits_the_accuracy(dtype, tolerance):
    M = gaussian(64, 16, dtype=torch.float32)
    U = NewtonSchulz(SIMPLE_QUINTIC, dtype=dtype)(M)
    assert U.dtype == torch.float32
    # bfloat16 keeps 8 bits: 4e-3 per product, a few times that after twelve steps
    torch.testing.assert_close(U, svd_polar(M.double()).float(), rtol=0, atol=tolerance)


@engines
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_and_shape_are_kept_and_the_input_is_not_written(engine, dtype):
    M = gaussian(3, 12, 5, dtype=torch.float32).to(dtype)
    before = M.clone()
    U = engine(M)
    assert (U.dtype, U.shape) == (M.dtype, M.shape)
    assert torch.equal(M, before)
    assert U.data_ptr() != M.data_ptr()


@engines
def test_strided_input_gives_the_same(engine):
    M = gaussian(9, 30)[:, ::2].mT
    assert not M.is_contiguous()
    torch.testing.assert_close(engine(M), engine(M.contiguous()))


@engines
def test_a_batch_is_its_matrices(engine):
    M = gaussian(4, 10, 7)
    torch.testing.assert_close(engine(M), torch.stack([engine(m) for m in M]))


@engines
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_scale_of_the_input_does_not_matter(engine, factor):
    M = gaussian(12, 5, dtype=torch.float32)
    # Dividing by the largest entry rounds once; the iteration may run in bfloat16.
    torch.testing.assert_close(engine(M * factor), engine(M), rtol=0, atol=2e-2)


@engines
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 5, 5)])
def test_zero_maps_to_zero(engine, shape):
    assert torch.equal(engine(torch.zeros(shape)), torch.zeros(shape))


@engines
def test_a_zero_row_and_column_stay_zero(engine):
    M = gaussian(12, 5)
    M[3], M[:, 2] = 0, 0
    U = engine(M)
    assert U[3].abs().max() < 1e-12
    assert U[:, 2].abs().max() < 1e-12


@engines
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_entry_spoils_its_own_matrix_and_no_other(engine, poison):
    M = gaussian(3, 8, 4, dtype=torch.float32)
    clean = engine(M)
    M[1, 2, 3] = poison
    U = engine(M)
    assert U[1].isnan().all()
    assert torch.equal(U[0], clean[0])
    assert torch.equal(U[2], clean[2])


@engines
def test_empty_matrices_come_back(engine):
    assert engine(torch.zeros(0, 5)).shape == (0, 5)
    assert engine(torch.zeros(5, 0)).shape == (5, 0)
    assert engine(torch.zeros(0, 3, 4)).shape == (0, 3, 4)


@engines
@pytest.mark.parametrize("schedule_input", [(16, 4), (4, 16)])
def test_rank_one_in_bfloat16_does_not_overshoot(engine, schedule_input):
    m, n = schedule_input
    M = (torch.ones(m, 1) @ torch.linspace(0.5, 1, n).reshape(1, n)).bfloat16()
    # Its only singular value is the norm itself, up to 0.4 percent above it after rounding: the
    # value that leaves the interval of unsafe schedules.
    assert 0.6 < torch.linalg.matrix_norm(engine(M).float(), 2) < 1.25


def test_rank_deficient_input_gives_a_partial_isometry():
    M = gaussian(12, 3) @ gaussian(3, 5, seed=1)
    sigma = torch.linalg.svdvals(ExactPolar()(M))
    torch.testing.assert_close(sigma, torch.tensor([1, 1, 1, 0, 0], dtype=torch.float64))


@engines
@pytest.mark.parametrize(
    ("M", "error", "said"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64), TypeError, "complex64"),
        (torch.zeros(3, 3, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(7), ValueError, r"shape \(7,\)"),
    ],
)
def test_what_is_no_real_matrix_is_refused(engine, M, error, said):
    with pytest.raises(error, match=said):
        engine(M)


def test_cutoff_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"cutoff must lie in \[0, 1\), got 1\.5"):
        ExactPolar(cutoff=1.5)
