"""SOAP: fifty steps of the reference, the bases, the schedule on the host, and the symmetries."""

import copy
import io
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polarlight import SOAP, SpectralOptimizer
from polarlight.execution.job import new_buffers
from polarlight.lab.accuracy.adversarial import pairs
from polarlight.rules import soap
from polarlight.stages.eigenbasis import PowerIteration, starting_basis
from polarlight.stages.factors import GramFactors
from polarlight.stages.rotated_adam import RotatedAdam
from polarlight.view import Whole
from tests.matrices import SHAPES, SQUARE, TALL, WIDE, gaussian, many_skewed, skewed
from tests.reference import soap as reference
from tests.rules.rotated import directions, distance, memory

NEARLY = (12, 10)
"""Two gradients fill the longer side, so that refreshing in every step is well-defined."""


@pytest.mark.parametrize("draw", [gaussian, skewed])
@pytest.mark.parametrize("shape", [*SHAPES, NEARLY])
def test_fifty_steps_follow_the_reference(shape, draw):
    # Worst 3e-6 (9e-12 with eps=0): the floor is 1e-8 of the root mean square, and the smallest
    # rotated entry of the first direction is 1e-3 of that.
    assert distance(soap(), reference.step, shape, draw) < 1e-5


@pytest.mark.parametrize("draw", [gaussian, skewed])
@pytest.mark.parametrize("shape", [*SHAPES, NEARLY])
@pytest.mark.parametrize("every", [3, 10, 100])
def test_without_a_floor_the_reference_is_met_to_rounding(shape, every, draw):
    # Bases: shift of 100 epsilons over the smallest eigenvalue, 1e-6 of the largest in skewed ones:
    # worst 6e-9, and 5e-13 of the Gaussian ones.
    bound = 1e-11 if draw is gaussian else 1e-7
    rule = soap(eps=0.0, every=every)
    assert distance(rule, partial(reference.step, every=every), shape, draw) < bound


@pytest.mark.parametrize("shape", [SQUARE, NEARLY])
def test_refreshing_in_every_step_and_other_betas_follow_the_reference(shape):
    betas = {"betas": (0.9, 0.99), "shampoo_beta": 0.8, "every": 1}
    assert distance(soap(eps=0.0, **betas), partial(reference.step, **betas), shape) < 1e-11


@pytest.mark.parametrize("shape", SHAPES)
def test_the_decay_that_follows_is_a_decay_at_other_rates(shape):
    """The code's (lr, wd) are ours at lr (1 - lr wd) and wd / (1 - lr wd), after the first step."""
    lr, wd = 0.1, 0.5
    kept = 1 - lr * wd
    start = gaussian(*shape, seed=100)
    parameter = torch.nn.Parameter(start / kept)
    rates = {"lr": lr * kept, "weight_decay": wd / kept}
    optimizer = SpectralOptimizer([parameter], rule=soap(eps=0.0), **rates)
    W, state = start.numpy(), {}
    for t in range(20):
        G = gaussian(*shape, seed=t)
        parameter.grad = G.clone()
        optimizer.step()
        if t == 0:
            memory = optimizer.state[parameter]
            state["Q"] = memory["left_basis"].numpy().copy(), memory["right_basis"].numpy().copy()
        W = reference.step(W, G.numpy(), state, lr=lr, weight_decay=wd)
        np.testing.assert_allclose(parameter.detach().numpy(), W, rtol=0, atol=1e-10)


def test_bases_that_turn_onto_coordinates_without_gradients_are_bounded_by_the_floor():
    """Blocks of two with sizes of their own, their mirror image, and the blocks again."""
    found = {1: [], 10: []}
    for every, largest in found.items():
        for M in pairs((12, 11), 8, torch.Generator().manual_seed(0)).double():
            rule = soap(every=every)
            buffers = memory(rule, M)
            for G in (M, M.flip(-1), M):
                D = rule.map(G, buffers)
            largest.append(D.square().mean().sqrt().item())
    assert 1e3 < max(found[1]) < 1e8  # 1.6e5; 3e55 by the reference without a floor
    assert max(found[10]) < 1.5  # 0.45: the first bases are kept


def trained(rule, Gs):
    buffers = memory(rule, Gs[0])
    for G in Gs:
        rule.direction(G, buffers)
    return buffers


