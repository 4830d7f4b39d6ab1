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
from polarlight.rules.kl_soap import kl_soap
from polarlight.rules.riemannian_aurora import RiemannianPolar
from polarlight.rules.soap import soap
from polarlight.stages.eigenbasis import PowerIteration, starting_basis
from polarlight.stages.shampoo import Shampoo

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


def zeros(stage, M):
    return {k: torch.zeros(size, dtype=M.dtype) for k, size in stage.buffer_shapes(M.shape).items()}


def sequence(M):
    """A matrix, its mirror image, the matrix again, and it upside down and a thousandth of that."""
    return M, M.flip(-1), M, 1e-3 * M.flip(-2)


def defect(Q):
    """Return |Q'Q - I|_2."""
    Q = Q.double()
    return largest(Q.mT @ Q - torch.eye(Q.shape[-1], dtype=FP64))


def defect_of_iteration(M):
    """Return the defect of SOAP's bases, at the start and after three power iterations."""
    Q, S = starting_basis(M), M @ M.mT
    for _ in range(3):
        Q, _ = PowerIteration()(S, Q)
    return torch.maximum(defect(starting_basis(M)), defect(Q))


def defect_after(rule):
    """Return the defect of both bases of a rule after a sequence of gradients."""

    def score(M):
        buffers = zeros(rule.map, M)
        for G in sequence(M):
            rule.map(G, buffers)
        return torch.maximum(defect(buffers["left_basis"]), defect(buffers["right_basis"]))

    return score


BASES = {
    "iteration": defect_of_iteration,
    "soap": defect_after(soap(every=1)),
    "kl_soap": defect_after(kl_soap()),
    "kl_soap, every 2": defect_after(kl_soap(every=2)),
}


@pytest.mark.parametrize("dtype", [FP32, FP64], ids=str)
@pytest.mark.parametrize("name", BASES)
def test_bases_are_orthonormal_for_any_factor(name, dtype):
    """A search finds 11 epsilons."""
    few = {"count": 32, "rounds": 3} if name == "iteration" else {"count": 4, "rounds": 1}
    assert worst(BASES[name], TALL, dtype, **few) < 40 * torch.finfo(dtype).eps


def shampoo(betas, gradients):
    """Return the largest singular value of the last direction of a sequence."""
    stage = Shampoo(betas)

    def score(M):
        buffers = zeros(stage, M)
        for G in gradients(M):
            D = stage(G, buffers)
        return largest(D)

    return score


SHAMPOO = {
    "without memory": (shampoo((0.0, 0.0), lambda M: (M,)), 1.12),
    "with memory": (shampoo((0.95, 0.95), sequence), 1.0),
}
"""Without memory the direction is the polar factor. An eigenvalue of a factor is known to c = 1 +
sqrt(r) / 2 epsilons of the largest: its solver rounds by one, and the r products that an entry of
the factor sums by half of one each, at random. The longer side's are kept above k epsilons. So
a singular value grows by at most sqrt(k + c) / (k (k + c - c'))^(1/4), c' of the other factor:
1.12 on 9 x 3. A search finds 1.04. With equal decay rates M M' <= L and M' M <= R, so that
L^(-1/4) M R^(-1/4) has norm 1 at most."""


@pytest.mark.parametrize("dtype", [FP32, FP64], ids=str)
@pytest.mark.parametrize("name", SHAMPOO)
def test_shampoo_stretches_nothing(name, dtype):
    score, bound = SHAMPOO[name]
    assert worst(score, TALL, dtype, count=8, rounds=2) < bound


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, FP64], ids=str)
@pytest.mark.parametrize("name", [*BASES, *SHAMPOO])
def test_bases_and_shampoo_in_a_long_search(name, dtype):
    bases = (BASES.get(name), 40 * torch.finfo(dtype).eps)
    score, bound = SHAMPOO.get(name, bases)
    assert worst(score, TALL, dtype, count=128, rounds=20) < bound
