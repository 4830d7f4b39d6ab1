"""The engine that chooses: every choice is the same map, and the cheapest by its own count."""

import math

import pytest
import torch

import polarlight
from polarlight.linalg import auto, gram
from polarlight.linalg.auto import QUICK, AutoPolar
from polarlight.linalg.coefficients import JORDAN
from polarlight.linalg.cost import iteration_count
from polarlight.linalg.gram import GramNewtonSchulz, restart_positions
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import Schatten8
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.rates import Rates, assumed_rates
from polarlight.linalg.svd import ExactPolar
from tests.matrices import gaussian

CPU = torch.device("cpu")


def dominated(m, n, dtype=torch.float64):
    """One singular value far above the rest, as momentum has it: 1, then 0.3 down to 0.008."""
    U = torch.linalg.qr(gaussian(m, min(m, n), seed=1)).Q
    V = torch.linalg.qr(gaussian(n, min(m, n), seed=2)).Q
    S = torch.logspace(-0.5, -2.1, min(m, n), dtype=torch.float64)
    S[0] = 1.0
    return (U * S @ V.mT).to(dtype)


def orthogonality_error(U):
    G = U.mT @ U if U.shape[0] > U.shape[1] else U @ U.mT
    return (torch.linalg.matrix_norm(G - torch.eye(len(G), dtype=G.dtype)) / len(G) ** 0.5).item()


@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (96, 96), (40, 24)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.bfloat16, 0.1), (torch.float32, 1e-4), (torch.float64, 1e-9)],
    ids=str,
)
def test_the_forms_are_one_map_up_to_rounding(shape, dtype, tolerance):
    """bfloat16 rounds squares of small singular values in the Gram form: 0.05 is the worst here."""
    M = dominated(*shape)
    plain = NewtonSchulz(QUICK, torch.float64, Schatten8())(M)
    chosen = AutoPolar(dtype=dtype)(M)
    assert torch.linalg.matrix_norm(chosen - plain) < tolerance * min(shape) ** 0.5


@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (96, 96)], ids=str)
def test_four_steps_on_a_dominated_spectrum_beat_jordans_five(shape):
    M = dominated(*shape, torch.float32)
    U = AutoPolar(dtype=torch.bfloat16)(M)
    assert orthogonality_error(U) < 0.09  # 0.045 at most
    assert orthogonality_error(NewtonSchulz(JORDAN, torch.bfloat16)(M)) > 0.16  # 0.33 at least
    assert torch.linalg.matrix_norm(U - ExactPolar()(M)) < 0.1 * min(shape) ** 0.5


def test_long_matrices_get_the_gram_form_and_square_ones_do_not():
    def kind(m, n, dtype=torch.float32, device=CPU):
        return type(AutoPolar(dtype=torch.bfloat16).engine(m, n, dtype, device))

    assert kind(3072, 768) is kind(768, 3072) is kind(512, 128) is GramNewtonSchulz
    assert kind(768, 768) is kind(64, 48) is NewtonSchulz
    assert kind(1024, 256, device=torch.device("cuda")) is NewtonSchulz
    assert kind(3072, 768, device=torch.device("cuda")) is GramNewtonSchulz


def test_float32_needs_no_restart_and_narrower_dtypes_do():
    def restarts(dtype, schedule=QUICK):
        return AutoPolar(schedule, dtype).engine(512, 128, torch.float32, CPU).restarts

    assert restarts(torch.float32) == restarts(torch.float64) == ()
    assert restarts(torch.bfloat16) == restart_positions(QUICK, torch.bfloat16) == (1, 2)
    assert restarts(torch.float16) == restart_positions(QUICK, torch.float16) != ()
    steep = polar_express(8, lower=1e-6)
    assert restarts(torch.float32, steep) == restart_positions(steep, torch.float32) != ()


def test_a_schedule_goes_without_restarts_up_to_a_stated_growth(monkeypatch):
    for growth, found in ((auto.NEGLIGIBLE, ()), (1.01 * auto.NEGLIGIBLE, (2,))):
        monkeypatch.setattr(auto, "segment_growth", lambda *_, growth=growth: growth)
        assert list(auto._restarts(QUICK, torch.float32))[-1] == found


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
def test_float32_loses_far_less_without_restarts_than_the_schedules_error(condition):
    U, V = (torch.linalg.qr(gaussian(m, 64, seed=m)).Q for m in (256, 64))
    M = U * torch.logspace(0, -math.log10(condition), 64, dtype=torch.float64) @ V.mT
    plain = NewtonSchulz(QUICK, torch.float64, Schatten8())(M)
    found = AutoPolar(dtype=torch.float32)(M.float()).double()
    assert torch.linalg.matrix_norm(found - plain, 2) < auto.NEGLIGIBLE


