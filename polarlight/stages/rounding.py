"""Stochastic rounding to bfloat16, from a counter instead of a generator.

A float32 number lies between two bfloat16 ones that differ in its last sixteen bits. A uniform
sixteen-bit integer, added to them before they are cut off, carries with just the probability that
makes the mean exact. The integers are a hash of the entry's place, its own bits and a counter: the
same state gives the same bits, on every device, compiled or not, and nothing else draws from them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.bfloat16).max
_CUT = -(1 << 16)  # the sixteen bits that bfloat16 keeps
_PLACE, _FIRST, _SECOND = 0x2C1B3C6D, 0x7FEB352D, 0x297A2D39  # odd multipliers, below 2^31
_ON_CPU, _ELSEWHERE = 2**18, 2**24


def round_stochastically(X: Tensor, counter: Tensor) -> Tensor:
    """Return X, float32 of any shape, as bfloat16: up or down at random, right on average.

    Args:
        X: What is rounded. What bfloat16 can represent stays as it is, zeros, NaN and Inf included;
            beyond its largest number, 3.39e38, X is rounded to nearest as torch does.
        counter: int32 []; another value draws anew.

    Unbiased: the mean over counters is X, up to the sixteen bits that decide. Entries are
    independent for what they are used for: they pass no test of cryptography. Extra memory: at most
    three int32 copies of 2^18 entries on a CPU, of 2^24 elsewhere.
    """
    rounded = torch.empty_like(X, dtype=torch.bfloat16)
    key = _key(counter)
    for start, part, out in _parts(X, rounded):
        out.copy_(_rounded(part, start, key))
    return rounded


def uniform_bits(X: Tensor, counter: Tensor) -> Tensor:
    """Return uniform integers from 0 to 2^16 - 1, int32 in the shape of X, float32.

    A hash of the counter, the entry's place and its bits, as in `round_stochastically`.
    """
    return _sixteen_bits(X.contiguous().view(torch.int32), 0, _key(counter))


def _rounded(X: Tensor, start: int, key: Tensor) -> Tensor:
    """Return X rounded, still float32; `start` entries lie before it."""
    bits = X.view(torch.int32)
    carried = _sixteen_bits(bits, start, key).add_(bits).bitwise_and_(_CUT)
    return torch.where(X.abs() <= _LARGEST, carried.view(torch.float32), X)


def _sixteen_bits(bits: Tensor, start: int, key: Tensor) -> Tensor:
    """Uniform integers from 0 to 2^16 - 1, int32 in the shape of `bits`; products wrap."""
    place = torch.arange(start, start + bits.numel(), dtype=torch.int32, device=bits.device)
    mixed = _mixed(place.view(bits.shape).mul_(_PLACE).bitwise_xor_(bits), 16).mul_(_FIRST)
    return _high(_mixed(mixed.add_(key), 15).mul_(_SECOND), 16)


def _key(counter: Tensor) -> Tensor:
    """Return a number of which every bit depends on the counter."""
    return _mixed(_mixed(_mixed(counter + 1, 16).mul_(_FIRST), 15).mul_(_SECOND), 16)


def _mixed(h: Tensor, shift: int) -> Tensor:
    """`h ^= h >> shift` in place."""
    return h.bitwise_xor_(_high(h, shift))


def _high(h: Tensor, shift: int) -> Tensor:
    """The bits above `shift`, without the sign's copies."""
    return (h >> shift).bitwise_and_((1 << (32 - shift)) - 1)


def _parts(X: Tensor, rounded: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Rows of both, few enough at a time, and how many entries lie before them."""
    most = _ON_CPU if X.device.type == "cpu" else _ELSEWHERE
    if X.numel() <= most or torch.compiler.is_compiling():  # a compiled step keeps no copies
        yield 0, X, rounded
        return
    each = X[0].numel()
    rows = max(1, most // each)
    for first in range(0, X.shape[0], rows):
        yield first * each, X[first : first + rows], rounded[first : first + rows]
