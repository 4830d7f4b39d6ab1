"""Contracts of every engine, independent of its iteration."""

import inspect
import math

import pytest
import torch

from polarlight.linalg.auto import QUICK, AutoPolar
from polarlight.linalg.coefficients import (
    CANS,
    CUBIC,
    CUBIC5,
    DEEPSEEK_V4,
    JORDAN,
    PADE_QUINTIC,
    SIMPLE_QUINTIC,
    TURBO_MUON,
    YOU,
)
from polarlight.linalg.cost import flops
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Frobenius, Schatten4, Schatten8
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.linalg.polar_express import MODDED_NANOGPT, polar_express
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import ZoloPD
from tests.matrices import gaussian

SCHEDULES = [
    JORDAN,
    YOU,
    SIMPLE_QUINTIC,
    CUBIC,
    PADE_QUINTIC,
    DEEPSEEK_V4,
    CANS,
    TURBO_MUON,
    CUBIC5,
    MODDED_NANOGPT,
    polar_express(5),
    polar_express(8, degree=3),
    polar_express(10, lower=1e-5),
    QUICK,
]
ENGINES = [
    *(NewtonSchulz(s, normalisation=s.normalisation) for s in SCHEDULES),
    NewtonSchulz(JORDAN, normalisation=Schatten4()),
    NewtonSchulz(JORDAN, normalisation=Schatten8()),
    NewtonSchulz(JORDAN, normalisation=AOL()),
    AutoPolar(),
    GramNewtonSchulz(QUICK, normalisation=Schatten8(), restarts=(2,)),
    GramNewtonSchulz(),
    GramNewtonSchulz(TURBO_MUON, normalisation=AOL()),
    GramNewtonSchulz(),
    ExactPolar(),
    EigenPolar(),
    RegularisedPolar(),
    OneSidedPolar(GramSide.LEFT),
    OneSidedPolar(GramSide.RIGHT, RegularisedPolar()),
    QDWH(),
    QDWH(1e-3, steps=2),
    ZoloPD(),
    ZoloPD(1e-3, terms=1),
]

OVERSHOOT = 0.62
"""Twice what the steepest schedule, rounded the wrong way at each step, exceeds 1 by: 0.31."""

engines = pytest.mark.parametrize("engine", ENGINES, ids=str)
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)


@pytest.mark.in_turn(4, "engine", "dtype", "shape")
@engines
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 12, 5), (5, 12), (7, 7), (1, 5), (5, 1), (1, 1)], ids=str)
def test_dtype_and_shape_are_kept_and_the_input_is_not_written(engine, dtype, shape):
    M = gaussian(*shape, dtype=torch.float32).to(dtype)
    before = M.clone()
    U = engine(M)
    assert (U.dtype, U.shape) == (M.dtype, M.shape)
    assert U.isfinite().all()
    assert torch.equal(M, before)
    assert U.data_ptr() != M.data_ptr()


@engines
def test_strided_input_gives_the_same(engine):
    M = gaussian(9, 30)[:, ::2].mT
    assert not M.is_contiguous()
    torch.testing.assert_close(engine(M), engine(M.contiguous()))


@engines
@pytest.mark.parametrize("shape", [(4, 10, 7), (4, 7, 10), (2, 2, 6, 6)], ids=str)
def test_a_batch_is_its_matrices(engine, shape):
    M = gaussian(*shape)
    each = [engine(m) for m in M.reshape(-1, *shape[-2:])]
    # The same arithmetic, but products of a batch may be summed in another order.
    torch.testing.assert_close(engine(M), torch.stack(each).view(shape), rtol=1e-9, atol=1e-9)


@engines
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_scale_of_the_input_does_not_matter(engine, factor):
    M = gaussian(12, 5, dtype=torch.float32)
    # Dividing by the largest entry rounds once; the iteration may run in bfloat16. Where that reads
    # M itself in bfloat16, M * factor is rounded to other entries than M: once more, by 2^-9.
    tolerance = 6e-2 if engine.input_dtype(M.dtype, M.device) == torch.bfloat16 else 2e-2
    torch.testing.assert_close(engine(M * factor), engine(M), rtol=0, atol=tolerance)


@engines
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**40, 2.0**100])
def test_a_power_of_two_changes_no_bit(engine, factor):
    M = gaussian(12, 5, dtype=torch.float32)
    assert torch.equal(engine(M * factor), engine(M))


@engines
def test_a_matrix_may_be_handed_over_in_what_is_read(engine):
    """Executors do: they choose time and place, never values."""
    M = gaussian(12, 5, dtype=torch.float32)
    narrow = M.to(engine.input_dtype(M.dtype, M.device))
    assert torch.equal(engine(narrow), engine(M).to(narrow.dtype))


@engines
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 5, 5)], ids=str)
def test_zero_maps_to_zero(engine, shape):
    assert torch.equal(engine(torch.zeros(shape)), torch.zeros(shape))


