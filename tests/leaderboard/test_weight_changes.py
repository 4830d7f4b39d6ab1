"""Results 34's and 43's changes of weights: numeric oracles, steps, what is saved."""

from itertools import pairwise

import numpy as np
import torch

from polarlight.leaderboard.parts import Clock
from polarlight.leaderboard.weight_changes import Extrapolation, Pulses, extrapolation, phase
from tests.matrices import gaussian
from tests.oracle import SIX_DIGITS, numbers

F64 = torch.float64


def test_the_oracle_of_the_extrapolation():
    x = numbers([0, 0, 0], [1, 0, 0], [1.5, 0.4, 0], [1.75, 0.3, 0.2])
    moved = x[3] + extrapolation([[row] for row in x])[0]
    torch.testing.assert_close(moved, numbers([1.74827, 0.299592, 0.199821])[0], **SIX_DIGITS)


def test_several_tensors_are_one_vector():
    x = [gaussian(4, 3, seed=seed) for seed in range(4)]
    whole = extrapolation([[X] for X in x], most=10.0)[0]
    halves = extrapolation([[X[:2], X[2:]] for X in x], most=10.0)
    torch.testing.assert_close(torch.cat(halves), whole)


def test_a_vector_that_rests_is_not_moved():
    x = [[torch.ones(3, dtype=F64)]] * 4
    assert torch.equal(extrapolation(x)[0], torch.zeros(3, dtype=F64))


def extrapolated(x, start, last):
    """Weights by step in NumPy; x(t) is the change of step t."""
    w, store, found = np.zeros(6), [], []
    for t in range(1, last + 3):
        w = w + x(t)
        if start <= t <= last:
            store = [*store, w][-4:]
            if t > start and (t - start) % 5 == 0:
                u = [b - a for a, b in pairwise(store)]
                gram = np.array([[a @ b for b in u] for a in u])
                gram += (1e-6 * np.trace(gram) / 3 + 1e-10) * np.eye(3)
                c = np.linalg.inv(gram) @ np.ones(3)
                c /= c.sum()
                d = -0.875 * sum(c[i:].sum() * u[i] for i in range(3))
                d *= min(1, 0.001 * np.linalg.norm(w) / np.linalg.norm(d))
                w = w + d
                store = [w]
        found.append(w)
    return found


def test_extrapolated_steps_follow_the_reference_also_after_a_load():
    def x(t):
        return gaussian(6, 1, seed=t).numpy()[:, 0] / t

    expected = extrapolated(x, 3, 13)
    p = torch.nn.Parameter(torch.zeros(6, dtype=F64))
    made = Extrapolation([("w", p)], start=3, last=13)
    for t in range(1, 16):
        p.data += torch.from_numpy(x(t))
        made.update()
        np.testing.assert_allclose(p.detach().numpy(), expected[t - 1], rtol=1e-12, atol=1e-14)
        if t in (4, 9):
            again = Extrapolation([("w", p)], start=3, last=13)
            again.load_state_dict(made.state_dict())
            made = again


def pulsed(values, other=()):
    """Weights after steps of a run in which the weight is set to given values at given steps."""
    p = torch.nn.Parameter(torch.zeros(1, len(next(iter(values.values()))), dtype=F64))
    made = Pulses([("w", p)], frozenset(other), Clock(1.0))
    found = {}
    for t in range(1, 2851):
        if t in values:
            p.data.copy_(torch.tensor([values[t]]))
        made.update()
        if t in values:
            found[t] = p.detach().clone()[0]
    return found


def test_the_oracle_of_the_trail():
    """Without a pull to step 2400's weight, which is taken out here."""
    found = pulsed({2400: [1.0], 2650: [1.0], 2750: [0.9], 2850: [0.85]})
    torch.testing.assert_close(found[2750], numbers([0.904])[0])
    pulled = (found[2850] - 0.08 * 1.0) / 0.92
    torch.testing.assert_close(pulled, numbers([0.86848])[0])


def test_the_oracle_of_the_phase():
    x = numbers([0.0, 0], [1, 0], [1.5, 1])
    torch.testing.assert_close(x[2] + 0.01 * phase(*x), numbers([1.49, 1.005])[0])


def test_other_matrices_alone_are_moved_at_step_2400():
    values = {2000: [1.0], 2400: [3.0]}
    assert pulsed(values)[2400].item() == 3.0
    torch.testing.assert_close(pulsed(values, other=["w"])[2400], numbers([3 - 0.005 * 2])[0])
