"""Counted operations: the formulas of the documentation, worked out here by hand."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from polarlight.linalg import cost, rational, schedules
from polarlight.linalg.auto import AutoPolar
from polarlight.linalg.chaotic import Chaotic
from polarlight.linalg.coefficients import CUBIC, JORDAN
from polarlight.linalg.cost import counted, flops, iteration_count
from polarlight.linalg.eigen import EigenPolar
from polarlight.linalg.gram import GramNewtonSchulz
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import AOL, Schatten4, Schatten8
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.qdwh import QDWH
from polarlight.linalg.rates import Rates
from polarlight.linalg.rational import RationalStep, iterate
from polarlight.linalg.regularised import RegularisedPolar
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.linalg.svd import ExactPolar
from polarlight.linalg.zolopd import ZoloPD
from tests.matrices import gaussian

M, N = 700, 300
MNK, K3 = M * N * N, N**3
TURBO = NewtonSchulz(schedules.TURBO_MUON, normalisation=AOL())

COUNTS = [
    (ExactPolar(), 8 * MNK + 20 * K3),
    (EigenPolar(), 8 * MNK + 34 * K3 / 3),
    (RegularisedPolar(), 4 * MNK + 11 * K3),
    (ExactPower(0.5), 8 * MNK + 20 * K3),
    # Three inverses of k^3, three cubes of two products, twice three more, a fourth power of two.
    (RationalPower(6, 4), 8 * MNK + (3 + 2 * (3 * 2 + 2 * 3 + 2)) * K3),
    # Three squares of one product, and no power.
    (RationalPower(4, 1), 8 * MNK + (3 + 2 * (3 * 1 + 2 * 3)) * K3),
    # Three fifth powers of three products, an eighth of three.
    (RationalPower(10, 8), 8 * MNK + (3 + 2 * (3 * 3 + 2 * 3 + 3)) * K3),
    (NewtonSchulz(JORDAN), 5 * (4 * MNK + 2 * K3)),
    (NewtonSchulz(CUBIC), 15 * 4 * MNK),
    (NewtonSchulz(normalisation=Schatten8()), 5 * (4 * MNK + 2 * K3)),
    (NewtonSchulz(normalisation=Schatten4()), 2 * MNK + 5 * (4 * MNK + 2 * K3)),
    (TURBO, 2 * MNK + len(TURBO.schedule.steps) * (4 * MNK + 2 * K3)),
    (Chaotic(), 5 * (4 * MNK + 2 * K3)),
]


@pytest.mark.parametrize(("engine", "expected"), COUNTS, ids=lambda x: str(x)[:40])
def test_flops_are_those_of_the_formula_on_either_side(engine, expected):
    assert flops(engine, M, N) == flops(engine, N, M) == round(expected)


@pytest.mark.parametrize(("m", "cubes"), [(400, 62), (100, 24)])
def test_the_default_engine_has_the_documented_cost(m, cubes):
    """Three segments of four steps, or the plain form."""

    def of_default(m, n, dtype):
        engine = AutoPolar(dtype=dtype).engine(m, n, torch.float32, torch.device("cpu"))
        return flops(engine, m, n)

    assert of_default(m, 100, torch.bfloat16) == of_default(100, m, torch.bfloat16) == cubes * 1e6
    assert of_default(m, 100, torch.float32) == (42e6 if m == 400 else 24e6)


FORMS = [
    NewtonSchulz(JORDAN),
    NewtonSchulz(CUBIC, normalisation=Schatten8()),
    GramNewtonSchulz(),
    GramNewtonSchulz(CUBIC, restarts=(2, 5)),
]


@pytest.mark.parametrize("engine", FORMS, ids=str)
@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (64, 64), (3, 2)], ids=str)
def test_two_small_matrices_determine_the_count_of_every_shape(engine, shape):
    whole = counted(lambda: engine(torch.empty(*shape, device="meta")), *shape)
    assert iteration_count(engine, *shape) == whole
    assert whole.symmetric > 0


@pytest.mark.parametrize("engine", [*FORMS, RationalPower(4, 1)], ids=str)
def test_products_are_counted_as_torch_counts_them(engine):
    X = gaussian(3, 9, 5)
    with FlopCounterMode(display=False) as theirs:
        engine(X)
    ours = counted(lambda: engine(X), 9, 5).flops
    inverses = 3 * 3 * 5**3 if isinstance(engine, RationalPower) else 0
    assert ours - inverses == pytest.approx(theirs.get_total_flops())


DECOMPOSED = {
    "qr": (torch.linalg.qr, 4 * 9 * 25 - 4 / 3 * 125),
    "r of qr": (lambda A: torch.linalg.qr(A, mode="r"), 2 * 9 * 25 - 2 / 3 * 125),
    "svd": (lambda A: torch.linalg.svd(A, full_matrices=False), 6 * 9 * 25 + 20 * 125),
    "eigenvectors": (lambda A: torch.linalg.eigh(A[..., :5, :]), 9 * 125),
    "cholesky": (lambda A: torch.linalg.cholesky_ex(A[..., :5, :]), 125 / 3),
    "both solutions": (lambda A: torch.cholesky_solve(A.mT, A[..., :5, :]), 2 * 25 * 9),
    "inverse of a factor": (lambda A: torch.cholesky_inverse(A[..., :5, :]), 2 / 3 * 125),
    "one solution": (
        lambda A: torch.linalg.solve_triangular(A[..., :5, :], A.mT, upper=True),
        25 * 9,
    ),
    "general solution": (
        lambda A: torch.linalg.solve(A[..., :5, :], A.mT),
        2 / 3 * 125 + 2 * 25 * 9,
    ),
    "inverse": (lambda A: torch.linalg.inv_ex(A[..., :5, :]), 2 * 125),
    "lu": (lambda A: torch.linalg.lu_factor_ex(A[..., :5, :]), 2 / 3 * 125),
}


@pytest.mark.parametrize("name", DECOMPOSED)
def test_decompositions_count_as_in_the_textbook_for_each_matrix_of_a_batch(name):
    function, expected = DECOMPOSED[name]
    for batch in ((), (4,), (2, 3)):
        A = torch.empty(*batch, 9, 5, device="meta")
        found = counted(lambda A=A: function(A), 9, 5).flops
        assert found == pytest.approx(expected * torch.Size(batch).numel())


@pytest.mark.parametrize(
    "function",
    [lambda A: torch.linalg.ldl_factor(A.mT @ A), lambda A: A if A.sum() > 0 else -A],
    ids=["a decomposition without a count", "a branch on a value"],
)
def test_maps_that_cannot_be_counted_are_estimated(function):
    assert flops(function, 9, 5) == cost.FLOPS_OF_A_DECOMPOSITION * 9 * 25


def test_a_count_inside_a_count_adds_nothing_to_it():
    """A choice of engine counts its forms while the rule around it is counted."""
    schedule = polar_express(3, lower=0.4321)

    def chooses(X):
        iteration_count(NewtonSchulz(schedule), 9, 5)
        return X @ X.mT

    assert flops(chooses, 9, 5) == 2 * 9 * 9 * 5


def test_a_count_in_inference_mode_is_the_same():
    engine = NewtonSchulz(polar_express(4, lower=0.0123))
    with torch.inference_mode():
        inside = iteration_count(engine, 300, 100)
        whole = flops(engine, 300, 100)
    assert inside.flops == whole == 4 * (4 * 300 + 2 * 100) * 100**2


def test_rates_of_an_engine_decide_its_count():
    never = AutoPolar(rates=Rates(gram_from=10**6))
    assert flops(never, 4000, 1000) > flops(AutoPolar(), 4000, 1000)


def test_choosing_a_form_imports_nothing_of_the_compiler():
    """The import takes a second, which every process would pay in its first step."""
    code = (
        "import sys, torch, polarlight; before = {*sys.modules}\n"
        "polarlight.linalg.AutoPolar()(torch.ones(300, 100))\n"
        "polarlight.linalg.QDWH()(torch.ones(300, 100))\n"
        "print(*({*sys.modules} - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in run.stdout.split() if "_dynamo" in name or "sympy" in name] == []


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
    """Operations of the cut-off: I - Q2 Q2', twice a Cholesky factorisation and two solutions."""
    return 2 * n**3 + 2 * (n**3 / 3 + 2 * m * n**2)


