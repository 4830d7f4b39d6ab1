"""Parameters of engines that tell PyTorch nothing of their shards: refused, with the fix.

A polar factor of a shard is no shard of the polar factor. A DTensor says what it is a shard of. The
engines here leave plain tensors with an attribute of their own, which is read and never written.
"""

import sys
from collections.abc import Iterable

from torch import Tensor

from polarlight.execution.sharded import collectives

NamedParams = Iterable[tuple[str, Tensor]]
"""(name, parameter) pairs."""


def refuse_flattened(params: NamedParams) -> None:
    """Raise ValueError if FSDP1 flattened the parameters, so that no matrix is left.

    Parameters that it leaves whole (`NO_SHARD`) keep their shapes, and pass.
    """
    flattened = [(name, p) for name, p in params if getattr(p, "_fsdp_flattened", False)]
    if not flattened or any(p.ndim > 1 for _, p in flattened):
        return
    name, p = flattened[0]
    raise ValueError(
        f"FSDP1 (FullyShardedDataParallel) flattened {name}, now of shape {tuple(p.shape)}, and "
        f"{len(flattened) - 1} other parameters: no matrix is left that a rule could map, and all "
        "would be stepped by AdamW. Shard with torch's fully_shard (FSDP2), or pass "
        "sharding_strategy=ShardingStrategy.NO_SHARD"
    )


def refuse_tensor_parallel(params: NamedParams) -> None:
    """Raise ValueError if a matrix is a shard of Megatron's tensor parallelism.

    Megatron marks its layers on one process as well; there, and where its state tells a size of 1,
    they are whole.
    """
    for name, p in params:
        if getattr(p, "tensor_model_parallel", False) and _tensor_parallel_size() != 1:
            dim = getattr(p, "partition_dim", None)
            raise ValueError(
                f"{name}, of shape {tuple(p.shape)}, is marked tensor_model_parallel with "
                f"partition_dim={dim}: a shard of Megatron's. Its direction is not a shard of the "
                "matrix's direction. Give the optimizer a DTensor: DTensor.from_local(p, "
                f"tensor_parallel_mesh, [Shard({dim})]). If it is the whole matrix, "
                "set tensor_model_parallel=False on it"
            )


def _tensor_parallel_size() -> int:
    """Return Megatron's tensor-parallel size; the world's size if Megatron does not tell."""
    megatron = sys.modules.get("megatron.core.parallel_state")
    told = getattr(megatron, "get_tensor_model_parallel_world_size", None)
    try:
        return int(told()) if told is not None else collectives.world_size()
    except (AssertionError, RuntimeError):  # its groups were not made
        return collectives.world_size()
