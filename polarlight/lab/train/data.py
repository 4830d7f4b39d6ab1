"""Tokens, and batches of training and validation.

A corpus is two streams of tokens; where they come from is the business of `corpus.py` (text) and
`shards.py` (token files). A batch is a function of seed, step and micro step and of nothing else:
any step can be produced at once, so that a resumed run sees what the unbroken one would have seen,
and all optimizers of a comparison see the same tokens in the same order.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


class DataError(ValueError):
    """Error: the data cannot be used; names it, what was expected, and the fix."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Stream of tokens in one or more pieces, which may be memory-mapped files.

    Attributes:
        pieces: 1-D tensors of uint8 or uint16, read as if they were joined.
        vocab_size: Every token is below it; checked on every read.
        source: What error messages call the stream: "training split of /data/x.txt".
    """

    pieces: tuple[Tensor, ...]
    vocab_size: int
    source: str

    @cached_property
    def _starts(self) -> list[int]:
        """Return the start of each piece in the stream, and the end of the last."""
        return list(accumulate((len(piece) for piece in self.pieces), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, length: int) -> Tensor:
        """Copy tokens start to start + length - 1, int64 [length], also across pieces.

        Raises:
            IndexError: If they do not all lie in the stream.
            DataError: If one of them is not below vocab_size.
        """
        stop = start + length
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of the {len(self)} in {self.source}")
        touched = range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop))
        parts = []
        for i in touched:
            begin = self._starts[i]
            parts.append(self.pieces[i][max(0, start - begin) : stop - begin].long())
        window = torch.cat(parts)
        largest = int(window.max())
        if largest >= self.vocab_size:
            raise DataError(
                f"{self.source}: token {largest} between positions {start} and {stop} does not fit "
                f"vocab_size = {self.vocab_size}; give the vocabulary that the data was made with"
            )
        return window

    def require(self, context: int) -> None:
        """Raise DataError unless there is at least one window of this context.

        Raises:
            DataError: If there are fewer than context + 1 tokens.
        """
        if len(self) <= context:
            raise DataError(
                f"{self.source} has {len(self)} tokens, a context of {context} needs at least "
                f"{context + 1}; use more data or a shorter context"
            )


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training and validation tokens of a run.

    Attributes:
        name: For people: "CPython 3.11.7 standard library".
        train: Tokens to learn from.
        validation: Tokens that training never sees.
        fingerprint: SHA-256, hexadecimal. Of text: over all tokens of both splits. Of shards: over
            the name, size, first and last MiB of every file. The folder does not enter.
    """

    name: str
    train: Tokens
    validation: Tokens
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """Bound on the tokens of both splits: all are below it."""
        return self.train.vocab_size

    @property
    def unit(self) -> str:
        """Unit of a loss: a vocabulary of 256 is that of bytes."""
        return "nats/byte" if self.vocab_size == 256 else "nats/token"

    def require(self, context: int) -> None:
        """Raise DataError unless both splits hold at least one window of this context.

        Raises:
            DataError: If a split has fewer than context + 1 tokens.
        """
        self.train.require(context)
        self.validation.require(context)


class Batches:
    """Training batches by step, in any order.

    Windows may start anywhere and are drawn with replacement. Their offsets are a hash of seed,
    step and micro step: equal on every call, machine and version of torch. (torch's own CPU
    generator keeps 32 bits of its seed, too few for one seed per step.)

    Args:
        tokens: Where windows come from.
        batch: Windows per batch.
        context: Tokens per window.
        seed: Any integer; another one gives other windows.

    Raises:
        ValueError: If batch or context is below 1.
        DataError: If tokens has fewer than context + 1 tokens.
    """

    def __init__(self, tokens: Tokens, *, batch: int, context: int, seed: int) -> None:
        _check(batch, context)
        tokens.require(context)
        self.tokens = tokens
        self.batch = batch
        self.context = context
        self.seed = seed

    def offsets(self, step: int, micro_step: int = 0) -> list[int]:
        """Return the starts of a batch's windows."""
        key = f"{self.seed}/{step}/{micro_step}".encode()
        drawn = hashlib.shake_256(key).digest(8 * self.batch)
        numbers = (int.from_bytes(drawn[i : i + 8], "little") for i in range(0, len(drawn), 8))
        return [number % (len(self.tokens) - self.context) for number in numbers]

    def __call__(self, step: int, micro_step: int = 0) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64 [batch, context]; targets are shifted by one token.

        Raises:
            DataError: If a token does not fit the vocabulary.
        """
        return _windows(self.tokens, self.offsets(step, micro_step), self.context)


def cut_tail(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Split off the last tenth for validation."""
    cut = len(tokens) - len(tokens) // 10
    return tokens[:cut], tokens[cut:]


def validation_batches(
    tokens: Tokens, *, batch: int, context: int, tokens_at_most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the first windows of the stream, without overlap, the same at each call.

    All batches have one size, so that the mean of their losses is the mean over tokens: windows
    beyond a multiple of `batch` are left out; fewer than `batch` windows make one smaller batch.

    Args:
        tokens: Where windows come from.
        batch: Windows per batch.
        context: Tokens per window.
        tokens_at_most: Bound on the inputs of all batches together.

    Returns:
        Inputs and targets, int64 [batch, context], one pair after the other.

    Raises:
        ValueError: If batch or context is below 1, or tokens_at_most below context.
        DataError: If tokens has fewer than context + 1 tokens, or one does not fit the vocabulary.
    """
    _check(batch, context)
    tokens.require(context)
    if tokens_at_most < context:
        raise ValueError(
            f"tokens_at_most must be >= context = {context}, one window, got {tokens_at_most}"
        )
    windows = min(tokens_at_most, len(tokens) - 1) // context
    batch = min(batch, windows)
    starts = [i * context for i in range(windows // batch * batch)]
    return (_windows(tokens, starts[i : i + batch], context) for i in range(0, len(starts), batch))


def _check(batch: int, context: int) -> None:
    for name, value in (("batch", batch), ("context", context)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")


def _windows(tokens: Tokens, starts: list[int], context: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, [len(starts), context]."""
    windows = torch.stack([tokens.read(start, context + 1) for start in starts])
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
