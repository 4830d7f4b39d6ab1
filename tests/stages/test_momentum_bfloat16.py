"""Momentum kept in bfloat16: half the bytes, the same path, and no small gradient lost."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

import polarlight
from polarlight import SpectralOptimizer
from polarlight.stages import EMA, HeavyBall, InBfloat16
from tests.matrices import TALL, gaussian
from tests.reference.momentum import ema, heavy_ball
from tests.rules.trajectory import EXACT

MOMENTA = [EMA(), EMA(nesterov=False), HeavyBall(), HeavyBall(nesterov=False)]
momenta = pytest.mark.parametrize("average", MOMENTA, ids=str)
both = pytest.mark.parametrize("stochastic", [True, False], ids=["stochastic", "nearest"])


def optimizer_of(momentum, *shapes, dtype=torch.float32, **options):
    rule = replace(polarlight.rules.muon(polar=EXACT), momentum=momentum)
    parameters = [torch.nn.Parameter(gaussian(*s, seed=90, dtype=dtype)) for s in shapes or [TALL]]
    return SpectralOptimizer(parameters, rule=rule, **options)


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer, steps, start=0):
    for t in range(start, start + steps):
        for i, p in enumerate(parameters_of(optimizer)):
            p.grad = gaussian(*p.shape, seed=100 * t + i).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in parameters_of(optimizer)]


def state_bytes(optimizer):
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum(t.nbytes for t in tensors)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_buffer_is_bfloat16_for_every_parameter_dtype(stochastic, dtype):
    optimizer = optimizer_of(InBfloat16(stochastic=stochastic), dtype=dtype)
    run(optimizer, 2)
    (p,) = parameters_of(optimizer)
    assert p.dtype == dtype
    assert optimizer.state[p]["momentum_buffer"].dtype == torch.bfloat16
    assert ("momentum_draws" in optimizer.state[p]) == stochastic


def test_the_state_has_half_the_bytes():
    wide, narrow = optimizer_of(EMA(), (64, 32)), optimizer_of(InBfloat16(EMA()), (64, 32))
    run(wide, 1)
    run(narrow, 1)
    counter, sizes = 4, 8
    assert state_bytes(narrow) - counter - sizes == (state_bytes(wide) - sizes) // 2


@momenta
@both
def test_the_mapped_momentum_is_not_rounded(average, stochastic):
    """Against float64, with the buffers that were kept: float32 rounding, bfloat16's is 4e-3."""
    momentum = InBfloat16(average, stochastic)
    reference = ema if isinstance(average, EMA) else heavy_ball
    state = momentum.new_state(torch.zeros(TALL))
    for t in range(4):
        G, kept = gaussian(*TALL, seed=t), state["momentum_buffer"].double()
        step = momentum.bind_state([state])
        (mapped,) = step([G.float()], [state["momentum_buffer"]], 0.9)
        known = {"M": kept.numpy()}
        expected = reference(G.numpy(), known, 0.9, average.nesterov)
        assert mapped.dtype == torch.float32
        np.testing.assert_allclose(mapped.numpy(), expected, rtol=0, atol=1e-6)
        # one rounding: up to 2^-7 of the entry at random, half of that to nearest
        error = np.abs(state["momentum_buffer"].double().numpy() - known["M"])
        assert (error <= 2.0 ** (-7 if stochastic else -8) * np.abs(known["M"]) + 1e-6).all()


@momenta
@both
def test_the_path_stays_close_to_that_of_a_float32_momentum(average, stochastic):
    ours = optimizer_of(InBfloat16(average, stochastic), lr=0.02)
    theirs = optimizer_of(average, lr=0.02)
    (start,) = (p.detach().clone() for p in parameters_of(ours))
    (a,), (b,) = run(ours, 20), run(theirs, 20)
    # The rounding of a buffer is 2e-3 of it, and twenty of them add up in no direction.
    assert (a - b).norm() < 1e-2 * (b - start).norm()


def gain(stochastic, beta=0.999, steps=2000):
    """Return the progress of an EMA of a constant gradient, from nine tenths of it."""
    momentum = InBfloat16(EMA(nesterov=False), stochastic)
    state = momentum.new_state(torch.zeros(16, 16))
    state["momentum_buffer"].fill_(0.9)
    G = [torch.ones(16, 16)]
    for _ in range(steps):
        momentum.bind_state([state])(G, [state["momentum_buffer"]], beta)
    return (state["momentum_buffer"].float().mean() - 0.9).item() / 0.1


def test_small_gradients_vanish_to_nearest_and_add_up_at_random():
    """At beta 0.999 a step changes an entry by 1e-4 of it, a twentieth of half a bfloat16 unit."""
    assert gain(stochastic=False) == pytest.approx(0, abs=0.02)  # the start itself is rounded
    # 2000 steps at 0.999 leave 14 %; a single entry keeps moving by a unit, 256 of them average out
    assert gain(stochastic=True) == pytest.approx(0.86, abs=0.05)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_straight_one_bit_for_bit(stochastic, dtype):
    momentum = InBfloat16(stochastic=stochastic)
    straight = optimizer_of(momentum, TALL, (6, 6), dtype=dtype)
    run(straight, 3)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = optimizer_of(momentum, TALL, (6, 6), dtype=dtype)
    for p, q in zip(parameters_of(resumed), parameters_of(straight), strict=True):
        p.data.copy_(q.detach())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for p in parameters_of(resumed):
        assert resumed.state[p]["momentum_buffer"].dtype == torch.bfloat16
        if stochastic:
            assert resumed.state[p]["momentum_draws"].dtype == torch.int32
            assert resumed.state[p]["momentum_draws"] == 3
    torch.manual_seed(5)  # no generator is used
    for a, b in zip(run(resumed, 3, start=3), run(straight, 3, start=3), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(parameters_of(resumed), parameters_of(straight), strict=True):
        for key, value in resumed.state[p].items():
            assert torch.equal(value, straight.state[q][key])


def test_copies_take_equal_steps():
    optimizer = optimizer_of(InBfloat16())
    run(optimizer, 2)
    twin = copy.deepcopy(optimizer)
    assert torch.equal(run(twin, 3, start=2)[0], run(optimizer, 3, start=2)[0])


def test_a_checkpoint_of_another_momentum_is_refused():
    with pytest.raises(ValueError, match=r"another rule(.|\n)*InBfloat16"):
        optimizer_of(InBfloat16()).load_state_dict(optimizer_of(EMA()).state_dict())


def test_a_skipped_parameter_draws_nothing():
    optimizer = optimizer_of(InBfloat16(), TALL, TALL)
    run(optimizer, 1)
    first, second = parameters_of(optimizer)
    first.grad, second.grad = None, torch.ones_like(second)
    optimizer.step()
    draws = [optimizer.state[p]["momentum_draws"].item() for p in (first, second)]
    assert draws == [1, 2]


def test_gradients_are_not_written_and_zero_moves_nothing():
    optimizer = optimizer_of(InBfloat16(), lr=0.1)
    (p,) = parameters_of(optimizer)
    before, p.grad = p.detach().clone(), torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p.detach(), before)
    p.grad = gaussian(*p.shape).float()
    optimizer.step()
    assert torch.equal(p.grad, gaussian(*p.shape).float())


def test_a_momentum_without_a_buffer_is_refused():
    with pytest.raises(ValueError, match="keeps no momentum"):
        InBfloat16(polarlight.stages.RawGradient())
