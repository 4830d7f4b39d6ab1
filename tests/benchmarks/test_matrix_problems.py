"""The three matrix problems, scaled down: gradients, best losses, and who converges."""

from itertools import pairwise

import pytest
import torch

from benchmarks.matrix_problems import METHODS, gaps
from benchmarks.problems import PROBLEMS


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_its_seed(name):
    one, two, other = (PROBLEMS[name](seed, 0.05) for seed in (1, 1, 2))
    assert one.loss(3).item() == two.loss(3).item() != other.loss(3).item()
    assert one.gap() == pytest.approx(two.gap(), rel=1e-12)


def test_the_best_quadratic_loss_is_a_minimum():
    problem = PROBLEMS["quadratic"](0, 0.05)
    start = problem.gap()
    optimizer = torch.optim.LBFGS(problem.parameters, max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = problem.loss(0)
        loss.backward()
        return loss

    optimizer.step(closure)
    # float32 weights cannot be closer than 1e-7 relative; the least squares are float64
    assert 0 <= problem.gap() < 1e-5 < start


def test_logistic_labels_are_signs_and_batches_differ():
    problem = PROBLEMS["logistic"](0, 0.05)
    assert set(problem.C.unique().tolist()) == {-1.0, 1.0}
    assert problem.loss(0).item() != problem.loss(1).item()


def test_completion_sees_observed_entries_only():
    problem = PROBLEMS["completion"](0, 0.1)
    before = problem.loss(0).item()
    problem.M = problem.M + 100 * (1 - problem.mask)
    assert problem.loss(0).item() == pytest.approx(before)


def test_polargrad_converges_linearly_where_muon_stalls_and_adam_lags():
    """Quadratic regression at constant learning rates, a tenth of the published sizes."""
    found = {
        label: gaps("quadratic", METHODS["quadratic"][label], seed=0, scale=0.1, steps=300)
        for label in ("PolarGrad, momentum first", "PolarGrad, polar first", "Muon", "Adam")
    }
    for label in ("PolarGrad, momentum first", "PolarGrad, polar first"):
        # Linear: each quarter of the run takes the gap down by orders, to 2e-12 at the end.
        quarters = [found[label][i] for i in (7, 15, 22, 30)]
        assert all(b < 0.1 * a for a, b in pairwise(quarters))
        assert found[label][-1] < 1e-3 * found["Adam"][-1]
    # A step of fixed length circles the optimum: no progress in the second half.
    assert found["Muon"][-1] > 0.3 * found["Muon"][15] > 1e-3
