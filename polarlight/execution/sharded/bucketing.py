"""Buckets of matrices that are exchanged at the same time, bounded for owners and for holders."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

FEW = 16
"""Holders of a matrix up to which the bytes of each one are counted apart."""


@dataclass(slots=True)
class Buckets:
    """Matrices by bucket, filled one owner after the other.

    Attributes:
        limit: Most bytes that a process gathers or sends per bucket, unless one matrix has more.
        numbers: Matrices of each bucket.
    """

    limit: int
    numbers: list[list[int]] = field(default_factory=list)
    _gathered: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    _sent: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    _spread: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, number: int, owner: int, size: int, holders: Sequence[int], start: int) -> int:
        """Add a matrix to the first bucket that has room for it; return which one.

        Args:
            number: Number of the matrix.
            owner: Process that gathers it.
            size: Bytes of the matrix and its buffers.
            holders: Processes that send a part of it; all of them an equal one.
            start: First bucket to try: that of the owner's last matrix.
        """
        share = size / max(1, len(holders))
        counted = holders if len(holders) <= FEW else ()
        bucket = start
        while not self._has_room(bucket, owner, size, counted, share):
            bucket += 1
        self.numbers += [[] for _ in range(len(self.numbers), bucket + 1)]
        self.numbers[bucket].append(number)
        self._gathered[bucket, owner] += size
        for holder in counted:
            self._sent[bucket, holder] += share
        if len(holders) > FEW:
            self._spread[bucket] += share
        return bucket

    def _has_room(
        self, bucket: int, owner: int, size: int, counted: Sequence[int], share: float
    ) -> bool:
        """Return whether owner and holders stay within `limit`; the first matrix of each fits."""
        gathered = self._gathered.get((bucket, owner), 0)
        if gathered and gathered + size > self.limit:
            return False
        spread = self._spread.get(bucket, 0)
        sent = [self._sent.get((bucket, holder), 0) for holder in counted]
        return all(not s or s + spread + share <= self.limit for s in sent)
