"""Momentum in int8: codes, scales, rounding, memory, and everything a buffer goes through."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.migration import carry_over
from polarlight.optimizer.masked import update_momenta
from polarlight.stages import EMA, HeavyBall, InInt8
from tests.distributed.processes import run as run_processes
from tests.matrices import gaussian
from tests.reference.momentum import blockwise
from tests.rules.trajectory import EXACT

POWERS = pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
BOTH = pytest.mark.parametrize("stochastic", [True, False], ids=["stochastic", "nearest"])
SHAPE = (6, 300)


def counter(n):
    return torch.tensor(n, dtype=torch.int32)


def kept(momentum, X, draw=None):
    """The state after storing X, and what it stands for."""
    state = momentum.new_state(X)
    codes, scales = state["momentum_buffer"], state["momentum_scales"]
    momentum.quantize_(codes, scales, X, draw)
    return state, momentum.dequantize(codes, scales)


def optimizer_of(momentum, *shapes, dtype=torch.float32, **options):
    rule = replace(polarlight.rules.muon(polar=EXACT), momentum=momentum)
    parameters = [nn.Parameter(gaussian(*s, seed=90).to(dtype)) for s in shapes or [SHAPE]]
    return SpectralOptimizer(parameters, rule=rule, **options)


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer, steps, start=0):
    for t in range(start, start + steps):
        for i, p in enumerate(parameters_of(optimizer)):
            p.grad = gaussian(*p.shape, seed=100 * t + i).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in parameters_of(optimizer)]


@POWERS
@pytest.mark.parametrize("block", [1, 7, 128, 1000])
def test_codes_and_scales_equal_the_float64_reference(power, block):
    X = gaussian(*SHAPE, seed=1).float()
    state, values = kept(InInt8(block=block, power=power, stochastic=False), X)
    codes, scales, expected = blockwise(X.double().numpy(), block, power)
    off = np.abs(state["momentum_buffer"].numpy().astype(int) - codes.astype(int))
    assert off.max() <= 1  # float32 may fall on the other side of a half
    assert (off > 0).mean() < 2e-3
    np.testing.assert_allclose(state["momentum_scales"].numpy(), scales, rtol=1e-6)
    near = off == 0
    np.testing.assert_allclose(values.numpy()[near], expected[near], rtol=1e-5, atol=1e-7)


@POWERS
@BOTH
def test_an_entry_is_off_by_at_most_the_documented_distance(power, stochastic):
    X = gaussian(*SHAPE, seed=2).float()
    draw = counter(3) if stochastic else None
    _, Y = kept(InInt8(block=300, power=power, stochastic=stochastic), X, draw)
    s = X.abs().amax(dim=1, keepdim=True).double()
    above = (X.double().abs() / s) ** (1 / power) + 1 / 127  # the larger neighbour's rank
    bound = power * above ** (power - 1) * s / 127
    assert ((X.double() - Y).abs() <= bound * (1 + 1e-5)).all()


@POWERS
def test_stochastic_rounding_is_right_on_average(power):
    X = gaussian(16, 128, seed=3).float()
    momentum, total, draws = InInt8(power=power, stochastic=True), torch.zeros(16, 128), 400
    for i in range(draws):
        _, Y = kept(momentum, X, counter(i))
        total += Y
    single = (Y - X).norm()
    assert (total / draws - X).norm() < 2 * single / draws**0.5


@BOTH
def test_values_of_codes_and_zeros_are_kept_as_they_are(stochastic):
    momentum = InInt8(stochastic=stochastic)
    state, Y = kept(momentum, gaussian(*SHAPE, seed=4).float(), counter(0))
    again, Z = kept(momentum, Y, None)
    assert torch.equal(again["momentum_buffer"], state["momentum_buffer"])
    assert torch.equal(Y, Z)
    _, zeros = kept(momentum, torch.zeros(SHAPE), counter(0))
    assert not zeros.any()


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((5, 300), (5, 3)), ((2, 5, 128), (2, 5, 1)), ((6, 3, 5, 5), (6, 1)), ((0, 5), (0, 1))],
)
def test_scales_have_one_entry_per_block_of_a_row(shape, scales):
    state, Y = kept(InInt8(), torch.randn(shape), counter(0))
    assert state["momentum_scales"].shape == scales
    assert Y.shape == shape


def test_the_state_has_a_quarter_of_the_bytes_of_float32():
    optimizer = optimizer_of(InInt8(), (64, 256))
    run(optimizer, 1)
    (p,) = parameters_of(optimizer)
    state = optimizer.state[p]
    size = state["momentum_buffer"].nbytes + state["momentum_scales"].nbytes
    assert size == 64 * 256 * (1 + 4 / 128)


@BOTH
@pytest.mark.parametrize("average", [EMA(), HeavyBall(nesterov=False)], ids=str)
def test_the_path_stays_close_to_that_of_a_float32_momentum(average, stochastic):
    shape = (96, 32)
    ours = optimizer_of(InInt8(average, stochastic=stochastic), shape, lr=0.02)
    theirs = optimizer_of(average, shape, lr=0.02)
    (start,) = (p.detach().clone() for p in parameters_of(ours))
    (a,), (b,) = run(ours, 20), run(theirs, 20)
    # A buffer is rounded by 1e-2 of it; a well conditioned polar factor passes that on.
    assert (a - b).norm() < 4e-2 * (b - start).norm()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_straight_one_bit_for_bit(stochastic, dtype):
    momentum = InInt8(stochastic=stochastic)
    straight = optimizer_of(momentum, SHAPE, (6, 6), dtype=dtype)
    run(straight, 3)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = optimizer_of(momentum, SHAPE, (6, 6), dtype=dtype)
    for p, q in zip(parameters_of(resumed), parameters_of(straight), strict=True):
        p.data.copy_(q.detach())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(run(resumed, 3, start=3), run(straight, 3, start=3), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(parameters_of(resumed), parameters_of(straight), strict=True):
        for key, value in resumed.state[p].items():
            assert value.dtype == straight.state[q][key].dtype
            assert torch.equal(value, straight.state[q][key])


def test_a_parameter_with_a_nan_keeps_codes_scales_and_counter():
    optimizer = optimizer_of(InInt8(stochastic=True), SHAPE, SHAPE)
    run(optimizer, 2)
    first, second = parameters_of(optimizer)
    before = copy.deepcopy(optimizer.state[first])
    first.grad = torch.full_like(first, torch.nan)
    second.grad = torch.ones_like(second)
    optimizer.step()
    for key, value in before.items():
        assert torch.equal(optimizer.state[first][key], value)
    assert optimizer.state[second]["momentum_draws"] == 3


def test_flags_on_a_device_restore_codes_scales_and_counter():
    """The path of accelerators: selection by a flag, without waiting for it."""
    momentum = InInt8(stochastic=True)
    states = [momentum.new_state(torch.zeros(SHAPE)) for _ in range(2)]
    for state in states:
        momentum.store(state, gaussian(*SHAPE, seed=6).float())
    before = copy.deepcopy(states)
    gradients = [torch.full(SHAPE, torch.nan), torch.ones(SHAPE)]
    buffers = [state["momentum_buffer"] for state in states]
    flags = [torch.tensor(False), torch.tensor(True)]
    update_momenta(momentum, states, gradients, buffers, 0.9, flags)
    assert all(torch.equal(states[0][key], value) for key, value in before[0].items())
    assert not torch.equal(states[1]["momentum_buffer"], before[1]["momentum_buffer"])


def test_a_momentum_moves_between_float32_and_int8():
    model = nn.Sequential(nn.Linear(8, 32, bias=False), nn.Linear(32, 8, bias=False))
    names = list(model.named_parameters())
    rule = polarlight.rules.muon()
    old = SpectralOptimizer(names, rule=rule)
    for p in model.parameters():
        p.grad = gaussian(*p.shape, seed=7).float()
    old.step()
    coded = SpectralOptimizer(names, rule=replace(rule, momentum=InInt8(stochastic=True)))
    report = carry_over(old, coded)
    assert {line.fresh for line in report.lines} == {("momentum_draws",)}
    back = SpectralOptimizer(names, rule=rule)
    carry_over(coded, back)
    for p in model.parameters():
        M = old.state[p]["momentum_buffer"]
        # to nearest: half a code's distance at the largest entry, power / 127 of it
        torch.testing.assert_close(
            back.state[p]["momentum_buffer"], M, rtol=0, atol=1.1 * float(M.abs().max()) / 127
        )


def gain(stochastic, beta=0.999, steps=2000):
    """Share of its way that the average of a constant gradient went, from a buffer at 0.9."""
    momentum = InInt8(EMA(nesterov=False), stochastic=stochastic)
    state, G = momentum.new_state(torch.zeros(16, 128)), torch.ones(16, 128)
    start = torch.full((16, 128), 0.9)
    start[:, 0] = 2.0  # sets the scale, and stays
    G[:, 0] = 2.0
    momentum.store(state, start)
    for _ in range(steps):
        momentum.bind_state([state])([G], [state["momentum_buffer"]], beta)
    kept = momentum.dequantize(state["momentum_buffer"], state["momentum_scales"])
    return (kept[:, 1:].mean() - 0.9).item() / 0.1


def test_small_gradients_vanish_to_nearest_and_add_up_at_random():
    """At decay 0.999 a step changes an entry by 1e-4, a fiftieth of half a code's distance."""
    assert gain(stochastic=False) == pytest.approx(0, abs=0.1)  # the start itself is rounded
    assert gain(stochastic=True) == pytest.approx(0.86, abs=0.1)  # 1 - 0.999^2000


