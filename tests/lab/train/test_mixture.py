"""The mixture of experts: a Qwen3Moe weight for weight, trained, resumed and reported."""

from dataclasses import replace

import pytest
import torch

from polarlight.lab.train.loop import Run
from polarlight.lab.train.model import GPT, Architecture, ModelConfig, qwen3_config
from polarlight.lab.train.recipes import spec_of
from polarlight.lab.train.report import write_report
from polarlight.lab.train.router_load import RouterLoad, describe, load_balancing_loss
from tests.lab.train.tiny import PLAN, comparison, corpus, train

MOE = replace(PLAN, architecture=Architecture.MOE, experts=4)
SIZES = {"vocab_size": 101, "width": 32, "layers": 2, "heads": 2, "context": 32}


def model_of(**changes):
    return GPT(ModelConfig(**SIZES, architecture=Architecture.MOE, **changes), seed=1)


def some_tokens(rows=3, length=32):
    return torch.randint(101, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_logits_equal_those_of_qwen3_moe(k):
    transformers = pytest.importorskip("transformers")
    ours = model_of(experts=6, experts_per_token=k)
    config = transformers.Qwen3MoeConfig(**qwen3_config(ours.config))
    theirs = transformers.Qwen3MoeForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        expected = theirs(some_tokens()).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(some_tokens()), expected, atol=1e-5, rtol=0)


def test_the_balancing_loss_of_one_layer_equals_that_of_transformers():
    qwen = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    counts = scores.topk(2).indices.flatten().bincount(minlength=6)
    ours = load_balancing_loss(RouterLoad(counts, scores.softmax(-1).mean(0)), 2)
    theirs = qwen.load_balancing_loss_func((scores,), num_experts=6, top_k=2)
    torch.testing.assert_close(ours, theirs)


def test_the_balancing_loss_is_k_where_experts_are_used_equally():
    even = RouterLoad(torch.full((2, 8), 10), torch.full((2, 8), 1 / 8))
    assert load_balancing_loss(even, 2).item() == pytest.approx(2)


def test_every_token_is_sent_to_k_experts():
    _, load = model_of(experts=6, experts_per_token=2).loss_and_load(some_tokens(), some_tokens())
    assert load.counts.sum(dim=-1).tolist() == [2 * 3 * 32] * 2


@pytest.mark.parametrize("k", [1, 2])
def test_the_router_has_a_gradient(k):
    model = model_of(experts=4, experts_per_token=k)
    model(some_tokens(), some_tokens()).backward()
    routers = [p for name, p in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2
    assert all(p.grad.norm() > 0 for p in routers)


def test_experts_that_no_token_chose_have_a_zero_gradient():
    model = model_of(experts=16, experts_per_token=1)
    tokens = some_tokens(1, 3)
    loss, load = model.loss_and_load(tokens, tokens)
    loss.backward()
    idle = load.counts[0] == 0
    assert idle.sum() >= 13
    for p in (model.model.layers[0].mlp.experts.gate_up_proj,):
        assert p.grad[idle].abs().max() == 0
        assert (p.grad[~idle].flatten(1).norm(dim=1) > 0).all()


def test_the_load_is_described():
    found = describe(torch.tensor([6, 3, 3, 0]))
    assert found["shares"] == pytest.approx([0.5, 0.25, 0.25, 0])
    assert found["dead"] == 0.25
    assert found["variation"] == pytest.approx(0.5**0.5)
    assert describe(torch.full((8,), 5))["variation"] == 0


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    def losses(folder, cut=None):
        folder.mkdir()
        run = Run(spec_of("symmetric", seed=0), MOE, corpus(folder), folder / "run")
        if cut is not None:
            for record in run.records():
                if record["kind"] == "step" and record["step"] >= cut:
                    break
            run.save()
            run = Run(spec_of("symmetric", seed=0), MOE, corpus(folder), folder / "run")
        return [r["loss"] for r in run.records() if r["kind"] == "validation"][-1]

    assert losses(tmp_path / "a") == losses(tmp_path / "b", cut=2)


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_reports_its_experts_and_a_dense_one_has_none(tmp_path):
    for name, plan in {"moe": MOE, "dense": PLAN}.items():
        runs = comparison(tmp_path / name, plan=plan, optimizers=("adamw", "symmetric"))
        train(runs)
        folder = tmp_path / name / "report"
        page = write_report(runs.histories(), runs.about("polarlight compare"), folder)
        assert ("Dead experts" in page.read_text()) == (name == "moe")
        assert (folder / "load_variation.png").exists() == (name == "moe")
