"""LoRA's factors as one product: the float64 reference, the bound, and independence of the form."""

import numpy as np
import pytest
import torch

import polarlight
from polarlight.linalg.factored import steepest_in_left, steepest_in_right
from polarlight.rules.lora_product import LoraProduct
from tests.matrices import gaussian
from tests.reference import lora_product
from tests.rules.trajectory import EXACT, NUMBERS

SHAPES = [(20, 12, 4), (12, 20, 4), (8, 8, 1), (6, 10, 6)]
SHARP = LoraProduct(polar=EXACT, damping=1e-14)
shapes = pytest.mark.parametrize(("m", "n", "r"), SHAPES)


def pair(m, n, r, R=None):
    """A and B, or the same product written with R."""
    A, B = gaussian(r, n, seed=1), gaussian(m, r, seed=2)
    if R is not None:
        A, B = torch.linalg.solve(R, A), B @ R
    return [torch.nn.Parameter(A.clone()), torch.nn.Parameter(B.clone())]


def optimizer(factors, rule=SHARP, **numbers):
    return polarlight.SpectralOptimizer([{"params": factors}], rule=rule, **(NUMBERS | numbers))


def backward(factors, G):
    """Gradients of <G, B A>."""
    A, B = (p.detach() for p in factors)
    factors[0].grad, factors[1].grad = B.mT @ G, G @ A.mT


@shapes
def test_steps_follow_the_reference(m, n, r):
    """1e-14 of damping enters as half of itself; ten steps multiply rounding by the condition."""
    factors = pair(m, n, r)
    A, B = (p.detach().numpy().copy() for p in factors)
    steps, state = optimizer(factors), {}
    for t in range(10):
        G = gaussian(m, n, seed=10 + t)
        backward(factors, G)
        G_A, G_B = (p.grad.numpy().copy() for p in factors)
        steps.step()
        A, B = lora_product.step(A, B, G_A, G_B, state, **NUMBERS)
        for p, expected in zip(factors, (A, B), strict=True):
            assert np.linalg.norm(p.detach().numpy() - expected) < 1e-9 * np.linalg.norm(expected)


@shapes
def test_the_product_moves_by_the_polar_factor_of_what_a_factor_can_express(m, n, r):
    A, B = (p.detach() for p in pair(m, n, r))
    G = gaussian(m, n, seed=3)
    rows = torch.linalg.pinv(A) @ A
    left = steepest_in_left(G @ A.mT, A, EXACT, 1e-14) @ A
    torch.testing.assert_close(left, thin_polar(G @ rows, r), rtol=0, atol=1e-9)
    columns = B @ torch.linalg.pinv(B)
    right = B @ steepest_in_right(B.mT @ G, B, EXACT, 1e-14)
    torch.testing.assert_close(right, thin_polar(columns @ G, r), rtol=0, atol=1e-9)


def thin_polar(M, r):
    """Polar factor of a matrix of rank r."""
    U, _, Vh = torch.linalg.svd(M)
    return U[:, :r] @ Vh[:r]


@shapes
def test_no_feasible_step_is_steeper(m, n, r):
    """<M, dB> is the nuclear norm of M P^(-1/2), the dual bound of every dB with |dB A| <= 1."""
    A, M = gaussian(r, n, seed=1), gaussian(m, r, seed=4)
    dB = steepest_in_left(M, A, EXACT, 1e-14)
    gain = (M * dB).sum()
    for seed in range(20):
        other = gaussian(m, r, seed=50 + seed)
        other = other / torch.linalg.matrix_norm(other @ A, 2)
        assert (M * other).sum() < gain
    assert torch.linalg.matrix_norm(dB @ A, 2) < 1 + 1e-9


def test_to_first_order_the_step_is_at_most_lr():
    """Operator norm from RMS to RMS of the whole product's change, both factors at work."""
    m, n, r, lr = 20, 12, 4, 1e-5
    factors = pair(m, n, r)
    before = (factors[1] @ factors[0]).detach()
    backward(factors, gaussian(m, n, seed=3))
    optimizer(factors, lr=lr, weight_decay=0.0).step()
    moved = (factors[1] @ factors[0]).detach() - before
    assert torch.linalg.matrix_norm(moved, 2) * (n / m) ** 0.5 < lr * (1 + 1e-3)
    assert torch.linalg.matrix_norm(moved, 2) * (n / m) ** 0.5 > lr / 2


def way(m, n, r, rule, R=None):
    """The product after five steps on the gradient of half its distance to a target."""
    factors = pair(m, n, r, R)
    steps = optimizer(factors, rule, weight_decay=0.0)
    for _ in range(5):
        with torch.no_grad():
            G = factors[1] @ factors[0] - gaussian(m, n, seed=9)
        backward(factors, G)
        steps.step()
    return (factors[1] @ factors[0]).detach()


