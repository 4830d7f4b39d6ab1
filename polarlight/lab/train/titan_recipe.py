"""torchtitan recipe: 1.1 billion hidden parameters under Aurora and FSDP2.

On every node, with the first one's address in HEAD:

    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint $HEAD:29500
        -m torchtitan.train --module polarlight.lab.train.titan_recipe --config aurora_1b
        --hf_assets_path ./tokenizer

Any entry can be changed behind it (`--training.local_batch_size 4`, `--help` lists them), and what
it means for a machine can be read beforehand, without one:

    python -m polarlight.lab.train.titan_recipe --ranks 8 32 128

The architecture of Aurora-1.1B is not published in detail. This is a Llama with its number of
parameters in hidden matrices: 16 layers of width 2048, 16 heads, 8192 neurons, tied tables. Steps
and tokens per step are the published ones: 24,000 of 4.2 million. Learning rates are places to
start, not tuned at this size.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, ParamGroupConfig
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import (
    get_attention_config,
    make_ffn_config,
    make_gqa_config,
)
from torchtitan.models.common.param_init import depth_scaled_std, skip_param_init
from torchtitan.models.llama3 import Llama3Model, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

from polarlight.execution.sharded.forecast import forecast, summary
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.integrations.torchtitan import PolarlightOptimizers
from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.routing.explain import explain


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a dense decoder; every head has its own key and value."""

    dim: int = 2048
    layers: int = 16
    heads: int = 16
    neurons: int = 8192
    vocabulary: int = 50_304
    length: int = 8192


TOY = Sizes(dim=64, layers=2, heads=4, neurons=256, vocabulary=256, length=64)
"""The same model for tests."""


def decoder(sizes: Sizes, inner_attention: Any = None) -> Any:
    """Return the model's configuration; `inner_attention` None takes torchtitan's flex."""
    linear = {"weight": partial(nn.init.trunc_normal_, std=0.02)}
    ones = {"weight": nn.init.ones_}
    dim, vocabulary = sizes.dim, sizes.vocabulary

    def layer(index: int) -> Any:
        """Return the configuration of one transformer block."""
        by_depth = {"weight": partial(nn.init.trunc_normal_, std=depth_scaled_std(0.02, index))}
        return Llama3TransformerBlock.Config(
            attention_norm=RMSNorm.Config(normalized_shape=dim, param_init=ones),
            ffn_norm=RMSNorm.Config(normalized_shape=dim, param_init=ones),
            attention=make_gqa_config(
                dim=dim,
                n_heads=sizes.heads,
                wqkv_param_init=linear,
                wo_param_init=by_depth,
                inner_attention=inner_attention or get_attention_config("flex"),
                rope=ComplexRoPE.Config(
                    dim=dim // sizes.heads, max_seq_len=sizes.length, theta=500_000
                ),
                fuse_qkv=False,  # fused, the rows of a head would be a matrix each
            ),
            feed_forward=make_ffn_config(
                dim=dim, hidden_dim=sizes.neurons, w1_param_init=linear, w2w3_param_init=by_depth
            ),
        )

    skipped = {"weight": skip_param_init}  # tied: the head's initial values count
    std = dim**-0.5
    head = {"weight": partial(nn.init.trunc_normal_, std=std, a=-3 * std, b=3 * std)}
    return Llama3Model.Config(
        dim=dim,
        vocab_size=vocabulary,
        enable_weight_tying=True,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocabulary, embedding_dim=dim, param_init=skipped
        ),
        norm=RMSNorm.Config(normalized_shape=dim, param_init=ones),
        lm_head=Linear.Config(in_features=dim, out_features=vocabulary, param_init=head),
        layers=[layer(index) for index in range(sizes.layers)],
    )


def aurora(lr: float = 0.02, weight_decay: float = 0.01, aux_lr: float = 1e-3) -> Any:
    """Return a container entry: hidden matrices under Aurora, AdamW on the rest."""
    arguments = {"lr": lr, "weight_decay": weight_decay, "aux_lr": aux_lr}
    entry = ParamGroupConfig(pattern=r".*", optimizer_name="Aurora", optimizer_kwargs=arguments)
    return PolarlightOptimizers.Config(param_groups=[entry])


