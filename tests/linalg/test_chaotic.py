"""Chaotic maps: their shape, the bound on the slope, rank one, and how far results reproduce."""

import math

import pytest
import torch

from polarlight.linalg.chaotic import KAON, MAXIMAL_SLOPE, SAFETY, Chaotic, steepest_bump
from polarlight.linalg.cost import flops
from tests.matrices import SHAPES, gaussian
from tests.reference import kaon as reference

MAPS = [Chaotic(KAON), Chaotic(MAXIMAL_SLOPE)]
maps = pytest.mark.parametrize("chaos", MAPS, ids=str)
GRID = [i / 20000 for i in range(20001)]


def value(step, s):
    a, b, c = step
    return s * (a + s**2 * (b + s**2 * c))


def test_the_steepest_bump_touches_one_once_and_ends_at_one():
    step = steepest_bump()
    assert step == pytest.approx((4.257151, -12.640875, 9.383724), abs=1e-6)
    values = [value(step, s) for s in GRID]
    assert min(values) > -1e-12
    assert max(values) == pytest.approx(1, abs=1e-7)  # the grid misses the peak by 1e-8
    assert values[-1] == pytest.approx(1, abs=1e-12)
    assert GRID[values.index(max(values[:12000]))] == pytest.approx(0.367, abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_quintic_into_the_interval_is_steeper(seed):
    """s ((u + v s^2)^2 + w s^2 (1 - s^2)) with w >= 0 are all odd quintics >= 0 (Lukacs)."""
    bound = steepest_bump()[0]
    for u, v, w in gaussian(200, 3, seed=seed).tolist():
        step = (u * u, 2 * u * v + w * w, v * v - w * w)
        assert step[0] / max(value(step, s) for s in GRID[::20]) < bound  # nearest of 1000: 4.10


def test_kaons_bump_is_not_steeper_either():
    peak = max(value(KAON.steps[0], s) for s in GRID)
    assert peak == pytest.approx(1.17349, abs=1e-5)
    assert steepest_bump()[0] > 4.1


@pytest.mark.parametrize(("schedule", "slope"), [(KAON, 4.1**5 / 1.175), (MAXIMAL_SLOPE, 1398.3)])
def test_slope_at_zero_and_range(schedule, slope):
    assert schedule.slope == pytest.approx(slope / SAFETY, rel=1e-4)
    values = [schedule(s) for s in GRID]
    assert -1e-9 < min(values) <= max(values) < 1 + 1e-9


@pytest.mark.parametrize(("schedule", "arrives"), [(KAON, 0.9987), (MAXIMAL_SLOPE, 0.9901)])
def test_rank_one_does_not_vanish(schedule, arrives):
    M = torch.outer(gaussian(12), gaussian(5, seed=1))
    sigma = torch.linalg.svdvals(Chaotic(schedule)(M))
    assert sigma[0].item() == pytest.approx(arrives, abs=1e-4)
    assert sigma[1] < 1e-10
    # A norm that half precision rounded by 0.4 percent keeps a share, too.
    assert min(schedule(s) for s in (0.996, 1.0, 1.004)) > 0.3


def test_without_the_safety_rank_one_would_vanish():
    M = torch.outer(gaussian(12), gaussian(5, seed=1)).numpy()
    assert abs(reference.chaotic(M, safety=1.0)).max() < 1e-12


@pytest.mark.parametrize("shape", [*SHAPES, (1, 5), (5, 1)])
def test_the_maps_are_those_of_the_formulas(shape):
    M = gaussian(*shape)
    expected = torch.from_numpy(reference.chaotic(M.numpy()))
    # float64 rounding, amplified by at most 966 and 1370
    torch.testing.assert_close(Chaotic(KAON)(M), expected, rtol=0, atol=1e-11)
    a, b, _ = steepest_bump()
    bump = {"K": a, "z": -b / (2 * a), "divisor": 1.0}
    expected = torch.from_numpy(reference.chaotic(M.numpy(), **bump))
    torch.testing.assert_close(Chaotic(MAXIMAL_SLOPE)(M), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("schedule", "bound"), [(KAON, 1e-4), (MAXIMAL_SLOPE, 2e-3)])
def test_float32_reproduces_float64_to_the_stated_figure(schedule, bound):
    chaos = Chaotic(schedule)
    for shape in [(24, 6), (64, 64), (128, 32)]:
        for seed in range(5):
            M = gaussian(*shape, seed=seed, dtype=torch.float32)
            # Worst of these 3e-5 and 7e-4.
            assert (chaos(M) - chaos(M.double())).abs().max() < bound


def test_half_precision_input_is_iterated_in_float32():
    M = gaussian(24, 6, dtype=torch.bfloat16)
    assert Chaotic()(M).dtype == torch.bfloat16
    torch.testing.assert_close(Chaotic()(M), Chaotic()(M.float()).bfloat16(), rtol=0, atol=0)


def test_neighbours_are_torn_apart():
    """Inputs that differ by 1e-6 have far apart outputs."""
    apart = [abs(KAON(s + 1e-6) - KAON(s)) for s in GRID[1:-1]]
    assert max(apart) > 5e-4
    # The mean rate over the interval, in powers of e per step: 0.9 in the long run.
    rate = sum(math.log(max(d, 1e-12) / 1e-6) for d in apart) / len(apart) / len(KAON.steps)
    assert 0.5 < rate < 1.2


@maps
def test_rotations_commute_with_it(chaos):
    M = gaussian(24, 6)
    P, Q = (torch.linalg.qr(gaussian(n, n, seed=9)).Q for n in (24, 6))
    torch.testing.assert_close(chaos(P @ M @ Q), P @ chaos(M) @ Q, rtol=0, atol=1e-10)


@maps
def test_batches_zeros_and_costs(chaos):
    M = gaussian(3, 12, 5)
    torch.testing.assert_close(chaos(M), torch.stack([chaos(m) for m in M]), rtol=0, atol=1e-10)
    M[1] = 0
    assert not chaos(M)[1].any()
    assert flops(chaos, 12, 5) > 0


@pytest.mark.parametrize(
    ("M", "error"),
    [(torch.zeros(3, 3, dtype=torch.int64), TypeError), (torch.zeros(7), ValueError)],
)
def test_complex_integer_and_vector_inputs_raise(M, error):
    with pytest.raises(error):
        Chaotic()(M)
