"""Learning rates across libraries: what is equal is how far an entry moves."""

from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polarlight
from polarlight.migration import (
    CONVENTIONS,
    UpdateSize,
    convention_of,
    lr_for_rms,
    momentum_factor,
    translate_lr,
    update_rms,
)

POLAR = sorted(name for name, c in CONVENTIONS.items() if c.size is UpdateSize.POLAR)
SHAPES = [(96, 24), (24, 96), (48, 48), (8, 64)]
names = st.sampled_from(POLAR)
sizes = st.tuples(st.integers(1, 10000), st.integers(1, 10000))
rates = st.floats(1e-8, 10)


@given(names, names, sizes, rates)
def test_translation_back_returns_the_first_rate(source, target, shape, lr):
    there = translate_lr(lr, source=source, target=target, shape=shape)
    back = translate_lr(there, source=target, target=source, shape=shape)
    assert back == pytest.approx(lr)


@given(names, names, sizes, rates)
def test_translation_keeps_the_update_rms(source, target, shape, lr):
    there = translate_lr(lr, source=source, target=target, shape=shape)
    assert update_rms(there, target, shape) == pytest.approx(update_rms(lr, source, shape))
    assert lr_for_rms(update_rms(lr, source, shape), source, shape) == pytest.approx(lr)


@given(names, names, names, sizes)
def test_translation_by_a_third_convention_changes_nothing(a, b, c, shape):
    direct = translate_lr(1.0, source=a, target=c, shape=shape)
    detour = translate_lr(
        translate_lr(1.0, source=a, target=b, shape=shape), source=b, target=c, shape=shape
    )
    assert detour == pytest.approx(direct)


@pytest.mark.parametrize(
    ("name", "shape", "rms"),
    [  # written out by hand from each library's formula, lr = 1
        ("torch", (3072, 768), 2 / sqrt(3072)),
        ("torch", (768, 3072), 1 / sqrt(3072)),
        ("keller", (3072, 768), 2 / sqrt(3072)),
        ("moonlight", (3072, 768), 0.2),
        ("moonlight", (768, 3072), 0.2),
        ("torch-spectral-unclamped", (768, 3072), 0.5 / sqrt(3072)),
        ("torch-spectral-unclamped", (3072, 768), 2 / sqrt(3072)),
        ("dion-spectral", (768, 3072), 0.5 / sqrt(3072)),
        ("dion-none", (768, 3072), 1 / sqrt(3072)),
        ("emerging-spectral", (768, 768), 1.0),
        ("emerging-spectral-0.2", (768, 768), 0.2),
        ("optax-consistent-rms", (5, 9), 0.2),
        ("normuon-paper", (9, 5), 0.2),
    ],
)
def test_scales_follow_the_published_formulas(name, shape, rms):
    assert update_rms(1.0, name, shape) == pytest.approx(rms)