def test_the_reason_names_dtype_form_and_both_costs():
    said = AutoPolar(dtype=torch.bfloat16).describe(3072, 768, torch.float32, CPU)
    assert "bfloat16, Gram" in said
    assert "GF, plain" in said
    assert "below 64" in AutoPolar().describe(32, 8, torch.float32, CPU)
    assert "float64" in AutoPolar().describe(3072, 768, torch.float64, CPU)


def test_an_explicit_choice_wins():
    assert "float32, Gram" in AutoPolar(dtype=torch.float32).describe(512, 128, torch.float64, CPU)
    never = Rates(gram_from=10**6)
    assert "plain" in AutoPolar(rates=never).describe(3072, 768, torch.float32, CPU)
    other = AutoPolar(polar_express(6))
    assert "x6" in other.describe(96, 96, torch.float32, CPU)
    assert "polar express x6" in str(other)


def test_rates_do_not_enter_the_fingerprint():
    assert repr(AutoPolar(rates=Rates(0.5))) == repr(AutoPolar())
    assert AutoPolar(rates=Rates(0.5)) == AutoPolar()


def test_symmetric_products_are_discounted_from_their_side_on():
    rates = Rates(discount=0.5, symmetric_from=100)
    assert (rates.symmetric(99), rates.symmetric(100)) == (1.0, 0.5)
    assert assumed_rates("cpu").discount < 1
    assert assumed_rates("cuda").gram_from == 257


def test_measured_rates_are_in_range_and_taken_once():
    rates = Rates.measured("cpu", torch.float32)
    assert 0 < rates.discount <= 1
    assert Rates.measured("cpu", torch.float32) is rates


@pytest.mark.parametrize("discount", [0.0, 1.1])
def test_a_discount_lies_in_its_range(discount):
    with pytest.raises(ValueError, match=r"discount must lie in \(0, 1\], got"):
        Rates(discount)


def test_the_schatten_8_norm_bounds_the_largest_singular_value_tightly():
    for M in (gaussian(48, 16), dominated(48, 16), gaussian(20, 1) @ gaussian(1, 30, seed=2)):
        largest = torch.linalg.matrix_norm(M, 2)
        norm = Schatten8()(M, torch.float64).squeeze()
        assert largest * (1 - 1e-12) <= norm <= largest * min(M.shape) ** (1 / 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_segments_are_derived_in_every_dtype(dtype):
    six = polar_express(6)
    assert list(auto._restarts(six, dtype)) == [restart_positions(six, dtype)]


@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (384, 96)], ids=str)
def test_the_largest_singular_direction_is_not_mixed_with_others(shape):
    """Spectra as momentum has them: one value far above the rest. Measured: at most 0.018."""
    M = momentum_like(*shape)
    engine = AutoPolar(dtype=torch.bfloat16)
    assert isinstance(engine.engine(*shape, torch.float32, CPU), GramNewtonSchulz)
    assert mixing_of_the_largest(M, engine(M)) < 8 * torch.finfo(torch.bfloat16).eps


def momentum_like(m, n):
    k = min(m, n)
    U, V = (torch.linalg.qr(gaussian(side, k, seed=side)).Q for side in (m, n))
    sigma = torch.arange(1, k + 1, dtype=torch.float64) ** -1.0
    sigma[1:] *= 0.5
    return (U * sigma @ V.mT).float()


def mixing_of_the_largest(M, D):
    """Return the parts of D beside the largest singular direction, from either side."""
    U, _, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    inside = U.mT @ D.double() @ Vh.mT
    return max(inside[0, 1:].norm(), inside[1:, 0].norm()).item()


@pytest.mark.parametrize(("side", "kind"), [(63, NewtonSchulz), (64, GramNewtonSchulz)])
def test_short_sides_below_the_bound_are_not_weighed(side, kind):
    for shape in ((40 * side, side), (side, 40 * side)):
        engine = AutoPolar(dtype=torch.bfloat16)
        assert type(engine.engine(*shape, torch.float32, CPU)) is kind
        said = engine.describe(*shape, torch.float32, CPU)
        assert ("a short side below 64 is bound by launches" in said) == (side == 63)


