"""torchtitan's own container, configuration and FSDP2 with polarlight's optimizers in them.

`make test-titan` runs these in a virtual environment of their own.
"""

import re
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import polarlight
from polarlight.diagnostics.sharding import full, shard_like
from polarlight.execution.sharded.forecast import forecast
from tests.distributed.processes import run
from tests.integrations.running import EXAMPLES, assert_equal_weights, example

pytest.importorskip("torchtitan", reason="torchtitan is not installed: `make test-titan`")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their imports compile and script
    from torchtitan.components.optimizer import LRSchedulersContainer, ParamGroupConfig
    from torchtitan.config import ConfigManager
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.fsdp import apply_fsdp_to_decoder
    from torchtitan.models.common.attention import ScaledDotProductAttention

    from polarlight.integrations.torchtitan import PolarlightOptimizers
    from polarlight.lab.train import titan_recipe

LR = {"lr": 0.02, "weight_decay": 0.01, "aux_lr": 3e-3}


def toy(dtype=torch.float32):
    """The recipe's model, small, with an attention that runs on a CPU."""
    config = titan_recipe.decoder(titan_recipe.TOY, ScaledDotProductAttention.Config())
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return config.build()
    finally:
        torch.set_default_dtype(before)


def filled(model):
    """The same values however the model lies."""
    model.to_empty(device="cpu")
    with torch.no_grad():
        torch.manual_seed(0)
        model.init_weights(buffer_device=None)
    return model


def container(model, *entries):
    return PolarlightOptimizers.Config(param_groups=list(entries)).build(model_parts=[model])


def entry(pattern, name, **arguments):
    return ParamGroupConfig(pattern=pattern, optimizer_name=name, optimizer_kwargs=arguments)


AURORA = entry(r".*", "Aurora", **LR)


def batch(step, count=6):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(256, (count, 16), generator=generator)
    return tokens, (5 * tokens + 3) % 256


def loss_of(model, tokens, targets, share):
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    logits = model(tokens, positions=positions)
    return share * nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(model, optimizers, steps, rank=0, world=1):
    """Every process has its part of a batch; as torchtitan has it, FSDP adds gradients up."""
    losses, part = [], slice(rank, None, world)
    for step in steps:
        tokens, targets = batch(step)
        loss = loss_of(model, tokens[part], targets[part], 1 / world)
        loss.backward()
        optimizers.step()
        optimizers.zero_grad()
        losses.append(loss.item())
    return losses


