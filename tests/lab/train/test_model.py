"""The model's shape, loss, initial weights and refusals; logits: `test_model_qwen3.py`."""

import math

import pytest
import torch
from torch import Tensor

from polarlight.lab.train.model import GPT, Mlp, ModelConfig, qwen3_config

SMALL = {"vocab_size": 50, "width": 32, "layers": 2, "heads": 4, "context": 16}


def small(**changes: object) -> ModelConfig:
    return ModelConfig(**(SMALL | changes))


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def weights(model: GPT) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("mlp", Mlp)
def test_a_later_token_does_not_change_earlier_logits(mlp):
    model = GPT(small(mlp=mlp, kv_heads=2))
    tokens = random_tokens(2, 16)
    changed = tokens.clone()
    changed[:, 9] += 1
    before, after = model(tokens), model(changed % 50)
    # Not bit for bit: kernels may sum in another order. 1e-6 is 10 roundings of logits near 1.
    torch.testing.assert_close(after[:, :9], before[:, :9], atol=1e-6, rtol=0)
    assert (after[:, 9:] - before[:, 9:]).abs().amax(dim=-1).min() > 1e-4


def test_logits_depend_on_the_order_of_tokens():
    model = GPT(small())
    tokens = random_tokens(1, 16)
    swapped = tokens[:, [1, 0, *range(2, 16)]]
    assert (model(swapped)[:, -1] - model(tokens)[:, -1]).abs().max() > 1e-4


def test_the_loss_is_the_mean_cross_entropy_of_given_targets_without_a_shift():
    model = GPT(small())
    tokens, targets = random_tokens(3, 16), random_tokens(3, 16, seed=1)
    chosen = model(tokens).log_softmax(-1).gather(-1, targets[..., None])
    torch.testing.assert_close(model(tokens, targets), -chosen.mean())


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_loss_is_near_that_of_guessing(tied):
    model = GPT(ModelConfig(vocab_size=256, tied=tied))
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(256, (2, 4, 64), generator=generator)
    # Logits of standard deviation s cost s^2/2 over log(256): 0.5^2/2 untied, 0.28^2/2 tied.
    assert abs(model(tokens, targets).item() - math.log(256)) < 0.25


def test_equal_seeds_give_equal_weights_and_the_global_generator_does_not_matter():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = GPT(small(), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = GPT(small(), seed=5)
    assert torch.equal(weights(second), weights(first))
    assert torch.equal(weights(second.initialise(5)), weights(first))
    assert not torch.equal(weights(GPT(small(), seed=6)), weights(first))


def test_initial_weights_have_the_documented_sizes():
    model = GPT(ModelConfig(vocab_size=256, width=192, layers=8, expansion=2))
    block = model.model.layers[0]
    sizes = {
        model.model.embed_tokens: 0.02,
        block.self_attn.q_proj: 0.5 / 192**0.5,
        block.self_attn.o_proj: 0.5 / 192**0.5 / 4,
        block.mlp.up_proj: 0.5 / 192**0.5,
        block.mlp.down_proj: 0.5 / 384**0.5 / 4,
        model.lm_head: 0.5 / 192**0.5,
    }
    for module, size in sizes.items():
        # A deviation estimated from n >= 36864 numbers is off by 1 / sqrt(2 n) = 0.4 %.
        assert module.weight.std().item() == pytest.approx(size, rel=0.02)
    assert torch.equal(block.self_attn.q_norm.weight, torch.ones(32))


def test_every_parameter_gets_a_gradient():
    for mlp in Mlp:
        model = GPT(small(mlp=mlp))
        model(random_tokens(2, 16), random_tokens(2, 16, seed=1)).backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_squared_relu_has_two_matrices_and_squares():
    mlp = GPT(small(mlp=Mlp.RELU2)).model.layers[0].mlp
    assert sorted(dict(mlp.named_parameters())) == ["down_proj.weight", "up_proj.weight"]
    x = torch.linspace(-1, 1, 32)
    hidden = (mlp.up_proj.weight @ x).clamp_min(0)
    torch.testing.assert_close(mlp(x), mlp.down_proj.weight @ hidden**2)
    torch.testing.assert_close(mlp(3 * x), 9 * mlp(x))


@pytest.mark.parametrize(
    ("width", "expansion", "neurons"),
    [(192, 4.0, 768), (192, 8 / 3, 512), (32, 2.7, 88), (8, 0.1, 8)],
)
def test_neurons_are_a_multiple_of_eight(width, expansion, neurons):
    config = small(width=width, expansion=expansion)
    assert config.neurons == neurons
    assert GPT(config).model.layers[0].mlp.up_proj.weight.shape == (neurons, width)


def test_a_tied_head_is_the_embedding_and_counts_once():
    tied, untied = GPT(small(tied=True)), GPT(small(tied=False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.parameter_count() - tied.parameter_count() == 50 * 32
    assert untied.parameter_count() == weights(untied).numel()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_on_meta_has_shapes_and_becomes_real_later(tied):
    with torch.device("meta"):
        model = GPT(small(tied=tied))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model(random_tokens(2, 16).to("meta")).shape == (2, 16, 50)
    real = GPT(small(tied=tied), seed=3)
    assert model.parameter_count() == real.parameter_count()
    model.to_empty(device="cpu").initialise(3)
    tokens = random_tokens(2, 16)
    assert torch.equal(model(tokens), real(tokens))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_bfloat16_autocast_stays_near_float32_and_its_loss_is_float32():
    model = GPT(small(kv_heads=2))
    tokens, targets = random_tokens(2, 16), random_tokens(2, 16, seed=1)
    exact = model(tokens, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(tokens).dtype == torch.bfloat16
        loss = model(tokens, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.lm_head.weight.grad.dtype == torch.float32
    assert abs(loss - exact) < 2**-8 * exact  # one rounding of bfloat16, averaged over positions


def test_a_model_in_bfloat16_returns_bfloat16_and_a_float32_loss():
    model = GPT(small()).bfloat16()
    tokens = random_tokens(2, 16)
    assert model(tokens).dtype == torch.bfloat16
    assert model(tokens, tokens).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"width": 30},
            "width must be a multiple of 2 [*] heads = 8 .* got 30; choose width = 24 or",
        ),
        ({"kv_heads": 3}, "kv_heads must divide heads = 4, got 3"),
        ({"head_dim": 7}, "head_dim must be even .* got 7"),
        ({"width": 12}, "width must be a multiple of 2 [*] heads = 8 .* got 12; choose"),
        ({"vocab_size": 0}, "vocab_size must be >= 1, got 0"),
        ({"layers": -1}, "layers must be >= 1, got -1"),
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"kv_heads": 0}, "kv_heads must be >= 1, got 0"),
        ({"context": 0}, "context must be >= 1, got 0"),
        ({"expansion": 0.0}, "expansion must be > 0, got 0.0"),
        ({"rope_theta": -1.0}, "rope_theta must be > 0, got -1.0"),
        ({"norm_eps": math.nan}, "norm_eps must be > 0, got nan"),
        ({"mlp": "gelu"}, "mlp must be one of swiglu, relu2, got gelu"),
    ],
)
def test_an_impossible_shape_raises_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_only_swiglu_is_a_qwen3():
    with pytest.raises(ValueError, match="a Qwen3 has mlp = swiglu, got relu2"):
        qwen3_config(small(mlp=Mlp.RELU2))
