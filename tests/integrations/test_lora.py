"""LoRA: factors as one product or as two matrices, the rest by AdamW, frozen ones left alone."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight.integrations.lora import lora_groups, lora_product_groups
from polarlight.rules.lora_product import LoraProduct
from tests.integrations.running import assert_equal_weights, example


class Adapted(nn.Module):
    """A layer in peft's names."""

    def __init__(self, out=12, width=8, r=2):
        super().__init__()
        self.base_layer = nn.Linear(width, out, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(width, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, out, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"up_proj": Adapted(), "score": nn.Linear(12, 2)})


def test_factors_get_the_rule_others_adamw_and_frozen_ones_nothing():
    net = model()
    optimizer = polarlight.SpectralOptimizer(
        lora_groups(net, lr=0.01, b_ratio=4, aux_lr=1e-3, weight_decay=0.1)
    )
    found = {g["role"]: g for g in optimizer.param_groups}
    assert {role: g["lr"] for role, g in found.items()} == {
        "lora_a": 0.01,
        "lora_b": 0.04,
        "other": 1e-3,
    }
    assert found["lora_b"]["param_names"] == ["up_proj.lora_B.default.weight"]
    assert found["other"]["weight_decay"] == 0
    frozen = net["up_proj"].base_layer.weight.clone()
    net["score"](net["up_proj"](torch.randn(4, 8))).square().sum().backward()
    optimizer.step()
    assert torch.equal(net["up_proj"].base_layer.weight, frozen)
    table = str(polarlight.explain(optimizer))
    assert "base_layer" not in table
    assert "lora_b of an adapted layer" in table


def test_the_first_step_moves_b_and_not_a():
    """B is zero at first, so that A's gradient is; zero in, zero out."""
    net = model()
    A, B = (net["up_proj"].get_submodule(f"{f}.default").weight for f in ("lora_A", "lora_B"))
    before = A.detach().clone()
    optimizer = polarlight.SpectralOptimizer(lora_groups(net, lr=0.01))
    net["score"](net["up_proj"](torch.randn(4, 8))).square().sum().backward()
    optimizer.step()
    assert torch.equal(A, before)
    # 0.01 * 0.2 as AdamW's; Jordan's iteration gives 0.68 to 1.14 of the exact factor
    assert 0.6 * 0.002 < B.detach().square().mean().sqrt() < 1.2 * 0.002


def test_pairs_are_groups_and_lr_is_that_of_the_weight():
    net = model()
    net["up_proj"].scaling = {"default": 4.0}
    optimizer = polarlight.SpectralOptimizer(lora_product_groups(net, lr=0.1, weight_decay=0.1))
    pair, other = optimizer.param_groups
    assert pair["param_names"] == [f"up_proj.lora_{f}.default.weight" for f in "AB"]
    assert (pair["lr"], pair["weight_decay"], other["lr"]) == (0.025, 0.1, 0.005)
    table = str(polarlight.explain(optimizer))
    assert "lora_pair of an adapted layer" in table
    assert "base_layer" not in table


def test_the_adapters_scaling_does_not_change_the_weights_step():
    """The same step of W in the first step, where only B moves: up to rounding in float32."""
    moved = []
    for scaling in (1.0, 8.0):
        net = model()
        net["up_proj"].scaling = {"default": scaling}
        optimizer = polarlight.SpectralOptimizer(lora_product_groups(net, lr=0.1))
        net["score"](net["up_proj"](torch.ones(4, 8))).square().sum().backward()
        optimizer.step()
        A, B = (net["up_proj"].get_submodule(f"{f}.default").weight for f in ("lora_A", "lora_B"))
        moved.append((scaling * B @ A).detach())
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-5)


def half_trainable():
    net = model()
    net["up_proj"].get_submodule("lora_A.default").requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lora_groups(nn.Linear(2, 2), lr=0.1), "call peft.get_peft_model first"),
        (lambda: lora_groups(model(), lr=0.1, b_ratio=0), "b_ratio must be > 0, got 0"),
        (lambda: lora_product_groups(nn.Linear(2, 2), lr=0.1), "call peft.get_peft_model first"),
        (lambda: lora_product_groups(half_trainable(), lr=0.1), "only one factor of a pair"),
    ],
)
def test_models_without_trainable_pairs_raise(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # transformers' and peft's own
def test_the_example_adapts_a_frozen_llama(tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    module = example("lora")
    fresh = module.base()
    net, losses = module.main()
    assert losses[-1] < losses[0] - 0.3  # head and embeddings stay random
    trained = dict(net.named_parameters())
    for name, p in fresh.named_parameters():
        kept = [n for n in trained if n.replace("base_layer.", "").endswith(name)]
        assert torch.equal(trained[kept[0]], p), name


@pytest.fixture
def trainer_example():
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    return example("lora_trainer")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # transformers', peft's and accelerate's own
def test_a_trainer_adapts_and_resumes_bit_for_bit(trainer_example, tmp_path):
    whole = trainer_example.main(tmp_path / "whole")
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3  # head and embeddings stay random
    rules = [group["rule"] for group in whole.optimizer.param_groups]
    assert len(rules) == 14  # two layers of seven
    assert all(isinstance(rule, LoraProduct) for rule in rules)
    trained = dict(whole.model.named_parameters())
    for name, p in trainer_example.base().named_parameters():
        kept = [n for n in trained if n.replace("base_layer.", "").endswith(name)]
        assert torch.equal(trained[kept[0]], p), name
    (tmp_path / "half").mkdir()
    (tmp_path / "whole" / "checkpoint-20").rename(tmp_path / "half" / "checkpoint-20")
    resumed = trainer_example.main(tmp_path / "half", resume=True)
    assert_equal_weights(whole.model, resumed.model)
