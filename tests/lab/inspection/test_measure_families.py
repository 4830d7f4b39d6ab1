"""MLPs of every family of models: as many, and as wide, as the config says."""

import json
from itertools import chain

import pytest
import torch

from polarlight.integrations.transformers import meta_model
from polarlight.lab.inspection.measure import inspect
from polarlight.lab.inspection.source import Entry, OpenedCheckpoint
from tests.routing.roles.golden import CONFIGS

pytest.importorskip("transformers", reason="transformers is not installed")


def random_weights(shapes):
    generator = torch.Generator().manual_seed(0)

    def entry(shape):
        return Entry(shape, 4 * shape.numel(), lambda: torch.randn(shape, generator=generator))

    return OpenedCheckpoint({name: entry(torch.Size(shape)) for name, shape in shapes.items()})


def mlps(shapes):
    return list(inspect(random_weights(shapes)))[-1][1].mlps


def expected(config):
    """Neurons of every MLP with matrices of its own, in any order; stacked experts have none."""
    c = json.loads(config.read_text())
    layers, wide = c.get("num_hidden_layers"), c.get("intermediate_size")
    family = c["model_type"]
    if family in ("bert", "vit", "llama", "gemma3_text", "qwen3"):
        return [wide] * layers
    if family == "gpt2":
        return [4 * c["n_embd"]] * c["n_layer"]
    if family == "t5":
        return [c["d_ff"]] * (2 * c["num_layers"])
    if family == "deepseek_v3":
        dense = c["first_k_dense_replace"]
        shared = c["n_shared_experts"] * c["moe_intermediate_size"]
        return [wide] * dense + [shared] * (layers - dense)
    if family == "qwen3_next":
        return [c["shared_expert_intermediate_size"]] * layers
    assert family in ("mixtral", "olmoe", "gpt_oss", "qwen3_moe", "mamba", "resnet")
    return []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_mlps_and_neurons_are_those_of_the_config(config):
    shapes = {name: p.shape for name, p in meta_model(config).named_parameters()}
    found = mlps(shapes)
    assert sorted(mlp.neurons for mlp in found) == sorted(expected(config))
    assert len({mlp.name for mlp in found}) == len(found)


def bert(layers, width, neurons):
    def layer(i):
        prefix = f"bert.encoder.layer.{i}"
        yield from ((f"{prefix}.attention.self.{x}.weight", (width,) * 2) for x in ("query", "key"))
        yield f"{prefix}.attention.output.dense.weight", (width, width)
        yield f"{prefix}.intermediate.dense.weight", (neurons, width)
        yield f"{prefix}.output.dense.weight", (width, neurons)

    return dict(chain.from_iterable(map(layer, range(layers))))


def feed_forward(*names_and_shapes, prefix="blocks.{}."):
    return {prefix.format(i) + n: shape for i in range(2) for n, shape in names_and_shapes}


SIBLINGS = {
    "BERT": (bert(3, 32, 112), [("bert.encoder.layer.{}", 112)] * 3),
    "BERT as wide as its neurons": (bert(3, 32, 32), [("bert.encoder.layer.{}", 32)] * 3),
    "GEGLU of diffusers": (
        feed_forward(("ff.net.0.proj.weight", (64, 8)), ("ff.net.2.weight", (8, 32))),
        [("blocks.{}.ff.net", 32)] * 2,
    ),
    "layers in modules of their own": (
        feed_forward(("mlp.fc1.linear.weight", (32, 8)), ("mlp.fc2.linear.weight", (8, 32))),
        [("blocks.{}.mlp", 32)] * 2,
    ),
    "ALBERT": (
        feed_forward(("ffn.weight", (32, 8)), ("ffn_output.weight", (8, 32))),
        [("blocks.{}", 32)] * 2,
    ),
    "a Sequential": (
        feed_forward(("mlp.0.weight", (32, 8)), ("mlp.2.weight", (8, 32))),
        [("blocks.{}.mlp", 32)] * 2,
    ),
    "several in a list": (
        feed_forward(("fc1.weight", (32, 8)), ("fc2.weight", (8, 32)), prefix="block.mlps.{}."),
        [("block.mlps.{}", 32)] * 2,
    ),
    "slices": (
        feed_forward(("feed_forward.w13", (32, 2, 8)), ("feed_forward.w2.weight", (8, 32))),
        [("blocks.{}.feed_forward", 32)] * 2,
    ),
    "fused gate and up": (
        feed_forward(("mlp.gate_up_proj.weight", (64, 8)), ("mlp.down_proj.weight", (8, 32))),
        [("blocks.{}.mlp", 32)] * 2,
    ),
    "one half alone": (
        feed_forward(("mlp.up_proj.weight", (32, 8))),
        [("blocks.{}.mlp", 32)] * 2,
    ),
    "experts, of which one has a half alone": (
        {"experts.0.w1.weight": (32, 8), "experts.0.w2.weight": (8, 32)}
        | {"experts.1.w1.weight": (32, 8)},
        [("experts.{}", 32)] * 2,
    ),
    "wrappers": (
        feed_forward(
            ("_checkpoint_wrapped_module.mlp.up_proj.base_layer.weight", (32, 8)),
            ("_checkpoint_wrapped_module.mlp.down_proj.weight", (8, 32)),
        ),
        [("blocks.{}.mlp", 32)] * 2,
    ),
}


@pytest.mark.parametrize(("shapes", "named"), SIBLINGS.values(), ids=SIBLINGS)
def test_matrices_of_one_mlp_are_judged_together_wherever_they_stand(shapes, named):
    found = [(mlp.name, mlp.neurons) for mlp in mlps(shapes)]
    assert found == [(name.format(i), neurons) for i, (name, neurons) in enumerate(named)]


def test_a_neuron_is_dead_by_either_of_its_sides():
    shapes = bert(2, 32, 112)
    source = random_weights(shapes)
    into, out = (f"bert.encoder.layer.1.{x}.dense.weight" for x in ("intermediate", "output"))
    weights = {name: entry.read() for name, entry in source.weights.items()}
    weights[into][3] *= 1e-3
    weights[out][:, 5] *= 1e-3
    entries = {n: Entry(x.shape, 4 * x.numel(), lambda x=x: x) for n, x in weights.items()}
    first, second = list(inspect(OpenedCheckpoint(entries)))[-1][1].mlps
    assert (first.dead, second.dead) == ([], [3, 5])
