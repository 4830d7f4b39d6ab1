"""Contracts of every rule, independent of its mathematics."""

import copy
import io

import pytest
import torch

import polarlight
from polarlight import SpectralOptimizer
from polarlight.execution.job import Job
from polarlight.stages import InInt8
from polarlight.view import Flattened, Taps
from tests.contracts.catalogue import GROWING, RULES, SHIPPED
from tests.in_turn import in_turn

SHAPES = [(12, 4), (4, 12), (6, 6), (3, 12, 4), (3, 4, 12)]

rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
shipped = pytest.mark.parametrize("rule", SHIPPED.values(), ids=SHIPPED)
scale_free = pytest.mark.parametrize(
    "rule",
    [rule for name, rule in SHIPPED.items() if name not in GROWING],
    ids=[name for name in SHIPPED if name not in GROWING],
)
growing = pytest.mark.parametrize(("rule", "degree"), GROWING.values(), ids=GROWING)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(parameters, seed):
    return [random(*p.shape, seed=seed + i).to(p.dtype) for i, p in enumerate(parameters)]


def train(rule, parameters, steps=4, view=None, start=0, optimizer=None, **options):
    """The parameters after some steps with seeded gradients, and the optimizer."""
    if optimizer is None:
        parameters = [torch.nn.Parameter(p.clone()) for p in parameters]
        view = view or polarlight.view.Whole()
        optimizer = SpectralOptimizer(parameters, lr=0.1, rule=rule, view=view, **options)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, start + steps):
        for p, g in zip(parameters, gradients(parameters, 100 * step), strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in parameters], optimizer


@rules
def test_executors_give_equal_directions(rule):
    parameters = [random(*shape, seed=i) for i, shape in enumerate(SHAPES * 2)]
    alone, _ = train(rule, parameters, steps=3, executor=polarlight.OneByOne())
    together, _ = train(rule, parameters, steps=3, executor=polarlight.Batched())
    # Batched products may add in another order: float64 rounding over three steps.
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@rules
def test_a_small_cap_on_the_batch_changes_nothing(rule):
    parameters = [random(12, 4, seed=i) for i in range(5)]
    small = polarlight.Batched(max_bytes=2 * 12 * 4 * 8)
    capped, _ = train(rule, parameters, steps=2, executor=small)
    whole, _ = train(rule, parameters, steps=2)
    torch.testing.assert_close(capped, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rule", "shape"), in_turn(RULES, SHAPES, 2))
def test_leading_dimensions_are_a_batch(rule, shape):
    if len(shape) == 2:
        shape = (3, *shape)
    stacked = random(*shape)
    jobs = [Job(rule, stacked, buffers(rule, stacked))]
    jobs += [Job(rule, M, buffers(rule, M)) for M in stacked]
    together, *apart = polarlight.OneByOne().directions(jobs)
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-9, atol=1e-9)


def buffers(rule, M):
    return {k: torch.zeros(s, dtype=M.dtype) for k, s in rule.buffer_shapes(M.shape).items()}


VIEWS = [
    (polarlight.view.RowBlocks((12, 4, 2)), (18, 4), lambda x: list(x.split((12, 4, 2)))),
    (polarlight.view.Heads(3), (18, 4), lambda x: list(x.chunk(3))),
    (polarlight.view.Heads(2, dim=-1), (18, 4), lambda x: list(x.chunk(2, dim=1))),
    (polarlight.view.Transposed(), (18, 4), lambda x: [x.mT]),
    (polarlight.view.Slices(2), (10, 2, 4), lambda x: [x[:, 0], x[:, 1]]),
    (Flattened((2, 3)), (6, 4, 2, 3), lambda x: [x.reshape(6, 24)]),
    (Taps(), (6, 4, 2, 3), lambda x: [x[:, :, i, j] for i in range(2) for j in range(3)]),
]


def _keeps_rows(view):
    """True if every row of a part is a row of the parameter."""
    return not isinstance(view, polarlight.view.Transposed | Taps) and getattr(view, "dim", 0) != -1


