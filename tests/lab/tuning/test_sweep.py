"""A sweep knows its optimum, how flat it is, and when the optimum may lie outside."""

from math import exp, inf, log, nan

import pytest

from polarlight.lab.tuning import Edge, Sweep


def parabola(rates, best=0.03, bend=0.2, least=2.0):
    return Sweep(tuple(rates), tuple(least + bend * log(lr / best) ** 2 for lr in rates))


@pytest.mark.parametrize("best", [0.016, 0.02, 0.0277, 0.035])
@pytest.mark.parametrize("rates", [(0.005, 0.01, 0.02, 0.04, 0.08), (0.003, 0.01, 0.025, 0.09)])
def test_a_parabola_is_found_exactly(best, rates):
    found = parabola(rates, best).optimum
    assert found.lr == pytest.approx(best)
    assert found.loss == pytest.approx(2.0)
    assert found.edge is None


@pytest.mark.parametrize(("best", "edge", "said"), [(0.001, "low", "lower"), (9, "high", "higher")])
def test_an_optimum_at_an_end_is_marked_and_not_extrapolated(best, edge, said):
    sweep = parabola((0.01, 0.02, 0.04), best)
    assert sweep.edge is sweep.optimum.edge is Edge(edge)
    assert sweep.optimum.lr in (0.01, 0.04)
    assert f"or {said}" in str(sweep.optimum)


def test_divergence_is_a_bound_and_no_point_of_the_parabola():
    sweep = Sweep((0.01, 0.02, 0.04), (2.2, 2.0, nan))
    assert sweep.losses[2] == inf
    assert sweep.edge is None
    assert sweep.optimum.lr == 0.02
    assert sweep.within(0.1) == (pytest.approx(0.01 * 2**0.5), 0.02)


def test_equal_losses_have_their_optimum_at_the_lowest():
    assert Sweep((1.0, 2.0, 4.0), (3.0, 3.0, 3.0)).optimum.lr == 1.0
    assert Sweep((1.0, 2.0, 4.0), (4.0, 3.0, 4.0)).optimum.lr == pytest.approx(2.0)


def test_within_interpolates_and_stays_inside():
    sweep = Sweep((1.0, 2.0, 4.0, 8.0), (2.2, 2.0, 2.1, 2.3))
    assert sweep.within(0.1) == (pytest.approx(2 / exp(log(2) / 2)), pytest.approx(4.0))
    assert sweep.within(0) == (2.0, 2.0)
    assert sweep.within(5) == (1.0, 8.0)


@pytest.mark.parametrize(
    ("rates", "losses", "said"),
    [
        ((), (), "learning rates > 0"),
        ((0.0, 1.0), (1, 1), "learning rates > 0, got"),
        ((2.0, 1.0), (1, 1), "must ascend"),
        ((1.0, 2.0), (1,), "each with one loss"),
        ((1.0, 2.0), (inf, nan), "every run diverged, lr 1 too"),
    ],
)
def test_invalid_sweeps_raise_with_their_value(rates, losses, said):
    with pytest.raises(ValueError, match=said):
        Sweep(rates, losses)


def test_a_negative_slack_is_refused():
    with pytest.raises(ValueError, match="slack must be >= 0, got -1"):
        Sweep((1.0, 2.0), (1, 1)).within(-1)