@pytest.mark.parametrize("discount", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(3000, 600), (600, 3000)])
def test_symmetric_products_are_those_of_a_matrix_with_itself(shape, discount):
    """Of a step X'X and its square; of a Gram step all four; X times a polynomial is none."""
    m, n, bf16 = max(shape), min(shape), torch.bfloat16
    rates = Rates(discount)
    plain = 4 * (2 * m * n * n * (1 + discount) + 2 * n**3 * discount)
    engine = NewtonSchulz(QUICK, bf16, Schatten8())
    assert rates.priced(iteration_count(engine, *shape), n) == pytest.approx(plain)
    for restarts, following in (((2,), 2), ((1, 2), 1)):
        engine = GramNewtonSchulz(QUICK, bf16, Schatten8(), restarts)
        segments = 1 + len(restarts)
        gram = 2 * segments * m * n * n * (1 + discount) + 2 * (4 + 3 * following) * n**3 * discount
        assert rates.priced(iteration_count(engine, *shape), n) == pytest.approx(gram)
    said = AutoPolar(dtype=bf16, rates=rates).describe(*shape, torch.float32, CPU)
    assert f"(bfloat16, Gram: {gram / 1e9:.3g} GF, plain {plain / 1e9:.3g})" in said


def test_the_reason_for_a_square_matrix_names_the_plain_cost():
    said = AutoPolar(dtype=torch.float64, rates=Rates()).describe(800, 800, torch.float32, CPU)
    assert f"(float64, plain: {24 * 0.512:.3g} GF, no Gram form is cheaper)" in said


def test_a_matrix_is_read_as_it_is_iterated_on():
    engine = AutoPolar(dtype=torch.bfloat16)
    assert engine.input_dtype(torch.float32, CPU) == torch.bfloat16
    assert AutoPolar(dtype=torch.float32).input_dtype(torch.float64, CPU) == torch.float64
    assert AutoPolar().input_dtype(torch.float64, CPU) == torch.float64


def executed_form(engine, M, monkeypatch):
    """The form that an engine runs, by the functions that it enters."""
    entered = []
    places = (("plain", NewtonSchulz, "_iterate"), ("Gram", gram, "_segment"))
    for form, place, function in places:
        original = getattr(place, function)

        def spy(*args, form=form, original=original):
            entered.append(form)
            return original(*args)

        monkeypatch.setattr(place, function, spy)
    engine(M)
    monkeypatch.undo()
    (form,) = set(entered)
    return form


def named_form(text):
    assert text.count("plain: ") + text.count("Gram: ") == 1
    (form,) = (form for form in ("plain", "Gram") if f"{form}: " in text)
    assert text.startswith({"plain": "Newton-Schulz", "Gram": "Gram Newton-Schulz"}[form])
    return form


GRID = [
    *[(704, 512), (768, 512), (512, 704), (576, 512), (512, 512), (300, 256), (640, 512)],
    *[(257, 256), (1024, 256), (256, 1024), (130, 128), (96, 64), (64, 63), (4000, 63), (8, 3)],
]


@pytest.mark.in_turn(2, "shape", "dtype", "device")
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", GRID, ids=str)
def test_the_form_that_is_named_is_the_form_that_runs(shape, dtype, device, monkeypatch):
    engine, M = AutoPolar(dtype=dtype), torch.empty(*shape, device="meta")
    named = named_form(engine.describe(*shape, M.dtype, torch.device(device)))
    chosen = engine.engine(*shape, M.dtype, torch.device(device))
    assert named == executed_form(chosen, M, monkeypatch)
    if device == "meta":
        assert named == executed_form(engine, M, monkeypatch)


@pytest.mark.parametrize("shape", [(704, 512), (768, 512), (96, 64), (64, 63)], ids=str)
def test_explain_names_the_form_that_a_step_runs(shape, monkeypatch):
    weight = torch.nn.Parameter(torch.zeros(*shape))
    optimizer = polarlight.Muon([weight], lr=0.1)
    (row,) = polarlight.explain(optimizer).rows
    weight.grad = torch.ones(*shape)
    named = named_form(row.pieces[0].engine)
    assert named == executed_form(lambda _: optimizer.step(), weight, monkeypatch)


@pytest.mark.parametrize("shape", [(5632, 4096), (704, 512), (300, 256), (4096, 4096)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_on_a_gpu_the_form_named_is_the_form_chosen(shape, dtype):
    device = torch.device("cuda")
    engine = AutoPolar(dtype=dtype)
    chosen = engine.engine(*shape, torch.float32, device)
    kinds = {NewtonSchulz: "plain", GramNewtonSchulz: "Gram"}
    assert named_form(engine.describe(*shape, torch.float32, device)) == kinds[type(chosen)]


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (24, 20), (20, 20), (9, 1)], ids=str)
def test_the_gram_engine_always_runs_the_gram_form(shape, monkeypatch):
    assert executed_form(GramNewtonSchulz(), gaussian(*shape), monkeypatch) == "Gram"