@pytest.mark.parametrize(
    ("rule", "view", "shape", "cut"), in_turn(RULES, {str(case[0]): case for case in VIEWS}, 2)
)
def test_a_view_is_its_parts_as_parameters_of_their_own(rule, view, shape, cut):
    if isinstance(getattr(rule, "momentum", None), InInt8) and not _keeps_rows(view):
        pytest.skip("a block is a run of a parameter's row, whatever the view makes of it")
    whole = torch.nn.Parameter(random(*shape))
    parts = [torch.nn.Parameter(x.clone()) for x in cut(whole.detach())]
    one = SpectralOptimizer([whole], lr=0.1, rule=rule, view=view)
    many = SpectralOptimizer(parts, lr=0.1, rule=rule)
    for step in range(4):
        whole.grad = random(*shape, seed=step)
        for p, g in zip(parts, cut(whole.grad), strict=True):
            p.grad = g.clone()
        one.step()
        many.step()
    torch.testing.assert_close(
        cut(whole.detach()), [p.detach() for p in parts], rtol=1e-9, atol=1e-9
    )


@scale_free
def test_large_gradients_in_float16_move_the_weights_and_keep_everything_finite(rule):
    """Entries are near 1e4: a sum of ten of them would pass float16's largest number."""
    p = torch.nn.Parameter(random(12, 8, dtype=torch.float16))
    optimizer = SpectralOptimizer([p], lr=1e-3, momentum=0.95, rule=rule)
    for step in range(8):
        before = p.detach().clone()
        p.grad = (1e4 * (1 + 0.1 * random(12, 8, seed=step))).half()
        optimizer.step()
        assert step == 0 or not torch.equal(p.detach(), before)
    tensors = [x for x in optimizer.state[p].values() if torch.is_tensor(x)]
    assert all(x.isfinite().all() for x in [p.detach(), *tensors])


@pytest.mark.parametrize(("rule", "shape"), in_turn(SHIPPED, SHAPES, 2))
def test_zero_gradients_move_nothing(rule, shape):
    before = random(*shape, dtype=torch.float32)
    p = torch.nn.Parameter(before.clone())
    optimizer = SpectralOptimizer([p], lr=0.1, rule=rule, view=polarlight.view.Whole())
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(p.detach(), before)


NARROW = {
    name: rule
    for name, rule in SHIPPED.items()
    if rule.input_dtype(torch.float32, torch.device("cpu")) == torch.bfloat16
}
"""Rules that read their matrix in bfloat16; the others are given it as it is."""


@scale_free
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_the_gradients_does_not_matter(rule, factor):
    results = []
    for scale in (1.0, factor):
        p = torch.nn.Parameter(random(12, 4, dtype=torch.float32))
        optimizer = SpectralOptimizer([p], lr=1.0, rule=rule)
        for step in range(3):
            p.grad = random(12, 4, seed=step, dtype=torch.float32) * scale
            optimizer.step()
        results.append(p.detach())
    # The polar iteration may run in bfloat16, where one more rounding is visible; and two are,
    # where the momentum itself is read in it.
    narrow = rule.map.input_dtype(torch.float32, torch.device("cpu")) == torch.bfloat16
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=8e-2 if narrow else 5e-2)


@pytest.mark.parametrize("name", [name for name in NARROW if name not in GROWING])
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**40])
def test_a_power_of_two_changes_no_bit_of_bfloat16_input(name, factor):
    rule, results = NARROW[name], []
    for scale in (1.0, factor):
        p = torch.nn.Parameter(random(12, 4, dtype=torch.float32))
        optimizer = SpectralOptimizer([p], lr=1.0, rule=rule)
        for step in range(3):
            p.grad = random(12, 4, seed=step, dtype=torch.float32) * scale
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize(("rule", "shape"), in_turn(NARROW, [(12, 4), (4, 12), (600, 600)], 1))
def test_a_matrix_may_be_handed_over_in_what_is_read(rule, shape):
    """Executors do: they choose time and place, never values."""
    M = random(*shape, dtype=torch.float32)
    kept = [{n: torch.zeros(s) for n, s in rule.buffer_shapes(M.shape).items()} for _ in range(2)]
    narrow = rule.direction(M.bfloat16(), kept[0])
    assert torch.equal(narrow.float(), rule.direction(M, kept[1]))
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@growing
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_updates_grow_with_the_gradients_by_their_degree(rule, degree, factor):
    results = []
    for scale in (1.0, factor):
        p = torch.nn.Parameter(torch.zeros(12, 4))
        optimizer = SpectralOptimizer([p], lr=1.0, rule=rule)
        for step in range(3):
            p.grad = random(12, 4, seed=step, dtype=torch.float32) * scale
            optimizer.step()
        results.append(p.detach() / scale**degree)
    # Sizes up to 30; the scaled gradients differ by a rounding of float32.
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)


