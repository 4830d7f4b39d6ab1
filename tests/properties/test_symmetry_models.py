"""Models related by a symmetry of their architecture stay related when they train.

Two networks that compute the same function, one with its neurons, heads or experts in another
order, or with another basis of its residual stream, are trained side by side under
`symmetric_stack`. After several steps the second is still the first one transformed: no choice of
coordinates has leaked into what was learned. AdamW does not have this property.
"""

from dataclasses import replace

import pytest
import torch

import polarlight
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import Architecture, ModelConfig

DENSE = ModelConfig(vocab_size=23, width=16, layers=2, heads=4, kv_heads=2, context=12)
MIXTURE = replace(DENSE, architecture=Architecture.MOE, experts=4, experts_per_token=2)
STEPS = 4
CLOSE = 1e-8
"""Largest difference of any weight, in float64."""


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """The model's own casts to float32 keep float64."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)


def generator():
    return torch.Generator().manual_seed(5)


def order(k):
    return torch.randperm(k, generator=generator())


def permuted_neurons(weights, config):
    """Rows of gate and up, columns of down, in one other order."""
    for name in weights:
        if "gate_proj" in name or "up_proj" in name:
            weights[name] = weights[name][order(len(weights[name]))]
        if "down_proj" in name:
            weights[name] = weights[name][:, order(weights[name].shape[1])]
    return weights


def permuted_heads(weights, config):
    """Key heads, with the query heads that share them, in one other order."""
    group = config.heads // config.key_heads
    keys = order(config.key_heads).flip(0)
    queries = (keys[:, None] * group + torch.arange(group)).flatten()
    for name, W in weights.items():
        for part, heads in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            if part in name:
                weights[name] = W.unflatten(0, (len(heads), -1))[heads].flatten(0, 1)
        if "o_proj" in name:
            weights[name] = W.unflatten(1, (len(queries), -1))[:, queries].flatten(1, 2)
    return weights


def permuted_experts(weights, config):
    """Experts and their rows of the router in one other order."""
    for name, W in weights.items():
        if "experts" in name or "mlp.gate.weight" in name:
            weights[name] = W[order(config.experts)]
    return weights


def rotated_stream(weights, config):
    """Another orthonormal basis of the residual stream."""
    square = torch.randn(config.width, config.width, generator=generator(), dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    for name, W in weights.items():
        if W.ndim >= 2:
            writes = "o_proj" in name or "down_proj" in name
            weights[name] = Q @ W if writes else W @ Q.mT
    return weights


def shifted_head(weights, config):
    """One vector added to all rows of the head: the same for every token, so softmax ignores it."""
    shift = torch.randn(config.width, generator=generator(), dtype=torch.float64)
    weights["lm_head.weight"] = weights["lm_head.weight"] + shift
    return weights


def trained(config, optimizer, transform=None):
    """Final weights of a model whose initial ones were transformed, and its losses."""
    model = GPT(config, seed=1).double()
    if transform is not None:
        model.load_state_dict(transform(model.state_dict(), config))
    for name, p in model.named_parameters():  # a gain per coordinate would single out coordinates
        p.requires_grad_(not (name.endswith("layernorm.weight") or name == "model.norm.weight"))
    stepper = optimizer(model)
    losses = []
    for t in range(STEPS):
        draw = torch.Generator().manual_seed(t)
        tokens = torch.randint(config.vocab_size, (4, config.context + 1), generator=draw)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    return {name: W.clone() for name, W in model.state_dict().items()}, losses


def symmetric(**options):
    def make(model):
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        assert trainable
        return polarlight.SpectralOptimizer(
            polarlight.recipes.symmetric_stack(model, lr=0.02, **options)
        )

    return make


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def distance(config, optimizer, transform):
    """Of the transformed model, trained, from the trained model, transformed."""
    first, first_losses = trained(config, optimizer)
    second, second_losses = trained(config, optimizer, transform)
    assert first_losses[-1] != first_losses[0]
    expected = transform(dict(first), config)
    weights = max((second[name] - W).abs().max().item() for name, W in expected.items())
    losses = max(abs(a - b) for a, b in zip(first_losses, second_losses, strict=True))
    return max(weights, losses)


DENSE_CASES = [permuted_neurons, permuted_heads, rotated_stream, shifted_head]
MIXTURE_CASES = [permuted_experts, permuted_heads, rotated_stream, shifted_head]
CASES = [(DENSE, t) for t in DENSE_CASES] + [(MIXTURE, t) for t in MIXTURE_CASES]


@pytest.mark.parametrize(
    ("config", "transform"), CASES, ids=[f"{c.architecture}-{t.__name__}" for c, t in CASES]
)
def test_related_models_stay_related(config, transform):
    assert distance(config, symmetric(), transform) < CLOSE


@pytest.mark.parametrize("options", [{"mlp": "muon"}, {"mlp": "aurora"}, {"router": "left_polar"}])
def test_so_they_do_under_every_option_of_the_stack(options):
    config = MIXTURE if "router" in options else DENSE
    for transform in (permuted_experts,) if config is MIXTURE else (permuted_neurons,):
        assert distance(config, symmetric(**options), transform) < CLOSE
    assert distance(config, symmetric(**options), rotated_stream) < CLOSE


@pytest.mark.parametrize("transform", [rotated_stream, shifted_head])
def test_adamw_does_not_keep_them_related(transform):
    assert distance(DENSE, adamw, transform) > 1e-3


@pytest.mark.parametrize("transform", [permuted_neurons, permuted_heads])
def test_adamw_keeps_what_only_reorders(transform):
    assert distance(DENSE, adamw, transform) < CLOSE
