"""The exact solver's steps: conjugate gradients in a trust region, and how the region grows."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from polarlight.linalg.balance import balanced_polar
from polarlight.rules import ExactBalanced
from polarlight.rules import aurora_exact as solver
from polarlight.rules.aurora_exact import Quadratic, ascended, upper_bound
from tests.matrices import gaussian, skewed
from tests.rules.trajectory import EXACT


@cache
def near_the_maximum(n=3, m=7, sign=1.0):
    """The quadratic a little away from the best factor, and a basis of its tangent space."""
    M = skewed(m, n)
    X = sign * M * (n / torch.linalg.svdvals(M).sum())
    shares = torch.full((m, 1), n / m, dtype=M.dtype)
    U = balanced_polar(
        ExactBalanced(EXACT, steps=5)(M) + 0.02 * gaussian(m, n, seed=5), shares, rounds=8
    )
    model = Quadratic.at(X, U)
    units = torch.eye(m * n, dtype=M.dtype).reshape(-1, m, n)
    left, sigma, _ = torch.linalg.svd(model.space.project(units).flatten(1).mT)
    return model, left[:, sigma > 0.5]


def dense(model, T):
    """Gradient, Hessian and inverse of the preconditioner in the basis T."""
    rms = (model.gradient.square().sum() / model.space.U.square().sum()).sqrt()
    metric = torch.maximum(model.W, 0.01 + rms / 2)
    hessian, inverse = (T.mT @ (D.flatten().unsqueeze(-1) * T) for D in (model.W, 1 / metric))
    return T.mT @ model.gradient.flatten(), hessian, inverse


def solved_by(model, T, radius, steps):
    """The step in the basis T, the gain that it promises, and its length."""
    Z, gain, length = model.maximised(torch.full((1, 1), radius, dtype=T.dtype), steps)
    return T.mT @ (Z @ model.basis).flatten(), gain.item(), length.item()


@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_conjugate_gradients_are_best_in_their_subspace(steps):
    model, T = near_the_maximum()
    g, H, P = dense(model, T)
    assert T.shape[1] == 7 * 3 - 6 - 6  # nine: symmetric parts and rows are fixed
    assert torch.linalg.eigvalsh(H).min() > 0
    columns = [P @ g]
    for _ in range(min(steps, 9) - 1):
        columns.append(P @ H @ columns[-1])
    V = torch.linalg.qr(torch.stack(columns, dim=-1)).Q
    best = V @ torch.linalg.solve(V.mT @ H @ V, V.mT @ g)
    z, gain, length = solved_by(model, T, 1e6, steps)
    torch.testing.assert_close(z, best, rtol=1e-6, atol=1e-9)
    assert gain == pytest.approx((g @ z - z @ H @ z / 2).item(), rel=1e-9)
    assert length**2 == pytest.approx((z @ torch.linalg.solve(P, z)).item(), rel=1e-9)


@pytest.mark.parametrize("part", [1e-3, 0.3, 0.7, 0.99])
def test_steps_stop_at_the_boundary(part):
    model, T = near_the_maximum()
    g, H, P = dense(model, T)
    _, most, whole = solved_by(model, T, 1e6, 40)
    z, gain, length = solved_by(model, T, part * whole, 40)
    assert length == pytest.approx(part * whole, rel=1e-9)
    assert (z @ torch.linalg.solve(P, z)).item() == pytest.approx(length**2, rel=1e-9)
    assert gain == pytest.approx((g @ z - z @ H @ z / 2).item(), rel=1e-9)
    assert 0 < gain < most


def test_along_negative_curvature_they_go_to_the_boundary_at_once():
    model, T = near_the_maximum(sign=-1.0)
    g, H, P = dense(model, T)
    s = P @ g
    assert s @ H @ s < 0
    z, _, length = solved_by(model, T, 0.5, 40)
    torch.testing.assert_close(z, 0.5 * s / (g @ s).sqrt())
    assert length == pytest.approx(0.5)


def test_the_model_is_the_objective_to_second_order():
    model, T = near_the_maximum()
    U, X = model.space.U @ model.basis.mT, skewed(7, 3)
    X = X * (3 / torch.linalg.svdvals(X).sum())
    shares = torch.full((7, 1), 3 / 7, dtype=U.dtype)
    Z = (T @ gaussian(9)).reshape(7, 3) @ model.basis.mT
    ahead, here, behind = (
        (X * balanced_polar(U + t * Z, shares, rounds=8)).sum() for t in (1e-3, 0.0, -1e-3)
    )
    z = Z @ model.basis
    torch.testing.assert_close(
        (ahead - behind) / 2e-3, (model.gradient * z).sum(), rtol=1e-3, atol=0
    )
    curvature = (ahead - 2 * here + behind) / 1e-6
    torch.testing.assert_close(curvature, -(z * model.W * z).sum(), rtol=1e-3, atol=0)
    flat = replace(model, gradient=torch.zeros_like(z))
    assert all(not x.any() for x in flat.maximised(torch.ones(1, 1), 3))


GAINS = [  # promised, share of it that came, length over radius; taken, and the radius from there
    (1e-3, 0.5, 1.0, True, 1.0),
    (1e-3, 0.2, 1.0, True, 0.25),
    (1e-3, 0.05, 0.5, False, 0.25),
    (1e-3, 0.8, 0.95, True, 2.0),
    (1e-3, 0.8, 0.85, True, 1.0),
    (1e-3, 0.7, 1.0, True, 1.0),
    (1e-99, -1e88, 0.0, True, 1.0),  # 1e-11 of 1000: rounding
    (1e-99, -1e91, 0.0, False, 0.25),  # 1e-8
]


def test_steps_are_taken_for_a_tenth_of_what_they_promised_and_the_radius_follows(monkeypatch):
    U = torch.eye(6, 3, dtype=torch.float64)
    X, radii, taken, script = 1000 / 3 * U, [], [], iter(GAINS)

    class Model:
        @staticmethod
        def at(X, U):
            taken.append(U)
            return Model

        @staticmethod
        def maximised(radius, cg_steps):
            radii.append(radius.item())
            Model.gain, Model.share, length, *_ = next(script)
            return torch.zeros_like(U), torch.full_like(radius, Model.gain), length * radius

    def moved(Y, shares, rounds):
        assert rounds == 3
        return Y + Model.gain * Model.share / 1000 * U

    monkeypatch.setattr(solver, "Quadratic", Model)
    monkeypatch.setattr(solver, "balanced_polar", moved)
    taken.append(ascended(X, U, U[:, :1], len(GAINS), 20))
    assert radii[0] == pytest.approx((3 / 16) ** 0.5)
    assert [b / a for a, b in pairwise(radii)] == pytest.approx([g[-1] for g in GAINS[:-1]])
    kept = [torch.equal(before, after) for before, after in pairwise(taken)]
    assert [not same for same in kept] == [g[-2] for g in GAINS]


def test_the_solver_hands_on_a_unit_matrix_equal_shares_and_its_steps(monkeypatch):
    seen = {}

    def noted(X, U, shares, steps, cg_steps):
        seen.update(X=X, shares=shares, numbers=(steps, cg_steps))
        return U

    monkeypatch.setattr(solver, "ascended", noted)
    U = ExactBalanced(EXACT, steps=4, cg_steps=7, floor=1e-9)(1e-3 * skewed(9, 4))
    assert seen["numbers"] == (4, 7)
    assert torch.linalg.svdvals(seen["X"]).mean().item() == pytest.approx(1.0)
    torch.testing.assert_close(seen["shares"], torch.full((9, 1), 4 / 9, dtype=U.dtype))
    batch = ExactBalanced(EXACT)(torch.stack([skewed(9, 4), 7 * skewed(9, 4, seed=1)]))
    torch.testing.assert_close(torch.linalg.svdvals(seen["X"]).mean(dim=-1), torch.ones(2).double())
    torch.testing.assert_close(seen["shares"].sum(dim=-2), torch.full((2, 1), 4.0).double())
    assert batch.shape == (2, 9, 4)


def test_the_upper_bound_takes_the_shift_that_its_estimate_likes_best():
    """One shift per eigenvalue of S and per row, compared by what the bound would be if S and the
    rows' part commuted."""
    M = torch.stack([skewed(6, 2), gaussian(6, 2, seed=3)])
    U = balanced_polar(M, torch.full((6, 1), 2 / 6, dtype=M.dtype), rounds=8)
    for m, u, found in zip(M, U, upper_bound(M, U), strict=True):
        S, rows = solver.TangentSpace.at(u).multipliers(m)
        s, norms = torch.linalg.eigvalsh(S), u.norm(dim=-1)
        shifts = [*s.tolist(), *(-rows).flatten().tolist()]

        def estimate(c, s=s, rows=rows, norms=norms):
            return (s - c).abs().sum() + (norms**2 * (rows.flatten() + c).abs()).sum()

        Y = (rows + min(shifts, key=estimate)) * u
        expected = torch.linalg.svdvals(m - Y).sum() + (Y.norm(dim=-1) * norms).sum()
        torch.testing.assert_close(found, expected.reshape(1, 1))