@rules
def test_gradients_are_not_written_and_lr_zero_moves_nothing(rule):
    p = torch.nn.Parameter(random(12, 4))
    before = p.detach().clone()
    p.grad = random(12, 4, seed=1)
    SpectralOptimizer([p], lr=0.0, weight_decay=0.1, rule=rule).step()
    assert torch.equal(p.grad, random(12, 4, seed=1))
    assert torch.equal(p.detach(), before)


@rules
def test_resuming_from_a_saved_state_is_exact(rule):
    parameters = [random(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate(SHAPES)]
    straight, _ = train(rule, parameters, steps=4)
    half, optimizer = train(rule, parameters, steps=2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = SpectralOptimizer(
        [torch.nn.Parameter(p.clone()) for p in half],
        lr=0.5,
        rule=rule,
        view=polarlight.view.Whole(),
    )
    resumed.load_state_dict(torch.load(file, weights_only=True))
    end, _ = train(rule, [], steps=2, start=2, optimizer=resumed)
    for ours, theirs in zip(end, straight, strict=True):
        assert torch.equal(ours, theirs)


@rules
def test_copies_and_pickles_take_equal_steps(rule):
    _, optimizer = train(rule, [random(12, 4)], steps=2)
    twin = copy.deepcopy(optimizer)
    ours, _ = train(rule, [], steps=2, start=2, optimizer=optimizer)
    theirs, _ = train(rule, [], steps=2, start=2, optimizer=twin)
    assert torch.equal(ours[0], theirs[0])


@shipped
def test_half_precision_parameters_keep_their_dtype(rule):
    p = torch.nn.Parameter(random(12, 4, dtype=torch.bfloat16))
    before = p.detach().clone()
    optimizer = SpectralOptimizer([p], lr=0.1, rule=rule)
    for step in range(2):  # the first one may only prepare
        p.grad = random(12, 4, seed=step, dtype=torch.bfloat16)
        optimizer.step()
    assert p.dtype == torch.bfloat16
    assert p.isfinite().all()
    assert not torch.equal(p.detach(), before)


@shipped
def test_every_rule_lowers_a_quadratic_loss(rule):
    """Least squares with a tall matrix: the loss falls to a tenth within 180 steps."""
    target, x = random(12, 4, dtype=torch.float32), random(32, 4, seed=1, dtype=torch.float32)
    p = torch.nn.Parameter(torch.zeros(12, 4))
    optimizer = SpectralOptimizer([p], lr=0.1, rule=rule)
    losses = []
    for _ in range(180):
        loss = (x @ (p - target).mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.1 * losses[0]:  # that it stays there is asked of long runs
            break
    assert losses[-1] < 0.1 * losses[0]


@rules
def test_a_rule_is_a_value(rule):
    assert rule == copy.deepcopy(rule)
    assert hash(rule) == hash(copy.deepcopy(rule))
    assert "0x" not in repr(rule)
    assert rule.name in repr(rule)


@rules
def test_state_is_complete_before_the_first_step(rule):
    p = torch.nn.Parameter(random(12, 4))
    optimizer = SpectralOptimizer([p], rule=rule)
    assert not optimizer.state
    fresh = set(optimizer.state_dict()["state"][0])
    p.grad = random(12, 4)
    optimizer.step()
    assert set(optimizer.state_dict()["state"][0]) == fresh
    assert ("momentum_buffer" in fresh) == rule.momentum.buffered