@pytest.mark.parametrize("kind", ["size", "general"])
def test_the_step_of_the_product_does_not_depend_on_its_factorization(kind):
    m, n, r = 12, 10, 3
    R = 100 * torch.eye(r).double() if kind == "size" else gaussian(r, r, seed=5) + 2 * torch.eye(r)
    torch.testing.assert_close(way(m, n, r, SHARP), way(m, n, r, SHARP, R), rtol=0, atol=1e-8)
    if kind == "size":  # damping is relative, so that size never matters
        default = LoraProduct(polar=EXACT)
        same = way(m, n, r, default), way(m, n, r, default, R)
        torch.testing.assert_close(*same, rtol=0, atol=1e-9)


def test_muon_on_the_factors_depends_on_how_the_product_is_written():
    """Factors as separate matrices do not pass the test above."""

    def apart(R):
        factors = pair(12, 10, 3, R)
        steps = polarlight.SpectralOptimizer(
            factors, rule=polarlight.rules.muon(polar=EXACT), lr=0.1
        )
        backward(factors, gaussian(12, 10, seed=9))
        steps.step()
        return (factors[1] @ factors[0]).detach()

    assert (apart(None) - apart(100 * torch.eye(3).double())).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_the_usual_start_b_moves_first_and_all_stays_finite(dtype):
    A = torch.nn.Parameter(gaussian(4, 12, seed=1).to(dtype))
    B = torch.nn.Parameter(torch.zeros(20, 4, dtype=dtype))
    steps = polarlight.SpectralOptimizer([{"params": [A, B]}], rule=LoraProduct(), lr=0.01)
    start = A.detach().clone()
    for t in range(4):
        backward([A, B], gaussian(20, 12, seed=t).to(dtype) * 1e-4)
        steps.step()
        assert torch.equal(A, start) == (t == 0)
        assert A.isfinite().all()
        assert B.isfinite().all()
    assert B.dtype == dtype


def test_zero_gradients_move_nothing_and_size_of_gradients_does_not_matter():
    still = pair(6, 8, 2)
    start = [p.detach().clone() for p in still]
    backward(still, torch.zeros(6, 8).double())
    optimizer(still, weight_decay=0.0).step()
    assert all(torch.equal(p, q) for p, q in zip(still, start, strict=True))
    moved = []
    for size in (1.0, 1e-30, 1e30):
        factors = pair(6, 8, 2)
        backward(factors, size * gaussian(6, 8, seed=3))
        optimizer(factors).step()
        moved.append(torch.cat([p.detach().flatten() for p in factors]))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved[0], moved[2], rtol=1e-9, atol=1e-12)


def test_a_pair_waits_while_one_gradient_is_missing_or_not_finite():
    for bad in (None, torch.nan):
        factors = pair(6, 8, 2)
        steps = optimizer(factors)
        backward(factors, gaussian(6, 8, seed=3))
        if bad is None:
            factors[0].grad = None
        else:
            factors[0].grad[0, 0] = bad
        start = [p.detach().clone() for p in factors]
        steps.step()
        assert all(torch.equal(p, q) for p, q in zip(factors, start, strict=True))
        backward(factors, gaussian(6, 8, seed=3))
        steps.step()
        assert not torch.equal(factors[1], start[1])


def test_a_run_resumes_bit_for_bit_from_a_state_dict():
    def trained(steps, factors, optimizer):
        for t in steps:
            backward(factors, gaussian(6, 8, seed=t))
            optimizer.step()

    whole = pair(6, 8, 2)
    one = optimizer(whole, LoraProduct())
    trained(range(6), whole, one)
    half = pair(6, 8, 2)
    two = optimizer(half, LoraProduct())
    trained(range(3), half, two)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in half]
    three = optimizer(resumed, LoraProduct())
    three.load_state_dict(two.state_dict())
    trained(range(3, 6), resumed, three)
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_the_direction_is_what_the_step_took():
    factors = pair(6, 8, 2)
    start = factors[1].detach().clone()
    backward(factors, gaussian(6, 8, seed=3))
    steps = optimizer(factors, weight_decay=0.0)
    steps.step()
    _, direction = SHARP.momentum_and_direction(steps.state[factors[1]], 0.9)
    torch.testing.assert_close(start - factors[1].detach(), NUMBERS["lr"] * direction)


@pytest.mark.parametrize("sizes", [[(2, 8), (2, 6)], [(2, 8), (6, 2), (2, 8)], [(2, 8), (2,)]])
def test_groups_without_a_pair_raise(sizes):
    params = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    for p in params:
        p.grad = torch.randn_like(p)
    with pytest.raises(ValueError, match=r"one pair, A .r, n. and B .m, r., got"):
        polarlight.SpectralOptimizer([{"params": params}], rule=LoraProduct(), lr=0.1).step()


def test_damping_must_be_positive():
    with pytest.raises(ValueError, match="damping must be > 0, got 0"):
        LoraProduct(damping=0)