def orthonormal(Q):
    identity = torch.eye(Q.shape[-1], dtype=Q.dtype).expand_as(Q)
    torch.testing.assert_close(Q.mT @ Q, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_bases_are_eigenvectors(shape):
    G = skewed(*shape)
    buffers = trained(soap(), [G])
    for side, X in (("left", G), ("right", G.mT)):
        Q, S = buffers[f"{side}_basis"], buffers[f"{side}_factor"]
        orthonormal(Q)
        rotated = Q.mT @ S @ Q
        assert (rotated - rotated.diagonal().diag()).abs().max() < 1e-12 * rotated.max()
        eigenvalues = torch.linalg.svdvals(X @ X.mT)
        assert rotated.diagonal().diff().max() < 1e-12 * rotated.max()  # largest first
        expected = eigenvalues / eigenvalues[0] * rotated[0, 0]
        torch.testing.assert_close(rotated.diagonal(), expected, rtol=0, atol=1e-12)


def test_a_basis_does_not_depend_on_rounding_where_nothing_is_known():
    """Rank 2 of 8 in float32: the six directions without weight come out alike to 1e-3."""
    G = (gaussian(8, 2) @ gaussian(2, 5, seed=1)).float()
    Q = starting_basis(G)
    nudged = starting_basis(G * (1 + 1e-7 * gaussian(8, 5, seed=2).float()))
    torch.testing.assert_close(nudged.abs(), Q.abs(), rtol=0, atol=1e-3)
    S = (G @ G.mT) / (G @ G.mT).max()
    old = torch.linalg.qr(gaussian(8, 8, seed=3).float()).Q
    noise = 1e-8 * gaussian(8, 8, seed=4).float()
    kept = PowerIteration(floor=1e-4)
    Q, nudged = kept(S, old)[0], kept(S + noise + noise.mT, old)[0]
    torch.testing.assert_close(nudged.abs(), Q.abs(), rtol=0, atol=1e-2)
    bare = torch.linalg.qr(S @ old).Q - torch.linalg.qr((S + noise + noise.mT) @ old).Q
    assert bare.abs().max() > 0.1


def test_many_rounds_give_the_eigenvectors():
    S = gaussian(6, 40) @ gaussian(6, 40).mT
    Q, _ = PowerIteration(rounds=300)(S, torch.eye(6, dtype=torch.float64))
    rotated = Q.mT @ S @ Q
    assert (rotated - rotated.diagonal().diag()).abs().max() < 1e-9 * rotated.max()
    torch.testing.assert_close(rotated.diagonal(), torch.linalg.svdvals(S))


def test_sorting_returns_the_permutation():
    S = torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))
    Q, order = PowerIteration()(S, torch.eye(3, dtype=torch.float64))
    assert order.tolist() == [1, 2, 0]
    torch.testing.assert_close(Q.abs(), torch.eye(3, dtype=torch.float64)[:, order])
    Q, order = PowerIteration(sort=False)(S, torch.eye(3, dtype=torch.float64))
    assert order.tolist() == [0, 1, 2]


def test_the_second_moment_is_reordered_with_the_columns_of_the_bases():
    """The smallest direction becomes the largest: its entries move to the front."""
    first, second = (
        torch.tensor(d, dtype=torch.float64).diag() for d in ((4, 3, 2, 1), (1, 1, 1, 9))
    )
    buffers = trained(soap(every=1, betas=(0.0, 0.0)), [first, second])
    moved = torch.tensor([81.0, 1.0, 1.0, 1.0], dtype=torch.float64) / buffers["unit"].item() ** 2
    torch.testing.assert_close(buffers["second_moment"], moved.diag())
    expected = torch.eye(4, dtype=torch.float64)[:, [3, 0, 1, 2]]
    torch.testing.assert_close(buffers["left_basis"].abs(), expected)
    torch.testing.assert_close(buffers["right_basis"].abs(), expected)


def test_the_first_moment_is_the_average_of_later_gradients_seen_in_the_bases():
    Gs = [skewed(*TALL, seed=seed) for seed in range(8)]
    buffers = trained(soap(every=2), Gs)
    M = torch.zeros_like(Gs[0])
    for G in Gs[1:]:
        M = 0.95 * M + 0.05 * G / buffers["unit"]
    left, right = buffers["left_basis"], buffers["right_basis"]
    torch.testing.assert_close(left @ buffers["first_moment"] @ right.mT, M)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_gradient_moves_nothing_and_the_second_moves_by_signs(shape):
    first, second = directions(soap(eps=0.0), [gaussian(*shape), gaussian(*shape, seed=1)])
    assert not first.any()
    # One step of Adam: every rotated entry is +-1, whatever the bases.
    assert second.norm().item() == pytest.approx((shape[0] * shape[1]) ** 0.5)


