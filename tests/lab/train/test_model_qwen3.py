"""The default form is a Hugging Face Qwen3: equal names, equal shapes, equal logits."""

import pytest
import torch

from polarlight.lab.train.model import GPT, ModelConfig, qwen3_config

transformers = pytest.importorskip("transformers")

FORMS = {
    "plain": {},
    "tied": {"tied": True},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1, "tied": True},
    "wide heads": {"head_dim": 24, "kv_heads": 3, "rope_theta": 1e6},
    "deviating": {"norm_eps": 1e-2, "expansion": 2.7, "rope_theta": 100.0},
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def pair(request):
    """A GPT whose norms are not all one, and the Qwen3 that has taken its weights."""
    config = ModelConfig(vocab_size=101, width=96, heads=6, context=64, **request.param)
    ours = GPT(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**qwen3_config(config)))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs.eval()


def test_logits_equal_those_of_qwen3(pair):
    ours, theirs = pair
    tokens = torch.randint(101, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.1  # a comparison of near zeros would say nothing
        # float32 roundings of two orders of summation over 3 blocks of width 96.
        torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)


def test_parameters_have_the_names_shapes_and_order_of_qwen3(pair):
    ours, theirs = pair
    shapes = [(name, p.shape) for name, p in ours.named_parameters()]
    assert sorted(shapes) == sorted((name, p.shape) for name, p in theirs.named_parameters())
    assert ours.parameter_count() == theirs.num_parameters()


def test_weights_come_back_from_qwen3(pair):
    ours, theirs = pair
    again = GPT(ours.config, seed=9)
    again.load_state_dict(theirs.state_dict(), strict=True)
    for a, b in zip(again.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_equals_that_of_qwen3_which_shifts_by_itself(pair):
    ours, theirs = pair
    tokens = torch.randint(101, (3, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens, labels=tokens).loss
        torch.testing.assert_close(ours(tokens[:, :-1], tokens[:, 1:]), expected)
