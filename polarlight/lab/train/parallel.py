"""Trainer on several processes, by PyTorch's DDP, FSDP2 and tensor parallelism.

    torchrun --nproc-per-node 2 -m polarlight compare --parallel fsdp

Nothing here is an engine: DDP, `fully_shard`, `parallelize_module`. Every process takes its share
of each batch, or under tensor parallelism all of it, so that a run has the loss curve of one
process. A mixture's load-balancing loss is each share's own. Checkpoints are whole: a run may go
on with another number of processes, or with one; all of them read the same folder.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polarlight.execution.param_task import full_tensor
from polarlight.execution.sharded.executor import Sharded
from polarlight.lab.train.model import GPT
from polarlight.lookup import option_named
from polarlight.optimizer.spectral import SpectralOptimizer


class Parallel(StrEnum):
    """Layout of a model on several processes."""

    DDP = "ddp"
    FSDP = "fsdp"
    HSDP = "hsdp"
    TP = "tp"


@dataclass(frozen=True, slots=True)
class Team:
    """Processes of a run.

    Attributes:
        rank: This one; only the first one writes files.
        size: How many there are.
        kind: How the model lies on them; None on one process.
    """

    rank: int = 0
    size: int = 1
    kind: Parallel | None = None

    @property
    def readers(self) -> int:
        """Return the number of processes that read different sequences."""
        return 1 if self.kind is Parallel.TP else self.size

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's sequences of a batch.

        Raises:
            ValueError: If the batch cannot be divided.
        """
        if batch.shape[0] % self.readers:
            raise ValueError(
                f"a batch of {batch.shape[0]} sequences cannot be divided among {self.readers} "
                f"processes; choose --set batch= a multiple of {self.readers}"
            )
        return batch.chunk(self.readers)[self.rank % self.readers]

    @property
    def leads(self) -> bool:
        """True on the process that writes files and prints."""
        return self.rank == 0

    def mean(self, value: float, device: torch.device) -> float:
        """Return the mean of a value over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total) / self.size

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return True if the flag is set on any process."""
        return self.mean(float(flag), device) > 0

    def told(self, value: Any) -> Any:
        """Return the first process's value on every process."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]


ALONE = Team()


def kind_of(text: str) -> Parallel:
    """Look up a layout by name.

    Raises:
        ValueError: If there is none.
    """
    return option_named(text, Parallel, "--parallel")


@contextmanager
def team(kind: Parallel | str | None) -> Iterator[Team]:
    """Connect the processes that torchrun started, for the duration of the block.

    Raises:
        ValueError: If the kind is unknown, or torchrun did not start this process.
    """
    if kind is None:
        yield ALONE
        return
    kind = kind_of(kind)
    if "RANK" not in os.environ:
        raise ValueError(
            f"--parallel {kind} needs several processes: torchrun --nproc-per-node 2 -m polarlight "
            "compare ..."
        )
    with connected():
        yield Team(dist.get_rank(), dist.get_world_size(), kind)


@contextmanager
def connected() -> Iterator[None]:
    """Create the default process group from torchrun's environment; destroy it at the end."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class LaidOut:
    """Model on several processes.

    Attributes:
        loss_and_load: The model's, to be called on every process.
        sync: Whether the next backward pass ends with gradients that all processes share; False
            for all micro batches but the last.
    """

    loss_and_load: Callable[..., Any]
    sync: Callable[[bool], None]


def lay_out(model: GPT, kind: Parallel | None) -> LaidOut:
    """Distribute the model over all processes, in place.

    Raises:
        ValueError: If it cannot be divided among as many, or would train on other gradients.
    """
    device = next(model.parameters()).device.type
    if kind is Parallel.DDP:
        wrapped = nn.parallel.DistributedDataParallel(_Loss(model))
        return LaidOut(wrapped, partial(setattr, wrapped, "require_backward_grad_sync"))
    if kind in (Parallel.FSDP, Parallel.HSDP):
        _check_averages(device, kind)
        divided = _divide_parameters(model, _mesh(device, hybrid=kind is Parallel.HSDP))
        return LaidOut(model.loss_and_load, divided.set_requires_gradient_sync)
    if kind is Parallel.TP:
        _divide_products(model, device)
    return LaidOut(model.loss_and_load, lambda wanted: None)