def roles(optimizers):
    return {
        name: (type(optimizer).__name__, group.get("role"))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def test_an_entry_with_our_name_is_routed_by_roles():
    found = roles(container(filled(toy()), AURORA))
    assert found["layers.0.feed_forward.w1.weight"] == ("SpectralOptimizer", "gate_up")
    assert found["layers.1.attention.qkv_linear.wk.weight"] == ("SpectralOptimizer", "attention")
    assert found["tok_embeddings.weight"] == ("SpectralOptimizer", "tied")
    assert found["norm.weight"] == ("SpectralOptimizer", "vector")


def test_steps_are_those_of_the_plain_optimizer():
    ours, theirs = filled(toy()), filled(toy())
    losses = train(ours, container(ours, AURORA), range(4))
    assert train(theirs, polarlight.Aurora(theirs, **LR), range(4)) == losses
    assert_equal_weights(ours, theirs)


def test_earlier_entries_come_first_and_torchtitans_own_names_stay():
    model = filled(toy())
    first = entry("tok_embeddings|norm", "AdamW", lr=1e-3)
    second = entry(r"feed_forward", "aurora_mlp", lr=1e-3)
    optimizers = container(model, first, second, entry(r".*", "Muon", lr=0.02))
    found = roles(optimizers)
    assert found["layers.0.ffn_norm.weight"] == ("AdamW", None)
    assert found["layers.0.feed_forward.w2.weight"] == ("SpectralOptimizer", "down")
    assert [len(o.param_groups) for o in optimizers] == [1, 2, 1]
    assert optimizers.optimizers[1].param_groups[0]["rule"].name in ("aurora", "muon")
    losses = train(model, optimizers, range(8))
    assert losses[-1] < losses[0]


def test_names_are_those_of_the_checkpoint_under_wrappers():
    model = filled(toy())
    expected = roles(container(model, AURORA))
    for name, layer in list(model.layers.items()):
        model.layers[name] = checkpoint_wrapper(layer)
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    assert roles(container(model, AURORA)) == expected


def test_errors_list_the_known_names():
    model = filled(toy())
    with pytest.raises(NotImplementedError, match=r"Optimizer Lion not added\. polarlight adds: A"):
        container(model, entry(r".*", "Lion", lr=1.0))
    with pytest.raises(ValueError, match="experts"):
        container(model, entry(r"experts", "Aurora"), AURORA)
    with pytest.raises(ValueError, match="lr must be >= 0"):
        container(model, entry(r".*", "Aurora", lr=-1.0))


def test_state_goes_through_a_flat_dict_with_the_schedule():
    """Also into a container that has not stepped; keys are names, so that parts do not collide."""

    def begin():
        model = filled(toy())
        optimizers = container(model, AURORA)
        config = LRSchedulersContainer.Config(warmup_steps=2, decay_type="linear")
        return model, optimizers, config.build(optimizers=optimizers, training_steps=8)

    def go(model, optimizers, schedule, steps):
        for step in steps:
            train(model, optimizers, [step])
            schedule.step()

    straight, first, second = begin(), begin(), begin()
    go(*straight, range(6))
    go(*first, range(3))
    saved = first[1].state_dict()
    assert saved["state.layers.0.feed_forward.w1.weight.row_scale"].shape == (256, 1)
    assert "aurora" in saved["param_groups.layers.0.feed_forward.w1.weight.rule"]
    assert second[1].state_dict().keys() == saved.keys()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(saved)
    second[2].load_state_dict(first[2].state_dict())
    go(*second, range(3, 6))
    assert_equal_weights(straight[0], second[0])


def test_a_state_of_another_rule_is_refused():
    saved = container(filled(toy()), entry(r".*", "Muon", **LR)).state_dict()
    with pytest.raises(ValueError, match="another rule"):
        container(filled(toy()), entry(r".*", "NorMuon", **LR)).load_state_dict(saved)


def sharded(world):
    """As torchtitan lays decoders out, in float64, with the values of the whole model."""
    model, f64 = toy(torch.float64), torch.float64
    mesh = init_device_mesh("cpu", (world,))
    apply_fsdp_to_decoder(model, mesh, param_dtype=f64, reduce_dtype=f64, pp_enabled=False)
    whole = filled(toy(torch.float64))
    filled(model)
    with torch.no_grad():
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            p.copy_(shard_like(q, p))
    return model, container(model, AURORA)


def begin_and_save(rank, folder, world):
    model, optimizers = sharded(world)
    train(model, optimizers, range(3), rank, world)
    dcp.save({"model": model.state_dict(), "optimizer": optimizers}, checkpoint_id=folder)


def resumed(model, optimizers, folder, rank, world):
    states = {"model": model.state_dict(), "optimizer": optimizers}
    dcp.load(states, checkpoint_id=folder)
    model.load_state_dict(states["model"])
    train(model, optimizers, range(3, 6), rank, world)
    return model


def assert_as_expected(model, expected):
    for name, p in model.named_parameters():
        torch.testing.assert_close(full(p), expected[name], rtol=0, atol=1e-10)


def resume(rank, folder, world, expected):
    assert_as_expected(resumed(*sharded(world), folder, rank, world), expected)


def test_trained_on_two_processes_and_resumed_on_three_and_on_one(tmp_path):
    """Equal to a run of one process that never stopped, without FSDP; into such a one as well."""
    straight = filled(toy(torch.float64))
    train(straight, container(straight, AURORA), range(6))
    expected = {name: p.detach() for name, p in straight.named_parameters()}
    run(2, begin_and_save, tmp_path, 2)
    run(3, resume, tmp_path, 3, expected)
    alone = filled(toy(torch.float64))
    with torch.no_grad():
        alone.norm.weight.zero_()  # what is not loaded is seen
    assert_as_expected(resumed(alone, container(alone, AURORA), tmp_path, 0, 1), expected)


def test_the_recipe_loads_as_torchtitan_loads_it_and_builds_on_meta():
    at = ["--module", "polarlight.lab.train.titan_recipe", "--config", "aurora_1b"]
    tokenizer = ["--hf_assets_path", str(EXAMPLES)]
    config = ConfigManager().parse_args([*at, *tokenizer, "--training.local_batch_size", "4"])
    assert config.training.local_batch_size == 4
    assert config.training.global_batch_size * config.training.seq_len == 4_194_304
    model, optimizer = titan_recipe.built(config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    hidden = [
        sum(p.numel() for p in group["params"])
        for group in optimizer.param_groups
        if group["rule"].name == "aurora"
    ]
    assert sum(hidden) == 1_073_741_824


@pytest.mark.parametrize(("copies", "tensor"), [(1, 1), (2, 1), (1, 2)])
def test_the_plan_understands_how_torchtitan_lays_the_recipe_out(copies, tensor, monkeypatch):
    """FSDP, HSDP, FSDP beside tensor parallelism: shapes and layouts alone, no process."""
    monkeypatch.setattr("torchtitan.distributed.parallel_dims.device_type", "cpu")
    config = titan_recipe.aurora_1b()
    config.model_spec.model = titan_recipe.decoder(titan_recipe.TOY)
    config.training.seq_len = titan_recipe.TOY.length
    config.parallelism.tensor_parallel_degree = tensor
    config.model_spec.model.update_from_config(config=config)
    degrees = {"dp_replicate": copies, "dp_shard": 8 // copies // tensor, "tp": tensor}
    backend = config.parallelism.spmd_backend
    torch.distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    try:
        dims = ParallelDims(**degrees, cp=1, pp=1, ep=1, world_size=8, spmd_backend=backend)
        with torch.device("meta"):
            model = config.model_spec.model.build()
        model = config.model_spec.parallelize_fn(
            model,
            parallel_dims=dims,
            training=config.training,
            parallelism=config.parallelism,
            compile_config=config.compile,
            ac_config=config.activation_checkpoint,
            dump_folder="",
        )
        (optimizer,) = config.optimizer.build(model_parts=[model])
        (plan,) = forecast(optimizer.param_groups)
        assert plan.size == 8
        assert len(plan.matrices) == 7 * titan_recipe.TOY.layers
    finally:
        torch.distributed.destroy_process_group()


def test_the_forecast_prints_memory_plan_and_bytes(capsys):
    titan_recipe.main(["--ranks", "1", "8"])
    said = capsys.readouterr().out
    assert "1,176,832,000 parameters" in said
    # float32 weights and gradients; Aurora's momentum, AdamW's two for the table, row scales
    assert re.search(r"\n1 process: weights 4.38 GiB, gradients 4.38 GiB, optimizer 4.77 GiB", said)
    assert re.search(r"\n8 processes: weights 0.548 GiB", said)
    assert "shared by a mesh of 8 processes" in said


def test_forecast_bytes_equal_held_bytes():
    """The same count on the toy, against the bytes of real tensors."""
    model = filled(toy())
    (optimizer,) = container(model, AURORA)
    train(model, optimizer, range(1))
    state = sum(x.nbytes for of_one in optimizer.state.values() for x in of_one.values())
    weights = sum(p.nbytes for p in model.parameters())
    found = next(titan_recipe.report(optimizer, 1))
    assert f"weights {weights / 2**30:.3g} GiB" in found
    layouts = [titan_recipe.rows("", p, 1) for p in optimizer.state]
    counted = sum(
        titan_recipe.held(layout, x)
        for layout, of_one in zip(layouts, optimizer.state.values(), strict=True)
        for x in of_one.values()
    )
    assert counted == state


def test_the_example_learns_and_resumes(capsys):
    losses = example("torchtitan_container").main()
    assert losses[-1] < 0.7 * losses[0]
    assert "gate_up" in capsys.readouterr().out
