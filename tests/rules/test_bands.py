"""Solvers, powers and bases under the search that the engines stand."""

import pytest
import torch

from polarlight.lab.accuracy.adversarial import largest, search
from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.spectral_power import NEGATIVE_FLOOR, ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.rules.aurora_exact import ExactBalanced
from polarlight.rules.aurora_paper import FeedbackPolar
from polarlight.rules.aurora_release import BalancedPolar
from polarlight.rules.aurora_warm import WarmPolar
from polarlight.rules.riemannian_aurora import RiemannianPolar
from polarlight.stages.eigenbasis import PowerIteration, starting_basis

BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
TALL = ((9, 3), (33, 20), (12, 11))

SIX = {d: NewtonSchulz(polar_express(6), d) for d in (BF16, FP32)}
SOLVERS = {
    **{
        f"{solver.__name__} {str(dtype)[6:]}": (solver(polar), bound)
        for solver in (BalancedPolar, FeedbackPolar, RiemannianPolar)
        for dtype, polar, bound in (
            (BF16, SIX[BF16], 1.014),
            (FP32, SIX[FP32], 1.0025),
            (FP64, ExactPolar(), 1 + 5e-6),
        )
    },
    "ExactBalanced": (ExactBalanced(steps=3, cg_steps=3), 1 + 1e-6),
}
"""A solver's result is a polar factor: the band is its engine's, doubled over what is found."""


def worst(score, shapes, dtype=FP32, count=16, rounds=2):
    found = [search(score, shape, count=count, rounds=rounds, dtype=dtype) for shape in shapes]
    return max(w.score for w in found)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_keeps_the_band_of_its_engine(name):
    solver, bound = SOLVERS[name]
    few = 2 if name == "ExactBalanced" else 16
    assert worst(lambda M: largest(solver(M)), TALL[:1], count=few) < bound


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_keeps_the_band_of_its_engine_in_a_long_search(name):
    solver, bound = SOLVERS[name]
    many = 16 if name == "ExactBalanced" else 256
    assert worst(lambda M: largest(solver(M)), TALL, count=many, rounds=many // 16) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(BF16, 1.11), (FP32, 1.03)], ids=str)
def test_a_kept_row_scale_leads_out_of_no_band(dtype, bound):
    """Three steps on one state: a matrix, its mirror image, and the matrix again."""
    solver = WarmPolar(AutoPolar(dtype=dtype))

    def third(M):
        kept = {name: M.new_zeros(*M.shape[:-1], 1) for name in ("row_scale", "row_size")}
        solver(M, kept)
        solver(M.flip(-1), kept)
        return largest(solver(M, kept))

    assert worst(third, TALL, count=32, rounds=5) < bound


@pytest.mark.parametrize(("b", "a"), [(6, 4), (4, 1), (4, 2), (2, 2)])
def test_a_rational_power_in_float32_ends_where_float64_does(b, a):
    """Largest value of each: near a third of `lower` for negative powers, at 1 for others."""
    power = RationalPower(b, a)
    found = [worst(lambda M: largest(power(M)), TALL, d, 32, 3) for d in (FP32, FP64)]
    highest = max(1.0, (power.lower / 3) ** power.exponent)
    assert max(found) < 1.03 * highest


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.0, 0.5])
def test_an_exact_power_ends_at_its_floor(exponent):
    highest = max(1.0, NEGATIVE_FLOOR**exponent)
    found = worst(lambda M: largest(ExactPower(exponent)(M)), TALL, count=32)
    assert found < highest * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [FP32, FP64], ids=str)
def test_bases_are_orthonormal_for_any_factor(dtype):
    """SOAP's: at the start, and after three steps of the power iteration."""

    def defect(M):
        Q, S = starting_basis(M), M @ M.mT
        for _ in range(3):
            Q, _ = PowerIteration()(S, Q)
        bases = torch.stack([starting_basis(M), Q]).double()
        unit = torch.eye(Q.shape[-1], dtype=FP64)
        return largest(bases.mT @ bases - unit).amax(dim=0)

    found = worst(defect, TALL, dtype, 32, 3)
    assert found < 40 * torch.finfo(dtype).eps