def moved(optimizer, weight, gradient):
    """Root mean square change of an entry in one step."""
    before = weight.detach().clone()
    weight.grad = gradient
    optimizer.step()
    return (weight.detach() - before).square().mean().sqrt().item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "option"), [("torch", "original"), ("torch-match-rms", "match_rms_adamw")]
)
def test_torchs_update_has_the_stated_rms(shape, name, option):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = torch.optim.Muon([weight], lr=0.01, weight_decay=0.0, adjust_lr_fn=option)
    said = update_rms(0.01, name, shape)
    # Jordan's five steps return 0.68 to 1.14 where the exact factor has 1.
    assert 0.75 * said < moved(optimizer, weight, gradient) < 1.14 * said


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", ["polarlight", "polarlight-rms", "polarlight-rms-to-rms"])
@pytest.mark.parametrize("option", ["original", "match_rms_adamw"])
def test_after_translation_we_move_as_far_as_torch(shape, target, option):
    """The real optimizers, one real step each, on the same gradient."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    theirs, ours = torch.nn.Parameter(torch.zeros(shape)), torch.nn.Parameter(torch.zeros(shape))
    source = {"original": "torch", "match_rms_adamw": "torch-match-rms"}[option]
    lr = translate_lr(0.01, source=source, target=target, shape=shape)
    torch_muon = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.0, adjust_lr_fn=option)
    jordan = polarlight.linalg.NewtonSchulz(polarlight.linalg.schedules.JORDAN)
    muon = polarlight.Muon([ours], lr=lr, polar=jordan, scale=convention_of(target).scale)
    expected = moved(torch_muon, theirs, gradient.clone())
    # The same iteration; torch's is in bfloat16, with 8 bits of mantissa.
    assert moved(muon, ours, gradient.clone()) == pytest.approx(expected, rel=0.02)


def test_the_call_that_is_recommended_means_the_same_learning_rate():
    scope = vars(polarlight) | vars(polarlight.stages)
    for name in POLAR:
        convention = convention_of(name)
        weight = torch.nn.Parameter(torch.zeros(12, 6))
        method = eval(convention.here.replace("(", "([weight], ", 1), scope, {"weight": weight})
        assert method.param_groups[0]["rule"].scale == convention.scale, name


def test_momentum_matters_where_magnitude_survives():
    args = {"shape": (4, 4), "beta": 0.9}
    assert translate_lr(1.0, source="sgd-ema", target="sgd", **args) == pytest.approx(0.1)
    assert translate_lr(1.0, source="polargrad-heavy-ball", target="polargrad", **args) == (
        pytest.approx(10.0)
    )
    assert translate_lr(1.0, source="moonlight", target="torch-match-rms", **args) == 1.0


def test_sgd_in_both_conventions_takes_equal_steps():
    """torch's SGD is a heavy ball; an average of gradients needs 1 / (1 - beta) times its lr."""
    weight = torch.nn.Parameter(torch.zeros(3))
    sgd = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
    lr = translate_lr(0.01, source="sgd", target="sgd-ema", shape=(3, 1), beta=0.9)
    average, position = torch.zeros(3), torch.zeros(3)
    for seed in range(5):
        weight.grad = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        average.lerp_(weight.grad, 0.1)
        position -= lr * average
        sgd.step()
    torch.testing.assert_close(weight.detach(), position)


def test_buffers_change_unit():
    heavy, average = polarlight.stages.HeavyBall(), polarlight.stages.EMA()
    assert momentum_factor(heavy, average, 0.95) == pytest.approx(0.05)
    assert momentum_factor(average, heavy, 0.95) == pytest.approx(20)
    assert momentum_factor(heavy, heavy, 0.95) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: convention_of("moonlihgt"), "Did you mean 'moonlight'"),
        (lambda: update_rms(-1.0, "torch", (2, 2)), "lr must be >= 0, got -1"),
        (lambda: update_rms(1.0, "torch", (0, 2)), r"both >= 1, got \(0, 2\)"),
        (lambda: update_rms(1.0, "polargrad", (2, 2)), "as large as the gradients"),
        (
            lambda: translate_lr(1.0, source="polargrad", target="torch", shape=(2, 2)),
            "nuclear norm",
        ),
        (
            lambda: momentum_factor(polarlight.stages.EMA(), polarlight.stages.EMA(), 1.0),
            r"\[0, 1\), got 1",
        ),
    ],
)
def test_invalid_arguments_raise_with_their_value(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (8, 16, 5, 5), (64, 4, 1, 1)], ids=str)
def test_unscaled_is_what_keller_takes_for_a_convolution(shape):
    """Keller's scale reads the last two dimensions of the kernel, the window."""
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(shape))
    polar = polarlight.linalg.ExactPolar()
    keller = polar(g.flatten(1)).view(shape) * max(1, g.shape[-2] / g.shape[-1]) ** 0.5
    optimizer = polarlight.SpectralOptimizer(
        [weight],
        lr=1.0,
        rule=polarlight.rules.muon(polar=polar, scale=polarlight.stages.Unscaled()),
        view=polarlight.view.Flattened(shape[2:]),
    )
    weight.grad = g
    optimizer.step()
    torch.testing.assert_close(-weight.detach(), keller)