def aurora_1b() -> Any:
    """Return the trainer's configuration, for `--config aurora_1b`."""
    sizes = Sizes()
    return Trainer.Config(
        hf_assets_path="./tokenizer",
        model_spec=ModelSpec(
            name="llama3",
            flavor="dense-1.1b",
            model=decoder(sizes),
            parallelize_fn=parallelize_llama,
            pipelining_fn=pipeline_llm,
            post_optimizer_build_fn=None,
            state_dict_adapter=Llama3StateDictAdapter,
        ),
        loss=ChunkedLossWrapper.Config(
            loss_fn=CrossEntropyLoss.Config(global_vocab_size=sizes.vocabulary)
        ),
        optimizer=aurora(),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=1000, decay_ratio=0.2, decay_type="linear"
        ),
        training=TrainingConfig(
            local_batch_size=8, global_batch_size=1024, seq_len=4096, steps=24_000
        ),
        parallelism=ParallelismConfig(
            data_parallel_shard_degree=-1,
            spmd_backend="partial_dtensor",  # torch 2.13 refuses the default, spmd_types
        ),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4"),
        checkpoint=CheckpointManager.Config(
            enable=True,
            interval=500,
            last_save_model_only=False,
            initial_load_model_only=False,
        ),
        activation_checkpoint=SelectiveAC.Config(),
    )


def built(config: Any) -> tuple[nn.Module, SpectralOptimizer]:
    """Build model and optimizer of a configuration on the meta device."""
    with torch.device("meta"):
        model: nn.Module = config.model_spec.model.build()
    (optimizer,) = config.optimizer.build(model_parts=[model])
    return model, optimizer


def held(layout: Layout, x: Tensor) -> int:
    """Return the bytes of x on the first process, which holds the most."""
    if not x.ndim:
        return x.element_size()
    shape = layout.for_buffer(x.shape).local_shape((0,) * len(layout.mesh))
    return torch.Size(shape).numel() * x.element_size()


def rows(name: str, p: Tensor, ranks: int) -> Layout:
    """Return FSDP2's layout: rows sharded among all processes."""
    return Layout(tuple(p.shape), (ranks,), (Split(0),))


def report(optimizer: SpectralOptimizer, ranks: int) -> Iterator[str]:
    """Yield lines on memory per process, and on the plan and bytes of a step."""
    states = list(optimizer.state_dict()["state"].values())
    params = [p for group in optimizer.param_groups for p in group["params"]]
    layouts = [rows("", p, ranks) for p in params]
    weights = sum(held(layout, p) for layout, p in zip(layouts, params, strict=True))
    state = sum(
        held(layout, x)
        for layout, of_one in zip(layouts, states, strict=True)
        for x in of_one.values()
    )
    gib = [f"{size / 2**30:.3g} GiB" for size in (weights, weights, state, 2 * weights + state)]
    who = f"{ranks} process" + "es" * (ranks > 1)
    yield f"{who}: weights {gib[0]}, gradients {gib[1]}, optimizer {gib[2]}: {gib[3]}"
    for plan in forecast(optimizer.param_groups, lambda name, p: rows(name, p, ranks)):
        yield f"    {summary(plan)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print parameters by role, then memory and plan per number of processes."""
    parser = argparse.ArgumentParser(
        description="What a step of aurora_1b needs on each of N processes under FSDP2 (float32 "
        "weights, gradients and state, as torchtitan keeps them; activations come on top).",
    )
    parser.add_argument(
        "--ranks", nargs="+", type=int, default=[1, 8, 32, 128], metavar="N", help="processes"
    )
    ranks = parser.parse_args(arguments).ranks
    model, optimizer = built(aurora_1b())
    print(explain(optimizer))
    print(f"\n{sum(p.numel() for p in model.parameters()):,} parameters")
    for count in ranks:
        print(*report(optimizer, count), sep="\n")


if __name__ == "__main__":
    main()
