"""NorMuon: the references of both forms, and what each of them keeps."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import polarlight
from polarlight.stages.second_moment import RowSecondMoment
from tests.matrices import SHAPES, TALL, skewed
from tests.reference import normuon
from tests.rules.trajectory import EXACT, ROUNDING, distance, polars


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_official_code(shape, nesterov):
    rule = polarlight.rules.normuon(nesterov=nesterov, polar=EXACT)
    assert distance(rule, partial(normuon.step, nesterov=nesterov), shape) < ROUNDING


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_follow_the_paper(shape, nesterov):
    rule = polarlight.rules.normuon_paper(nesterov=nesterov, polar=EXACT)
    assert distance(rule, partial(normuon.paper_step, nesterov=nesterov), shape) < ROUNDING


def test_beta2_is_that_of_the_rule():
    rule = polarlight.rules.normuon(beta2=0.5, polar=EXACT)
    assert distance(rule, partial(normuon.step, beta2=0.5), TALL) < ROUNDING


def test_the_second_moment_is_the_references():
    """Steps alone cannot tell a mean from a sum: the overall size is fixed afterwards."""
    buffers, state = {"row_second_moment": torch.zeros(24, 1, dtype=torch.float64)}, {}
    for M in momenta(TALL):
        even = RowSecondMoment(0.95)(M, buffers)
        np.testing.assert_allclose(even, normuon.even_rows(M.numpy(), state, 0.95), rtol=1e-12)
        np.testing.assert_allclose(buffers["row_second_moment"], state["v"], rtol=1e-12)


def directions(rule, Ms):
    """The directions of successive momenta, with memory."""
    buffers = {
        name: torch.zeros(shape, dtype=torch.float64)
        for name, shape in rule.buffer_shapes(Ms[0].shape).items()
    }
    return [rule.direction(M, buffers) for M in Ms]


def momenta(shape):
    return [skewed(*shape, seed=t) for t in range(5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_official_form_keeps_the_frobenius_norm(shape):
    ours = directions(polarlight.rules.normuon(polar=EXACT), momenta(shape))
    plain = directions(polarlight.rules.muon(polar=EXACT), momenta(shape))
    for D, P in zip(ours, plain, strict=True):
        torch.testing.assert_close(D.norm(), P.norm())  # float64 default: 1e-7


@pytest.mark.parametrize("shape", SHAPES)
def test_the_paper_fixes_the_root_mean_square(shape):
    for D in directions(polarlight.rules.normuon_paper(polar=EXACT), momenta(shape)):
        rms = D.square().mean().sqrt()
        torch.testing.assert_close(rms, torch.full_like(rms, 0.2))


@pytest.mark.parametrize("make", [polarlight.rules.normuon, polarlight.rules.normuon_paper])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_memory_all_rows_are_equal(make, shape):
    for D in directions(make(beta2=0.0, polar=EXACT), momenta(shape)):
        norms = D.norm(dim=-1)
        torch.testing.assert_close(norms, norms.mean().expand_as(norms))


@polars
@pytest.mark.parametrize("make", [polarlight.rules.normuon, polarlight.rules.normuon_paper])
def test_a_zero_row_stays_zero_while_the_others_move(make, polar):
    Ms = momenta(TALL)
    for M in Ms:
        M[3] = 0
    for D in directions(make(polar=polar), Ms):
        assert not D[3].any()
        assert (D.norm(dim=-1) > 0).sum() == 23


def test_a_row_of_rounding_noise_is_evened_out_like_any_other():
    """Nothing but an exact zero counts as zero here, as in the paper: v has no floor."""
    M = skewed(*TALL)
    M[3] *= 1e-12
    rule = replace(
        polarlight.rules.normuon(beta2=0.0, polar=EXACT), scale=polarlight.stages.Unscaled()
    )
    (D,) = directions(rule, [M])
    torch.testing.assert_close(D[3].norm(), D[4].norm())
