"""Features that older releases of torch lack, for skips; see `docs/versioning.md`."""

import pytest
import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

needs_compiled_steps = pytest.mark.skipif(
    TORCH < (2, 11), reason="torch.compile of a step is supported from torch 2.11 on"
)
UNEVEN_STRIDED_SHARDS = TORCH >= (2, 8)
"""Whether `_StridedShard` (rows under FSDP2 x TP) divides a number of rows that does not go up."""
GLOO_AVERAGES = TORCH >= (2, 8)
"""Whether gloo reduces by `ReduceOp.AVG`, as FSDP2 asks it to. Before, it adds or refuses."""

needs_torchs_muon = pytest.mark.skipif(
    TORCH < (2, 9), reason="torch.optim.Muon came with torch 2.9"
)

SETTINGS_OF_BACKENDS = TORCH >= (2, 9)
"""Whether single backends have a float32 precision of their own."""

COPIES_OF_FAKES = TORCH >= (2, 8)
NO_COPIES_OF_FAKES = "torch 2.7 copies a tensor to a fake CUDA device for real, and fails"
needs_copies_of_fakes = pytest.mark.skipif(not COPIES_OF_FAKES, reason=NO_COPIES_OF_FAKES)

needs_fully_shard_of_expert_parallel = pytest.mark.skipif(
    TORCH < (2, 8),
    reason="fully_shard of torch 2.7 refuses a DTensor of a later mesh dimension: KeyError",
)
