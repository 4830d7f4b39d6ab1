"""Hybrids: the reference in every layout, singular values or rows made equal, round trips."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import polarlight
from polarlight import rules
from polarlight.linalg.nuclear import NuclearPolar
from polarlight.stages.centre import centred
from polarlight.stages.orientation import Columns, Pairs, oriented
from tests.matrices import SHAPES, SQUARE, TALL, WIDE, gaussian, skewed
from tests.reference import hybrid
from tests.rules.trajectory import EXACT, NO_FLOOR, ROUNDING, distance

ORDERS = {
    "row_then_polar": rules.row_then_polar(EXACT, floor=NO_FLOOR),
    "polar_then_row": rules.polar_then_row(EXACT, floor=NO_FLOOR),
}
LAYOUTS = {"columns": Columns(), "pairs": Pairs()}
UNSCALED = {
    name: replace(rule, scale=polarlight.stages.Unscaled()) for name, rule in ORDERS.items()
}
orders = pytest.mark.parametrize("order", ORDERS)


@orders
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_reference(order, shape):
    reference = partial(hybrid.step, order=getattr(hybrid, order))
    assert distance(ORDERS[order], reference, shape) < ROUNDING


@orders
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_laid_out_steps_follow_the_reference(order, shape, layout):
    rule = oriented(ORDERS[order], LAYOUTS[layout])
    reference = partial(hybrid.step, order=getattr(hybrid, order), layout=layout)
    assert distance(rule, reference, shape) < ROUNDING


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_come_back_bit_for_bit(interleaved):
    pairs, X = Pairs(interleaved), gaussian(3, 8, 5)
    assert pairs.work(X).shape == pairs.shape(X.shape) == (3, 4, 10)
    assert torch.equal(pairs.back(pairs.work(X)), X)
    gate, up = (X[:, ::2], X[:, 1::2]) if interleaved else X.chunk(2, dim=1)
    assert torch.equal(pairs.work(X), torch.cat([gate, up], dim=-1))


def test_both_storage_orders_of_pairs_get_one_update():
    X = gaussian(8, 5)
    turns = torch.stack(X.chunk(2), dim=1).flatten(0, 1)
    rule = ORDERS["row_then_polar"]
    apart = oriented(rule, Pairs()).direction(X, {})
    taking_turns = oriented(rule, Pairs(interleaved=True)).direction(turns, {})
    torch.testing.assert_close(taking_turns, torch.stack(apart.chunk(2), dim=1).flatten(0, 1))


def test_an_odd_number_of_rows_is_no_set_of_pairs():
    with pytest.raises(ValueError, match="even number of rows, got 5"):
        Pairs().work(gaussian(5, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_row_then_polar_ignores_row_sizes_and_evens_out_the_spectrum(shape):
    rule, M = UNSCALED["row_then_polar"], skewed(*shape)
    U = rule.direction(M, {})
    values = torch.linalg.svdvals(U)
    torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-9, atol=0)
    resized = rule.direction(gaussian(shape[0], 1, seed=3).exp() * M, {})
    torch.testing.assert_close(resized, U, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_then_row_has_unit_rows_for_any_nuclear_norm(shape):
    M = skewed(*shape)
    U = UNSCALED["polar_then_row"].direction(M, {})
    rows = U.norm(dim=-1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=1e-9, atol=0)
    nuclear = replace(UNSCALED["polar_then_row"], map=NuclearPolar(EXACT))
    torch.testing.assert_close(nuclear.direction(M, {}), U)


@pytest.mark.parametrize("shape", [TALL, SQUARE])
def test_the_nuclear_norm_after_row_normalisation_knows_the_rank_and_not_the_gradient(shape):
    """Between sqrt(m) and sqrt(m n): the size that the source gives its updates."""
    m, n = shape
    rule = replace(UNSCALED["row_then_polar"], map=NuclearPolar(EXACT))
    sizes = [
        torch.linalg.matrix_norm(rule.direction(M, {}), 2).item()
        for M in (gaussian(*shape), 1e3 * gaussian(*shape), gaussian(m, 1) * gaussian(1, n))
    ]
    assert sizes[1] == pytest.approx(sizes[0])
    assert sizes[2] == pytest.approx(m**0.5)
    assert m**0.5 < sizes[0] < (m * n) ** 0.5


def test_nuclear_norms_are_per_expert():
    """Summed over experts, one expert's gradients would change the step of another."""
    rule = rules.row_then_polar(NuclearPolar(EXACT))
    experts = torch.stack([gaussian(*TALL), 100 * skewed(*TALL, seed=1)])
    for both, alone in zip(rule.direction(experts, {}), experts, strict=True):
        torch.testing.assert_close(both, rule.direction(alone, {}))


@orders
def test_the_centred_form_is_horizontal(order):
    U = centred(ORDERS[order]).direction(gaussian(*WIDE), {})
    assert U.sum(dim=0).abs().max() < 1e-12


def test_the_default_polar_method_is_nearly_exact():
    M = gaussian(64, 16, dtype=torch.float32)
    exact = rules.row_then_polar(polarlight.linalg.ExactPolar()).direction(M, {})
    assert (rules.row_then_polar().direction(M, {}) - exact).norm() < 0.02 * exact.norm()


def test_polar_then_row_maps_the_mean_without_nesterov():
    assert rules.polar_then_row().momentum == polarlight.stages.EMA(nesterov=False)
