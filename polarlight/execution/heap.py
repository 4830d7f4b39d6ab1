"""Memory of a CPU that a step frees is kept for the next one.

glibc takes tensors above a threshold from the system one by one and gives them back when they are
freed; the next one is then faulted in anew, page by page. The threshold starts at 128 KiB and
follows the largest tensor that was freed so far, up to 32 MiB. Where no activation is that large,
every step pays for it: `tests/execution/test_heap.py` counts the faults with and without.
"""

from functools import cache

import torch

JUST_BELOW = 31 * 2**20
"""Bytes: the largest tensor by which glibc lets itself be told."""


@cache
def keep_freed_memory() -> None:
    """Raises the threshold as any large tensor does that is freed, once per process.

    No page of that tensor is touched. Afterwards freed tensors below 31 MiB stay in the process, up
    to 64 MiB at the top of its heap. Other allocators see one tensor come and go.
    """
    torch.empty(JUST_BELOW, dtype=torch.uint8, device="cpu")