@pytest.mark.parametrize("other", [InInt8(block=64), InInt8(power=1.25), EMA()], ids=str)
def test_another_block_or_power_is_another_rule(other):
    saved = optimizer_of(InInt8()).state_dict()
    with pytest.raises(ValueError, match=r"another rule"):
        optimizer_of(other).load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": polarlight.stages.RawGradient()}, "keeps no momentum"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"power": 0.5}, r"power must be at least 1, got 0\.5"),
    ],
)
def test_invalid_int8_settings_raise_with_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        InInt8(**options)


def _sharded(rank, layouts):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    W, gradients = gaussian(7, 16).float(), [gaussian(7, 16, seed=t).float() for t in range(3)]
    rule = replace(polarlight.rules.muon(polar=EXACT), momentum=InInt8(block=4, stochastic=False))
    whole = nn.Parameter(W.clone())
    alone = SpectralOptimizer([whole], rule=rule)
    for G in gradients:
        whole.grad = G
        alone.step()
    for dim in layouts:
        p = nn.Parameter(distribute_tensor(W, mesh, [Shard(dim)]))
        optimizer = SpectralOptimizer([p], rule=rule)
        for G in gradients:
            p.grad = distribute_tensor(G, mesh, [Shard(dim)])
            optimizer.step()
        torch.testing.assert_close(p.full_tensor(), whole, rtol=0, atol=1e-6)
        scales = optimizer.state[p]["momentum_scales"].full_tensor()
        assert torch.equal(scales, alone.state[whole]["momentum_scales"])
    cut = replace(rule, momentum=InInt8(block=5, stochastic=False))
    p = nn.Parameter(distribute_tensor(W, mesh, [Shard(1)]))
    p.grad = distribute_tensor(gradients[0], mesh, [Shard(1)])
    with pytest.raises(ValueError, match=r"a shard of 8 of 16 columns would cut a block of 5"):
        SpectralOptimizer([p], rule=cut).step()


def test_shards_by_rows_and_columns_give_the_values_of_one_process():
    run_processes(2, _sharded, (0, 1))
