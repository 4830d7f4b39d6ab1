"""Checksums of copies: any changed bit and any order is seen, in every dtype."""

import pytest
import torch

from polarlight.execution.sharded import disagreement
from polarlight.execution.sharded.disagreement import checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_a_checksum_sees_one_bit_and_the_order_of_entries(dtype, monkeypatch):
    monkeypatch.setattr(disagreement, "CHUNK", 7)  # several chunks
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    same, bit, rows, far = x.clone(), x.clone(), x.flip(0), x.roll(7)
    bit.view(torch.int16)[3, 3] ^= 1
    sums = [checksum(y).item() for y in (x, bit, rows, far)]
    assert checksum(same) == checksum(x)
    assert len(set(sums)) == 4


def test_a_checksum_of_another_layout_in_memory_is_the_same():
    x = torch.randn(4, 6)
    assert checksum(x) == checksum(x.t().contiguous().t())
    assert checksum(torch.empty(0, 3)) == 0
