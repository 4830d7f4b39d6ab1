"""Factors with given row leverages: the Laplacian, Newton's way to them, and tangent spaces."""

import pytest
import torch

from polarlight.linalg.balance import (
    TangentSpace,
    balanced_polar,
    laplacian_factor,
    scaled_towards,
    solved,
)
from tests.matrices import gaussian, skewed

M, N = 9, 4


def polar(A):
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right


def shares(seed=None):
    """Equal ones, or any that sum to n."""
    if seed is None:
        return torch.full((M, 1), N / M, dtype=torch.float64)
    s = 0.3 + torch.rand(M, 1, generator=torch.Generator().manual_seed(seed)).double()
    return N * s / s.sum()


def leverages(U):
    return U.square().sum(dim=-1, keepdim=True)


def laplacian(U):
    return torch.diag(leverages(U).flatten()) - (U @ U.mT).square()


def test_the_factored_matrix_is_the_laplacian_beside_its_kernel():
    """And the largest leverage on the constants; a ridge of 100 epsilons makes it definite."""
    U = polar(skewed(M, N))
    L = laplacian_factor(U)
    matrix, size = L @ L.mT, leverages(U).max()
    expected = laplacian(U) + size / M
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-13)
    ridge = (matrix - expected).diagonal() / size
    assert ((ridge > 5e-15) & (ridge < 5e-14)).all()


def test_rows_of_zeros_stand_aside():
    U = polar(skewed(M, N))
    U = torch.cat([U, torch.zeros(2, N, dtype=U.dtype)])
    L = laplacian_factor(U)
    torch.testing.assert_close(L[:M, :M], laplacian_factor(U[:M]))
    torch.testing.assert_close(L[M:, M:], torch.eye(2, dtype=U.dtype), rtol=0, atol=1e-13)
    assert not L[M:, :M].any()
    q = torch.cat([gaussian(M, 1), torch.full((2, 1), 7.0, dtype=U.dtype)])
    found = solved(L, q, U)
    assert not found[M:].any()
    torch.testing.assert_close(found[:M], solved(laplacian_factor(U[:M]), q[:M], U[:M]))


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_solutions_have_mean_zero_for_any_mean_of_the_target(mean):
    U = polar(skewed(M, N))
    q = gaussian(M, 1)
    q = q - q.mean()
    found = solved(laplacian_factor(U), q + mean, U)
    # Condition 1e3 or so, times the ridge of 100 epsilons.
    torch.testing.assert_close(laplacian(U) @ found, q, rtol=0, atol=1e-10)
    assert abs(found.mean()) < 1e-10


@pytest.mark.parametrize("target", [shares(), shares(1)], ids=["equal", "any"])
def test_leverages_become_the_shares(target):
    for seed in range(5):
        Y = gaussian(M, N, seed=seed)
        U = balanced_polar(Y, target, rounds=12)
        torch.testing.assert_close(leverages(U), target, rtol=0, atol=1e-10)
        torch.testing.assert_close(U.mT @ U, torch.eye(N, dtype=U.dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("start", ["far", "near"])
def test_a_round_is_a_newton_step_of_at_most_one(rounds, start):
    Y, target = skewed(M, N), shares()
    if start == "near":
        Y = balanced_polar(gaussian(M, N), target, 12) + 1e-3 * gaussian(M, N, seed=1)
    t, lengths = torch.zeros(M, 1, dtype=Y.dtype), []
    for _ in range(rounds):
        U = polar((t / 2).exp() * Y)
        step = torch.linalg.pinv(laplacian(U), rtol=1e-10) @ (target - leverages(U))
        lengths.append(step.abs().max().item())
        t = t + step / max(1.0, lengths[-1])
    assert (lengths[0] > 1) == (start == "far")
    expected = polar((t / 2).exp() * Y)
    torch.testing.assert_close(balanced_polar(Y, target, rounds), expected, rtol=0, atol=1e-9)


def test_no_round_is_the_polar_factor_and_rows_without_a_share_vanish():
    Y, target = skewed(M, N), shares()
    torch.testing.assert_close(balanced_polar(Y, target, 0), polar(Y), rtol=0, atol=1e-10)
    target = torch.full((M, 1), N / (M - 2), dtype=Y.dtype)
    target[:2] = 0
    U = balanced_polar(Y, target, 12)
    assert not U[:2].any()
    torch.testing.assert_close(leverages(U), target, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_scaling_goes_by_the_root_of_what_is_missing(rounds):
    Y, target = skewed(M, N), shares(2)
    D = torch.ones_like(target)
    for _ in range(rounds):
        D = D * (target / leverages(polar(D * Y))).sqrt()
    torch.testing.assert_close(scaled_towards(Y, target, rounds), polar(D * Y), rtol=0, atol=1e-9)


def test_tangents_keep_both_constraints_and_what_is_taken_away_is_normal():
    U = balanced_polar(gaussian(M, N), shares(1), 12)
    space, A = TangentSpace.at(U), gaussian(M, N, seed=5)
    Z = space.project(A)
    inner = U.mT @ Z
    torch.testing.assert_close(inner, -inner.mT, rtol=0, atol=1e-11)
    assert (U * Z).sum(dim=-1).abs().max() < 1e-11
    torch.testing.assert_close(space.project(Z), Z, rtol=0, atol=1e-11)
    S, rows = space.multipliers(A)
    torch.testing.assert_close(S, S.mT, rtol=0, atol=1e-11)
    torch.testing.assert_close(U @ S + rows * U, A - Z, rtol=0, atol=1e-11)
    assert abs(rows.mean()) < 1e-10
    B = gaussian(M, N, seed=6)
    torch.testing.assert_close((Z * B).sum(), (A * space.project(B)).sum(), rtol=0, atol=1e-11)


def test_batches_are_their_matrices():
    Y, target = gaussian(3, M, N), torch.stack([shares(), shares(1), shares(2)])
    for together, function in (
        (balanced_polar(Y, target, 3), balanced_polar),
        (scaled_towards(Y, target, 3), scaled_towards),
    ):
        for i in range(3):
            torch.testing.assert_close(together[i], function(Y[i], target[i], 3))
