"""Mixed precision: loss scaling, half-precision parameters, extreme gradients, clipping."""

import math
import warnings

import pytest
import torch
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.diagnostics.clipping import ClippingCheck, ClippingWarning
from polarlight.rules import AdamWRule
from tests.matrices import gaussian

CLASSES = [polarlight.Muon, polarlight.NorMuon, polarlight.Aurora, polarlight.SOAP]
classes = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


class Model(nn.Module):
    """Matrices for the rule, vectors and a head for AdamW."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.up_proj = nn.Linear(8, 16)
        self.down_proj = nn.Linear(16, 8)
        self.lm_head = nn.Linear(8, 5)
        self.to(dtype)

    def forward(self, x):
        return self.lm_head(x + self.down_proj(self.up_proj(x).relu()))


INPUTS = gaussian(64, 8, dtype=torch.float32)
TARGETS = (INPUTS @ gaussian(8, 5, seed=1, dtype=torch.float32)).argmax(dim=1)


def loss_of(model, dtype=torch.float32):
    return nn.functional.cross_entropy(model(INPUTS.to(dtype)).float(), TARGETS)


def scaled_training(cls, dtype, steps, *, poisoned=(), clip=None, scale=2.0**8):
    """A run with autocast and GradScaler; gradients of the poisoned steps overflow."""
    model = Model()
    optimizer = cls(model, lr=0.02, aux_lr=0.02, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    scales, losses = [], []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        if step in poisoned:
            model.up_proj.weight.grad[0, 0] = math.inf
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        losses.append(loss.item())
    return model, optimizer, scales, losses


@classes
@half
def test_loss_scaling_trains_and_leaves_overflowing_steps_out(cls, dtype):
    model, optimizer, scales, losses = scaled_training(cls, dtype, 25, poisoned=(3, 7), clip=1.0)
    assert losses[-1] < 0.8 * losses[0]
    assert scales[2:4] == [2.0**8, 2.0**7]
    assert scales[-1] == 2.0**6
    assert all(p.isfinite().all() for p in model.parameters())
    assert optimizer.skipped() == {}  # the scaler left out the whole step


@classes
def test_a_step_under_the_scaler_is_the_step_without_it(cls):
    """A power of two scales without rounding, unless something underflows."""
    scaled, *_ = scaled_training(cls, torch.bfloat16, 4)
    plain, *_ = scaled_training(cls, torch.bfloat16, 4, scale=1.0)
    for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_saved_scaler_and_optimizer_resume_bit_for_bit():
    straight, *_ = scaled_training(polarlight.Aurora, torch.bfloat16, 6)
    model, optimizer, *_ = scaled_training(polarlight.Aurora, torch.bfloat16, 3)
    twin = Model()
    twin.load_state_dict(model.state_dict())
    resumed = polarlight.Aurora(twin, aux_lr=0.5)  # numbers come from the state
    resumed.load_state_dict(optimizer.state_dict())
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(torch.amp.GradScaler("cpu", init_scale=2.0**8).state_dict())
    for _ in range(3):
        resumed.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(twin)
        scaler.scale(loss).backward()
        scaler.step(resumed)
        scaler.update()
    for ours, theirs in zip(twin.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@classes
@half
def test_half_precision_parameters_train_and_keep_statistics_wide(cls, dtype):
    model = Model(dtype)
    optimizer = cls(model, lr=0.02, aux_lr=0.02, weight_decay=0.1)
    first, is_bfloat16 = loss_of(model, dtype).item(), dtype == torch.bfloat16
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(model, dtype).backward()
        optimizer.step()
    assert loss_of(model, dtype).item() < 0.8 * first
    assert {p.dtype for p in model.parameters()} == {dtype}
    for p, state in optimizer.state.items():
        assert all(x.isfinite().all() for x in state.values()), p.shape
        # AdamW's moments are bfloat16 beside bfloat16, as in torch, and never float16.
        narrow = {"momentum_buffer"} | ({"exp_avg", "exp_avg_sq"} if is_bfloat16 else set())
        assert {name for name, x in state.items() if x.dtype != torch.float32} <= narrow


@classes
@half
def test_float32_masters_train_half_precision_copies(cls, dtype):
    """The optimizer holds float32 weights; gradients come from a copy in half precision."""
    model, masters = Model(dtype), Model()
    optimizer = cls(masters, lr=0.02, aux_lr=0.02, weight_decay=0.1)
    first = loss_of(model, dtype).item()
    for _ in range(30):
        model.zero_grad()
        loss_of(model, dtype).backward()
        for master, p in zip(masters.parameters(), model.parameters(), strict=True):
            master.grad = p.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters.parameters(), model.parameters(), strict=True):
                p.copy_(master)
    assert loss_of(model, dtype).item() < 0.8 * first
    assert {p.dtype for p in masters.parameters()} == {torch.float32}


def test_without_masters_small_updates_are_lost_to_rounding():
    """Not a promise but a fact to know: bfloat16 keeps 8 bits, and 1 - 1e-3 is 1."""
    lost, kept = (nn.Parameter(torch.ones(4, 4, dtype=d)) for d in (torch.bfloat16, torch.float32))
    for p in (lost, kept):
        optimizer = SpectralOptimizer([p], rule=polarlight.rules.muon(), lr=1e-4)
        for _ in range(10):
            p.grad = torch.eye(4, dtype=p.dtype)
            optimizer.step()
    assert torch.equal(lost.detach(), torch.ones_like(lost))
    assert not torch.equal(kept.detach(), torch.ones_like(kept))


@classes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1e-30, 1e30], ids=str)
def test_extreme_gradients_move_matrices_by_the_same_step(cls, dtype, size):
    results = []
    for factor in (1.0, size):
        p = nn.Parameter(gaussian(6, 4, dtype=dtype))
        optimizer = cls([p], lr=0.5)
        for seed in range(3):
            p.grad = (gaussian(6, 4, seed=seed) * factor).to(dtype)
            optimizer.step()
        assert all(x.isfinite().all() for x in optimizer.state[p].values())
        results.append(p.detach().float())
    # bfloat16 iterations and parameters
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0.05)


def test_extreme_gradients_and_adamw():
    """Vectors: 1e30 is left out, for its square overflows; 1e-30 disappears below eps."""
    for size, expected in ((1e30, {"param_groups[0]['params'][0]": 2}), (1e-30, {})):
        p = nn.Parameter(torch.ones(4))
        optimizer = SpectralOptimizer([p], rule=AdamWRule(), lr=0.1)
        for _ in range(2):
            p.grad = torch.full_like(p, size)
            optimizer.step()
        assert optimizer.skipped() == expected
        torch.testing.assert_close(p.detach(), torch.ones(4))
        p.grad = torch.ones(4)
        optimizer.step()
        assert (p < 0.99).all()


@pytest.mark.parametrize("size", [6e4, 1e3, 1e-3, 3e-4, 1e-5, 6e-8], ids=str)
def test_adamw_in_float16_squares_gradients_in_float32(size):
    """Squares in float16 are infinite or zero: weights stand still or move too far."""
    steps = []
    for dtype, factor in ((torch.float16, size), (torch.float32, 1.0)):
        p = nn.Parameter(torch.zeros(4, dtype=dtype))
        optimizer = SpectralOptimizer([p], rule=AdamWRule(), lr=0.01)
        for seed in range(6):
            p.grad = torch.full((4,), factor * (1 + seed % 2) / 2, dtype=dtype)
            optimizer.step()
        assert optimizer.skipped() == {}
        assert {x.dtype for x in optimizer.state[p].values()} == {torch.float32}
        steps.append(p.detach().float())
    # float16 weights; the smallest gradients have one bit
    torch.testing.assert_close(steps[0], steps[1], rtol=5e-3 if size > 1e-6 else 0.1, atol=0)


def test_a_float16_parameter_that_is_skipped_keeps_every_bit():
    p = nn.Parameter(gaussian(6, dtype=torch.float16))
    optimizer = SpectralOptimizer([p], rule=AdamWRule(), lr=0.01, weight_decay=0.1)
    p.grad = torch.ones(6, dtype=torch.float16)
    optimizer.step()
    before = [p.detach().clone(), *(x.clone() for x in optimizer.state[p].values())]
    p.grad[2] = math.inf
    optimizer.step()
    after = [p.detach(), *optimizer.state[p].values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def clipped_training(optimizer, model, max_norm, steps=40):
    for step in range(steps):
        optimizer.zero_grad()
        rows = slice(step % 7, None, 3)
        loss = nn.functional.cross_entropy(model(INPUTS[rows]), TARGETS[rows])
        loss.backward()
        if max_norm:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()


def test_clipping_of_rules_free_of_scale_is_explained_once():
    model = Model()
    optimizer = polarlight.Muon(model)
    check = ClippingCheck(optimizer, every=2)
    optimizer.observe(check)
    with pytest.warns(
        ClippingWarning, match=r"was 0\.01 in 8 of 8 samples.*muon \(2 parameters\)"
    ) as w:
        clipped_training(optimizer, model, 0.01)
    assert len(w) == 1
    assert check.clipped_to == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("max_norm", [None, 1e6], ids=["none", "never reached"])
def test_gradients_that_are_not_clipped_are_not_called_so(max_norm):
    model = Model()
    optimizer = polarlight.Muon(model)
    check = ClippingCheck(optimizer, every=1, needed=2)
    optimizer.observe(check)
    with warnings.catch_warnings(action="error"):
        clipped_training(optimizer, model, max_norm)
    assert check.clipped_to is None


def test_clipping_where_it_works_is_no_reason_to_warn():
    p = nn.Parameter(gaussian(6, 4, dtype=torch.float32))
    for optimizer in (polarlight.PolarGrad([p]), SpectralOptimizer([p], rule=AdamWRule())):
        optimizer.observe(ClippingCheck(optimizer, every=1))
        for _ in range(20):
            p.grad = torch.ones_like(p)
            optimizer.step()


def test_clipped_gradients_only_weigh_less_in_the_momentum():
    """The same update for any factor on all gradients; another one if the factor varies."""
    weights = []
    for factors in ((1, 1, 1), (0.25, 0.25, 0.25), (0.25, 1, 0.25)):
        p = nn.Parameter(gaussian(6, 4))
        optimizer = SpectralOptimizer([p], rule=polarlight.rules.muon(), lr=0.1)
        for seed, factor in enumerate(factors):
            p.grad = gaussian(6, 4, seed=seed) * factor
            optimizer.step()
        weights.append(p.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-9)
    assert (weights[0] - weights[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [({"every": 0}, "every must be >= 1, got 0"), ({"needed": 9}, "needed must lie in .*, got 9")],
)
def test_impossible_checks_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ClippingCheck(polarlight.Muon([nn.Parameter(torch.ones(2, 2))]), **options)