def test_rotations_commute_with_it_where_the_bases_are_unique():
    P, Q = (torch.linalg.qr(gaussian(8, 8, seed=seed)).Q for seed in (8, 9))
    Gs = [skewed(8, 8, seed=seed) for seed in range(12)]
    turned = directions(soap(every=3), [P @ G @ Q for G in Gs])
    for ours, plain in zip(turned, directions(soap(every=3), Gs), strict=True):
        # Rounding over the gaps of eigenvalues that reach down to 1e-6 of the largest.
        torch.testing.assert_close(ours, P @ plain @ Q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("power", [-100, -40, 40, 100])
def test_scale_does_not_matter(power):
    Gs = [skewed(*TALL, seed=seed, dtype=torch.float32) for seed in range(6)]
    rule = soap(every=2)
    for ours, plain in zip(
        directions(rule, [2.0**power * G for G in Gs]), directions(rule, Gs), strict=True
    ):
        assert torch.equal(ours, plain)


def test_a_row_and_a_column_without_gradients_stay_at_rest_and_wake_at_once():
    Gs = [skewed(*TALL, seed=seed) for seed in range(6)]
    for G in Gs:
        G[3], G[:, 2] = 0, 0
    *_, last = directions(soap(every=2), Gs)
    assert not last[3].any()
    assert not last[:, 2].any()
    assert (last != 0).sum() == 23 * 5
    *_, awake = directions(soap(every=2), [*Gs, skewed(*TALL, seed=9)])
    assert awake[3].abs().max() > 0.01


def test_a_batch_is_its_matrices():
    Gs = [many_skewed(*NEARLY), many_skewed(*NEARLY).roll(1, 0), many_skewed(*NEARLY).roll(2, 0)]
    together = directions(soap(every=2), Gs)[-1]
    apart = torch.stack([directions(soap(every=2), [G[i] for G in Gs])[-1] for i in range(10)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-8)


def test_gradients_are_not_written():
    G = skewed(*TALL)
    buffers = memory(soap(every=1), G)
    for _ in range(3):
        soap(every=1).direction(G, buffers)
    assert torch.equal(G, skewed(*TALL))


def test_a_nan_spoils_its_own_matrix_for_good_and_no_other():
    Gs = [gaussian(3, 8, 4, seed=seed) for seed in range(5)]
    for bad in (0, 2):
        poisoned = [G.clone() for G in Gs]
        poisoned[bad][1, 2, 2] = float("nan")
        buffers = memory(soap(every=1), Gs[0])
        for t, G in enumerate(poisoned):
            D = soap(every=1).direction(G, buffers)
            if t >= bad:
                assert [bool(d.isfinite().all()) for d in D] == [True, False, True]


def test_a_long_side_keeps_its_coordinates():
    rule = soap(max_side=6, every=2)
    shapes = rule.buffer_shapes(torch.Size(TALL))
    assert "right_basis" in shapes
    assert "left_basis" not in shapes
    permutation = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    Gs = [skewed(*TALL, seed=seed) for seed in range(5)]
    for ours, plain in zip(
        directions(rule, [G[permutation] for G in Gs]), directions(rule, Gs), strict=True
    ):
        torch.testing.assert_close(ours, plain[permutation], rtol=0, atol=1e-9)


def test_without_sides_it_is_adam_after_its_first_gradient():
    Gs = [gaussian(*TALL, seed=seed) for seed in range(5)]
    W = torch.nn.Parameter(torch.zeros(TALL, dtype=torch.float64))
    adam = torch.optim.Adam([W], lr=1.0, betas=(0.95, 0.95), eps=0.0)
    rule = soap(max_side=0, eps=0.0)
    first, *later = directions(rule, Gs)
    assert not first.any()
    for G, D in zip(Gs[1:], later, strict=True):
        before, W.grad = W.detach().clone(), G.clone()
        adam.step()
        torch.testing.assert_close(D, before - W.detach())


class Reads(TorchDispatchMode):
    """Values that the host reads from tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.seen.append(args[0].dtype)
        if func is torch.ops.aten.nonzero.default:
            self.seen.append("nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [1, 2])
def test_the_host_reads_its_own_counter_and_nothing_else(every):
    rule, G = soap(every=every), gaussian(3, *TALL)
    buffers = memory(rule, G)
    for _ in range(4):
        with Reads() as reads:
            reads.seen = []
            rule.direction(G, buffers)
        # all() and any() of "first" and of "due": four booleans made of the counter.
        assert set(reads.seen) == {torch.bool}
        assert len(reads.seen) <= 4


def test_the_counter_alone_lies_on_the_host():
    buffers = new_buffers(soap(), Whole(), torch.empty(*TALL, device="meta"))
    assert {name for name, buffer in buffers.items() if buffer.device.type == "cpu"} == {"step"}


def test_members_of_a_batch_may_be_at_different_steps():
    """A parameter without a gradient is left out of a step; the others go on."""
    rule = soap(every=2)
    parameters = [torch.nn.Parameter(gaussian(*NEARLY, seed=50 + i)) for i in range(3)]
    together = SpectralOptimizer(parameters, lr=0.1, rule=rule)
    apart = [copy.deepcopy(parameter) for parameter in parameters]
    alone = [SpectralOptimizer([parameter], lr=0.1, rule=rule) for parameter in apart]
    for t in range(9):
        present = [i for i in range(3) if t >= i and (t != 4 or i != 0)]
        for i, (ours, theirs) in enumerate(zip(parameters, apart, strict=True)):
            ours.grad = gaussian(*NEARLY, seed=10 * t + i) if i in present else None
            theirs.grad = None if ours.grad is None else ours.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    assert [together.state[p]["step"].item() for p in parameters] == [8, 8, 7]
    torch.testing.assert_close(parameters, apart, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_resuming_across_a_refresh_is_exact_and_the_counter_stays_on_the_host(stop, dtype):
    def go(optimizer, steps):
        (parameter,) = optimizer.param_groups[0]["params"]
        for t in steps:
            parameter.grad = gaussian(*TALL, seed=t, dtype=dtype)
            optimizer.step()
        return parameter.detach().clone()

    def new(W):
        return SpectralOptimizer([torch.nn.Parameter(W)], lr=0.1, rule=soap(every=3), view=Whole())

    start = gaussian(*TALL, seed=100, dtype=dtype)
    straight = go(new(start.clone()), range(8))
    first = new(start.clone())
    half = go(first, range(stop))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = new(half.clone())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    (state,) = resumed.state.values()
    assert state["step"].device.type == "cpu"
    assert state["step"].dtype == state["left_basis"].dtype == torch.float32
    assert torch.equal(go(resumed, range(stop, 8)), straight)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_on_one_repeated_gradient_it_is_the_sign_of_the_rotated_one(shape):
    G = skewed(*shape)
    buffers = memory(soap(), G)
    for _ in range(5):
        D = soap().direction(G, buffers)
    core = buffers["left_basis"].mT @ D @ buffers["right_basis"]
    kept = core.diagonal()  # G is diagonal in its own bases: off it, rounding over rounding
    torch.testing.assert_close(kept.abs(), torch.ones_like(kept), rtol=0, atol=1e-5)


def test_the_class_is_its_rule_with_the_arguments_given():
    W = gaussian(*TALL).requires_grad_()
    assert SOAP([W]).param_groups[0]["rule"] == soap()
    arguments = {"shampoo_beta": 0.7, "every": 5, "max_side": 100}
    (group,) = SOAP([W], 0.3, (0.8, 0.9), 1e-6, 0.2, maximize=True, **arguments).param_groups
    assert group["rule"] == soap(betas=(0.8, 0.9), eps=1e-6, **arguments)
    assert [group[key] for key in ("lr", "weight_decay", "maximize")] == [0.3, 0.2, True]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: soap(betas=(1.0, 0.9)),
            r"betas\[0\] must lie in \[0, 1\), got 1\.0 of \(1\.0, 0\.9\)",
        ),
        (lambda: soap(every=0), "every must be >= 1, got 0"),
        (lambda: soap(eps=-1.0), r"eps must be >= 0, got -1\.0"),
        (lambda: soap(max_side=-1), "max_side must be >= 0, got -1"),
        (lambda: GramFactors(1.0), r"beta must lie in \[0, 1\), got 1\.0"),
        (lambda: PowerIteration(rounds=0), "rounds must be >= 1, got 0"),
        (lambda: PowerIteration(floor=1.0), r"floor must lie in \[0, 1\), got 1\.0"),
        (lambda: RotatedAdam(betas=(0.9, 2.0)), r"betas\[1\] must lie"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()