HALLEY = [(1, 0), (1, 0), (0, 1), (0, 1)]
"""Of the source's table for l = 2^-23: two steps by QR, two by Cholesky."""


@pytest.mark.parametrize(("m", "n"), [(300, 300), (310, 300)])
def test_nearly_square_matrices_are_iterated_as_they_are(m, n):
    expected = by_hand(m, n, HALLEY) + cut(m, n)
    assert flops(QDWH(), m, n) == flops(QDWH(), n, m) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("m", "n"), [(450, 300), (3000, 300)])
def test_longer_ones_are_reduced(m, n):
    expected = reduced(m, n, HALLEY)
    assert flops(QDWH(), m, n) == flops(QDWH(), n, m) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [HALLEY, [(1, 2), (0, 3)]], ids=str)
def test_a_matrix_is_reduced_from_the_ratio_at_which_that_is_cheaper(steps):
    """Direct costs a l k^2 + b k^3, reduced 6 l k^2 + (a + b - 4/3) k^3."""
    terms = tuple(((1.0, 1e-4),) * qr + ((1.0, 0.5),) * cholesky for qr, cholesky in steps)
    a = by_hand(2, 1, steps) - by_hand(1, 1, steps)
    least = int((a - 4 / 3) / (a - 6) * 1000)
    assert not rational._reduces(least - 1, 1000, terms)
    assert rational._reduces(least + 2, 1000, terms)


