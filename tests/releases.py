"""What older releases of torch lack, for tests to skip; `docs/versioning.md` lists the same."""

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