@engines
def test_zero_rows_and_columns_stay_zero(engine):
    M = gaussian(12, 5)
    M[3], M[:, 2] = 0, 0
    for U in (engine(M), engine(M.mT).mT):
        assert U[3].abs().max() < 1e-12
        assert U[:, 2].abs().max() < 1e-12


@engines
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_entry_spoils_its_own_matrix_and_no_other(engine, poison):
    M = gaussian(3, 8, 4, dtype=torch.float32)
    clean = engine(M)
    M[1, 2, 3] = poison
    U = engine(M)
    assert U[1].isnan().all()
    assert torch.equal(U[0], clean[0])
    assert torch.equal(U[2], clean[2])


@engines
@pytest.mark.parametrize("entry", [0.02, -70.0])
def test_a_single_entry_becomes_its_sign(engine, entry):
    (found,) = engine(torch.tensor([[entry]], dtype=torch.float64)).flatten().tolist()
    # The widest band of a schedule here is Jordan's.
    assert 0.68 < found * math.copysign(1, entry) < 1.2


@engines
def test_empty_matrices_come_back(engine):
    for shape in ((0, 5), (5, 0), (0, 3, 4)):
        assert engine(torch.zeros(shape)).shape == shape


@engines
@pytest.mark.parametrize(
    ("M", "wrong", "said"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64), TypeError, "complex64"),
        (torch.zeros(3, 3, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(3, 3, dtype=torch.bool), TypeError, "bool"),
        (torch.zeros(7), ValueError, r"shape \(7,\)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_complex_integer_and_vector_inputs_raise(engine, M, wrong, said):
    with pytest.raises(wrong, match=said):
        engine(M)


@engines
@pytest.mark.parametrize("shape", [(300, 280), (280, 900), (2, 6, 4)], ids=str)
def test_no_engine_reads_values_on_the_host(engine, shape):
    """A meta tensor has none: `.item()`, a branch on a tensor or a copy to the host would raise."""
    M = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    assert engine(M).shape == shape


@engines
def test_global_random_numbers_are_left_alone(engine):
    before = torch.get_rng_state()
    engine(gaussian(6, 4))
    assert torch.equal(torch.get_rng_state(), before)


@engines
def test_a_counted_cost_grows_with_the_matrix(engine):
    assert 0 < flops(engine, 300, 200) < flops(engine, 300, 400) < flops(engine, 2000, 400)
    if not isinstance(engine, OneSidedPolar):  # that one does as it is told
        assert flops(engine, 700, 300) == flops(engine, 300, 700)
    assert "flops" in inspect.getdoc(type(engine))


def test_names_are_short_and_values_compare():
    names = [str(engine) for engine in ENGINES]
    assert max(map(len, names)) <= 60
    for engine in ENGINES:
        assert "0x" not in repr(engine)
        assert hash(engine) == hash(type(engine)(**_fields(engine)))
        assert engine == type(engine)(**_fields(engine))


def _fields(engine):
    return {name: getattr(engine, name) for name in inspect.signature(type(engine)).parameters}


@pytest.mark.parametrize(
    ("schedule", "normalisation"),
    [
        (s, n)
        for s in SCHEDULES
        for n in (Frobenius(), Schatten4(), AOL())
        if s.normalisation.scalar or n == s.normalisation
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_rank_one_in_bfloat16_keeps_its_sign_and_size(schedule, normalisation):
    """The singular value is the norm, up to 0.4 percent above 1 after rounding."""
    engine = NewtonSchulz(schedule, torch.bfloat16, normalisation)
    for seed, (m, n) in enumerate([(16, 4), (4, 16), (64, 64), (1, 7), (7, 1), (200, 100)]):
        u, v = gaussian(m, 1, seed=seed), gaussian(n, 1, seed=seed + 50)
        U = engine((u @ v.mT).bfloat16()).double()
        along = (u.mT @ U @ v).item() / (u.norm() * v.norm()).item()
        # AOL evens the entries of v out, so that the direction turns, by E|v| = 0.8 for Gaussian v.
        least = 0.6 if normalisation.scalar else 0.35
        assert along > least, (m, n)
        assert along - 1 < OVERSHOOT, (m, n)
        assert torch.linalg.matrix_norm(U, 2) - 1 < OVERSHOOT, (m, n)


@schedules
def test_rounding_of_every_step_stays_inside(schedule):
    """Each step off by 0.6 percent, the wrong way each time for some: no blow-up, no flip."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(-1, 2, (4000, len(schedule.steps) + 1), generator=generator)
    low = 1e-2 if schedule is TURBO_MUON else 7e-3
    x = torch.logspace(0, torch.tensor(low).log10().item(), 4000, dtype=torch.float64)
    x = x / schedule.safety * (1 + 0.006 * signs[:, 0])
    for (a, b, c), sign in zip(schedule.steps, signs.mT[1:], strict=True):
        x = x * (a + b * x**2 + c * x**4) * (1 + 0.006 * sign)
    assert x.min() > 0.6
    assert x.max() - 1 < OVERSHOOT
