"""What every map says it costs: the formulas of the documentation, counted here by hand."""

import pytest
import torch

from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.chaotic import Chaotic
from polarlight.linalg.coefficients import CUBIC, JORDAN
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Frobenius, Schatten4, Schatten8
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.rational import RationalStep, iteration_flops
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import ZoloPD
from polarlight.rules import ExactBalanced

M, N = 700, 300
MNK, K3 = M * N * N, N**3

COUNTS = [
    (ExactPolar(), 8 * MNK + 20 * K3),
    (EigenPolar(), 8 * MNK + 34 * K3 / 3),
    (RegularisedPolar(), 4 * MNK + 11 * K3),
    (ExactPower(0.5), 8 * MNK + 20 * K3),
    # Three inverses, three cubes of two products, twice three more, a fourth power of two.
    (RationalPower(6, 4), 8 * MNK + 2 * (3 + 3 * 2 + 2 * 3 + 2) * K3),
    # Three squares of one product, and no power.
    (RationalPower(4, 1), 8 * MNK + 2 * (3 + 3 * 1 + 2 * 3) * K3),
    # Three fifth powers of three products, an eighth of three.
    (RationalPower(10, 8), 8 * MNK + 2 * (3 + 3 * 3 + 2 * 3 + 3) * K3),
    # Half of it is no root: the matrix is scaled alone.
    (RationalPower(2, 0), 8 * MNK + 2 * (3 + 2 * 3) * K3),
    (NewtonSchulz(JORDAN), 2 * M * N + 5 * (4 * MNK + 2 * K3)),
    (NewtonSchulz(CUBIC), 2 * M * N + 15 * 4 * MNK),
    (NewtonSchulz(normalisation=Schatten8()), 2 * N**2 + 5 * (4 * MNK + 2 * K3)),
    (Chaotic(), 2 * M * N + 5 * (4 * MNK + 2 * K3)),
    (Frobenius(), 2 * M * N),
    (Schatten4(), 2 * MNK + 2 * N**2),
    (Schatten8(), 2 * N**2),
    (AOL(), 2 * MNK + N**2),
]


@pytest.mark.parametrize(("counted", "flops"), COUNTS, ids=lambda x: str(x)[:40])
def test_flops_are_those_of_the_formula_on_either_side(counted, flops):
    assert counted.flops(M, N) == counted.flops(N, M) == flops


def test_three_rational_steps_cost_thirty_four_cubes_as_documented():
    assert RationalPower(6, 4).flops(100, 100) == (8 + 34) * 1e6


@pytest.mark.parametrize(("m", "cubes"), [(400, 62), (100, 24)])
def test_the_engine_that_chooses_costs_what_its_documentation_says(m, cubes):
    """Four steps: two segments of two, or the plain form; and the norm."""
    assert AutoPolar().flops(m, 100) == AutoPolar().flops(100, m) == cubes * 1e6 + 2e4


def test_the_choice_is_counted_in_bfloat16_whatever_runs():
    long = AutoPolar(polar_express(6), dtype=torch.float64)
    assert long.flops(4096, 1024) == AutoPolar(polar_express(6)).flops(4096, 1024)


def by_hand(m, n, factorisations):
    """Operations of a rational iteration on an m x n matrix, given (QRs, Choleskys) per step."""
    total = 4 * m * n**2  # polish
    for by_qr, by_cholesky in factorisations:
        total += by_qr * (4 * (m + n) * n**2 - 4 / 3 * n**3 + 2 * m * n**2)
        total += by_cholesky * (2 * m * n**2 + n**3 / 3)
        total += 2 * m * n**2 if by_cholesky else 0
    return total


def reduced(m, n, factorisations):
    """The same behind a triangular factor."""
    return 6 * m * n**2 - 4 / 3 * n**3 + by_hand(n, n, factorisations) + cut(n, n)


def cut(m, n):
    """Operations of the cut-off: I - Q2 Q2', one Cholesky factorisation, two solutions."""
    return 2 * n**3 + n**3 / 3 + 2 * 2 * m * n**2


HALLEY = [(1, 0), (1, 0), (0, 1), (0, 1)]
"""Of the source's table for l = 2^-23: two steps by QR, two by Cholesky."""


@pytest.mark.parametrize(("m", "n"), [(300, 300), (310, 300)])
def test_nearly_square_matrices_are_iterated_as_they_are(m, n):
    expected = 4 * m * n + by_hand(m, n, HALLEY) + cut(m, n)
    assert QDWH().flops(m, n) == QDWH().flops(n, m) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("m", "n"), [(450, 300), (3000, 300)])
def test_longer_ones_are_reduced(m, n):
    expected = 4 * m * n + reduced(m, n, HALLEY)
    assert QDWH().flops(m, n) == QDWH().flops(n, m) == pytest.approx(expected, rel=1e-12)


def test_terms_of_one_step_share_a_gram_matrix_and_the_least_shift_goes_by_cholesky():
    step = RationalStep(1.0, ((1.0, 1e-4), (1.0, 0.01), (1.0, 0.5)))
    expected = 4 * 100 * 100 + by_hand(100, 100, [(1, 2)])
    assert iteration_flops(100, 100, [step], torch.float32) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("engine", [QDWH, ZoloPD])
def test_an_engines_own_dtype_counts_before_the_one_asked_for(engine):
    narrow, wide = engine(dtype=torch.float32), engine(dtype=torch.float64)
    assert narrow.flops(90, 90, torch.float64) == engine().flops(90, 90)
    assert wide.flops(90, 90) == engine().flops(90, 90, torch.float64) > narrow.flops(90, 90)


def test_three_zolotarev_terms_twice():
    """Float32: of the first step's poles two are small, of the second's none."""
    first, second = ZoloPD().plan(torch.float32)
    small = [sum(shift < 0.01 for _, shift in step.terms) for step in (first, second)]
    factorisations = [(few, 3 - few) for few in small]
    expected = 4 * 90 * 90 + by_hand(90, 90, factorisations) + cut(90, 90)
    assert ZoloPD().flops(90, 90) == pytest.approx(expected, rel=1e-12)


def test_the_gram_form_is_counted_in_its_own_dtype():
    engine, own = GramNewtonSchulz(polar_express(8)), torch.bfloat16
    assert GramNewtonSchulz(polar_express(8), own).flops(9000, 900) == engine.flops(9000, 900, own)
    assert engine.flops(9000, 900, own) > engine.flops(9000, 900)


def test_the_exact_solver_counts_its_parts():
    """A Newton step: the factored Laplacian, six products, an eigenbasis, a balance; then the CG.

    A balance of three rounds: four polar factors of four products, an eigenbasis and a solution
    each, and three Laplacians of m x m.
    """
    m, n = 24, 6
    product, eigenbasis = 2 * m * n * n, 9 * n**3
    factored = 2 * m * m * n + m**3 / 3
    balance = 4 * (4 * product + eigenbasis + 7 / 3 * n**3) + 3 * factored
    step = factored + 6 * product + eigenbasis + balance
    assert ExactBalanced(steps=1, cg_steps=1).flops(m, n) == pytest.approx(step + 8 * product)
    assert ExactBalanced(steps=5, cg_steps=3).flops(m, n) == pytest.approx(
        5 * (step + 3 * 8 * product)
    )
