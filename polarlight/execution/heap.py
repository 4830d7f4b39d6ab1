"""Opt-in setting of glibc's allocator that keeps freed memory of a CPU step for the next one.

glibc takes allocations above a threshold from the system one by one and gives them back when they
are freed; the next one is faulted in again, page by page. The threshold starts at 128 KiB and
follows the largest allocation that was freed so far, up to 32 MiB. Where no activation is that
large, every step pays for it: `tests/execution/test_heap.py` counts the faults with and without.
"""

from functools import cache

import torch

LARGEST_BYTES = 31 * 2**20
"""Largest allocation whose release raises the threshold, rounded down to MiB."""


@cache
def raise_mmap_threshold() -> None:
    """Raise glibc's mmap threshold to 31 MiB by freeing a tensor of that size, once per process.

    Allocates one tensor of that size and frees it; none of its pages is touched. The price:
    afterwards freed tensors below 31 MiB stay in the process, up to 62 MiB at the top of its heap,
    also those of code that has nothing to do with the optimizer. Other allocators are not changed.
    """
    torch.empty(LARGEST_BYTES, dtype=torch.uint8, device="cpu")