def test_terms_of_one_step_share_a_gram_matrix_and_the_least_shift_goes_by_cholesky():
    step = RationalStep(1.0, ((1.0, 1e-4), (1.0, 0.01), (1.0, 0.5)))
    found = counted(lambda: iterate(torch.empty(100, 100, device="meta"), [step]), 100, 100)
    with_cut = by_hand(100, 100, [(1, 2)]) + cut(100, 100)
    assert found.flops in (
        pytest.approx(by_hand(100, 100, [(1, 2)])),
        pytest.approx(with_cut),
    )


@pytest.mark.parametrize("engine", [QDWH, ZoloPD])
def test_an_engines_own_dtype_counts_before_that_of_the_matrix(engine):
    narrow, wide = engine(dtype=torch.float32), engine(dtype=torch.float64)
    assert flops(narrow, 90, 90, torch.float64) == flops(engine(), 90, 90)
    assert flops(wide, 90, 90) == flops(engine(), 90, 90, torch.float64) > flops(narrow, 90, 90)


def test_three_zolotarev_terms_twice():
    """Float32: of the first step's poles two are small, of the second's none."""
    first, second = ZoloPD().plan(torch.float32)
    small = [sum(shift < 0.01 for _, shift in step.terms) for step in (first, second)]
    factorisations = [(few, 3 - few) for few in small]
    expected = by_hand(90, 90, factorisations) + cut(90, 90)
    assert flops(ZoloPD(), 90, 90) == pytest.approx(expected, rel=1e-6)


def test_restarts_of_the_gram_form_are_those_of_its_dtype():
    def cost_in(dtype):
        return flops(GramNewtonSchulz(polar_express(8), dtype), 9000, 900)

    assert cost_in(torch.bfloat16) > cost_in(torch.float16) > cost_in(torch.float32)


@pytest.mark.parametrize("schedule", [polar_express(5), schedules.SIMPLE_QUINTIC, schedules.YOU])
def test_cost_of_the_gram_form(schedule):
    engine = GramNewtonSchulz(schedule, torch.float16)
    T, S = len(schedule.steps), len(engine.segments(torch.float16))
    m, n = 4000, 1000
    assert flops(engine, m, n) == 4 * S * m * n**2 + 2 * (4 * T - 3 * S) * n**3


def test_cubics_need_no_product_for_their_polynomial():
    m, n, steps = 4000, 1000, len(CUBIC.steps)
    engine = GramNewtonSchulz(CUBIC, torch.float32)
    segments = len(engine.segments(torch.float32))
    assert flops(engine, m, n) == 4 * segments * m * n**2 + 6 * (steps - segments) * n**3