def _check_averages(device: str, kind: Parallel) -> None:
    """Refuse FSDP2 over gloo before torch 2.8: gradients are added there, not averaged."""
    if device == "cpu" and torch.torch_version.TorchVersion(torch.__version__) < "2.8":
        raise ValueError(
            f"{kind} on CPUs does not average gradients under torch {torch.__version__}; "
            "use torch >= 2.8, or --parallel ddp or tp"
        )


def share_work(optimizer: SpectralOptimizer, kind: Parallel | None) -> SpectralOptimizer:
    """Divide the matrices among DDP's processes, which have equal parameters."""
    if kind is Parallel.DDP:
        optimizer.executor = Sharded(group=dist.group.WORLD)
    return optimizer


class _Loss(nn.Module):
    """Module whose forward pass is the model's loss, as DDP hooks its forward pass."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        return self.model.loss_and_load(tokens, targets)


def _mesh(device: str, *, hybrid: bool) -> Any:
    """Return a mesh of one dimension; two for replicas of a sharded model."""
    from torch.distributed.device_mesh import init_device_mesh

    size = dist.get_world_size()
    if not hybrid:
        return init_device_mesh(device, (size,))
    if size % 2:
        raise ValueError(f"hsdp needs an even number of processes, got {size}")
    return init_device_mesh(device, (2, size // 2), mesh_dim_names=("copies", "shards"))


def _divide_parameters(model: GPT, mesh: Any) -> Any:
    """Apply FSDP2 to each block."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss_and_load")
    return model


def _divide_products(model: GPT, device: str) -> None:
    """Apply tensor parallelism to heads and neurons; mixtures stay whole."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = _mesh(device, hybrid=False)
    config, size = model.config, mesh.size()
    if config.key_heads % size or config.neurons % size:
        raise ValueError(
            f"{config.key_heads} key heads and {config.neurons} neurons cannot be divided among "
            f"{size} processes"
        )
    falling = ("o_proj", "down_proj")
    blocks: Any = model.model.layers
    for block in blocks:
        parts = [("self_attn", block.self_attn)]
        parts += [] if config.is_mixture else [("mlp", block.mlp)]
        styles: dict[str, ParallelStyle] = {
            f"{part}.{name}": RowwiseParallel() if name in falling else ColwiseParallel()
            for part, module in parts
            for name, child in module.named_children()
            if isinstance(child, nn.Linear)
        }
        parallelize_module(block, mesh, styles)
        for norm in (block.self_attn.q_norm, block.self_attn.k_norm):
            norm.weight.register_hook(_summed)


def _summed(gradient: Tensor) -> Tensor:
    """Sum the gradient of a norm that every process applied to its own heads."""
    total = gradient.clone()
    dist.all_reduce(total)
    return total


def whole_state(state: Any) -> Any:
    """Return a state dict with full tensors for DTensors; a collective call."""
    if isinstance(state, Tensor):
        return full_tensor(state)
    if isinstance(state, dict):
        return {key: whole_state(value) for key, value in state.items()}
    return [whole_state(value) for value in state] if isinstance(state, list) else state


def shard_like(state: Any, like: Any) -> Any:
    """Return a state dict of whole tensors sharded like another one's tensors."""
    if isinstance(state, dict):
        return {key: shard_like(value, like[key]) for key, value in state.items()}
    if not isinstance(state, Tensor) or not hasattr(like, "device_mesh"):
        return state
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(state, mesh, placements, src_data_rank=None)
