"""Changes of the trained weights at fixed steps: tricks of results 34 and 43, not for other runs.

    extrapolation (34), x all block matrices as one vector, every 5 steps near the end:
        u_i = x_{i+1} - x_i of the last four x,   Gram_ij = <u_i, u_j> + (1e-6 tr / 3 + 1e-10) I
        c = Gram^-1 1 / sum,   g_i = sum_{j >= i} c_j
        x <- x + d,   d = -0.875 sum_i g_i u_i, at most 0.001 |x| long
    pulses (43):
        broad    W <- W - 0.005 (W - W_2000) at 2400
        trail    d_t = (W - W_anchor) + d_{t-1}, anchored at 2650;  W <- W - 0.04 d at 2750,
                 new anchor;  W <- W - 0.12 d at 2850
        phase    v = W - W_2750, a = v - (W_2750 - W_2650), h = a - (<a, v> / <v, v>) v
                 W <- W + 0.01 h |v| / |h| at 2850
        anchor   W <- W + 0.08 (W_2400 - W) at 2850

Textbook reduced-rank extrapolation has g_i = sum_{j <= i} c_j: the result's pulls back.

Source: results 34 and 43 of modded-nanogpt's track 3 (2026).
Deviations: none; 43's phase is taken behind its trail.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from polarlight.hooks.averaging import Averaged, Memory
from polarlight.leaderboard.parts import Clock
from polarlight.linalg.matrices import at_least_float32
from polarlight.lookup import check_count

KEPT = 4
"""Weights that the extrapolation looks back on."""

Vector = Sequence[Tensor]
"""Tensors that are one vector."""


def inner(x: Vector, y: Vector) -> float:
    """Return the inner product of two vectors; waits for the device."""
    parts = [(a.double() * b.double()).sum() for a, b in zip(x, y, strict=True)]
    return sum(float(_whole(part)) for part in parts)


def _whole(x: Tensor) -> Tensor:
    """Return a sum over all shards."""
    whole: Any = getattr(x, "full_tensor", None)
    return x if whole is None else whole()


class Extrapolation(Memory):
    """Weights moved along a combination of their last three changes.

    Args:
        averaged: Named weights, one vector together.
        start: Step, counted from 1, from which on weights are kept.
        last: Last step that may extrapolate.
        every: Steps between two extrapolations.
        scale: Part of the combination that is taken.
        most: Longest move, over the norm of the weights.
    """

    def __init__(
        self,
        averaged: Averaged,
        *,
        start: int,
        last: int,
        every: int = 5,
        scale: float = 0.875,
        most: float = 1e-3,
    ) -> None:
        super().__init__(averaged, [str(i) for i in range(KEPT)])
        check_count("every", every)
        self.start, self.last, self.every = start, last, every
        self.scale, self.most = scale, most

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step, and move them where it is time."""
        super().update()
        if not self.start <= self.steps <= self.last:
            return
        self._push()
        due = self.steps > self.start and (self.steps - self.start) % self.every == 0
        if due and self.kept["0"]:
            self._extrapolate()
            for i in range(KEPT):
                self.kept[str(i)] = {}
            self._push()

    def _push(self) -> None:
        """Keep a copy of the weights as the newest of four."""
        for i in range(KEPT - 1):
            self.kept[str(i)] = self.kept[str(i + 1)]
        self.copy_now(str(KEPT - 1))

    def _extrapolate(self) -> None:
        x = [list(self.kept[str(i)].values()) for i in range(KEPT)]
        move = extrapolation(x, self.scale, self.most)
        for p, d in zip(self.parameters.values(), move, strict=True):
            p.add_(d.to(p.dtype))


def extrapolation(x: Sequence[Vector], scale: float = 0.875, most: float = 1e-3) -> list[Tensor]:
    """Return the move d of the newest of some vectors.

    Args:
        x: Vectors, oldest first.
        scale: Part of the combination that is taken.
        most: Longest move, over the norm of the newest vector.
    """
    u = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(x)]
    n = len(u)
    gram = torch.tensor([[inner(a, b) for b in u] for a in u], dtype=torch.float64)
    gram += (1e-6 * gram.trace() / n + 1e-10) * torch.eye(n, dtype=torch.float64)
    c = torch.linalg.solve(gram, torch.ones(n, dtype=torch.float64))
    c /= c.sum()
    g = c.flip(0).cumsum(0).flip(0).tolist()  # g_i = sum over j >= i
    d = [
        sum((-scale * g[i] * u[i][k] for i in range(n)), torch.zeros_like(u[0][k]))
        for k in range(len(u[0]))
    ]
    length, size = (inner(v, v) ** 0.5 for v in (d, x[-1]))
    shrink = min(1.0, most * size / length) if length else 0.0
    return [shrink * v for v in d]


class Pulses(Memory):
    """Result 43's changes of weights at six steps.

    Args:
        averaged: Named weights: all but the embedding.
        other: Names of the block matrices that are no value or output projections.
        clock: Steps of the full run to those of this one.
    """

    def __init__(self, averaged: Averaged, other: frozenset[str], clock: Clock) -> None:
        super().__init__(averaged, ("w2000", "w2400", "anchor", "before_anchor", "trail"))
        self.other, self.clock = other, clock

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step, and change them where it is time."""
        super().update()
        for at, kept in ((2000, "w2000"), (2400, ""), (2650, "anchor")):
            if self._is(at):
                self.copy_now(kept) if kept else self._broad()
        if self._is(2750):
            self._trail()
        if self._is(2850):
            self._last()

    def _is(self, step: int) -> bool:
        """Tell whether this is a step of the full run, at least 1."""
        return self.steps == max(self.clock(step), 1)

    def _broad(self) -> None:
        """Move back a little, then keep the weights of this step."""
        for name, p in self.parameters.items():
            if name in self.other and self.kept["w2000"]:
                w = at_least_float32(p.detach())
                p.copy_(w - 0.005 * (w - self.kept["w2000"][name]))
        self.copy_now("w2400")

    def _trail(self) -> None:
        """Move back a little, and keep a new anchor."""
        self._pull(0.04, {})
        self.kept["before_anchor"] = self.kept["anchor"]
        self.copy_now("anchor")

    def _pull(self, strength: float, before: dict[str, Tensor]) -> None:
        """Move against the way since the anchor, and keep that way."""
        for name, p in self.parameters.items():
            if self.kept["anchor"]:
                w = at_least_float32(p.detach())
                d = w - self.kept["anchor"][name]
                d = d + before[name] if name in before else d
                self.kept["trail"][name] = d
                p.copy_(w - strength * d)

    def _last(self) -> None:
        """Trail, phase and anchor of the last change."""
        self._pull(0.12, dict(self.kept["trail"]))
        for name, p in self.parameters.items():
            w = at_least_float32(p.detach())
            if name in self.other and self.kept["before_anchor"]:
                kept = self.kept["before_anchor"][name], self.kept["anchor"][name]
                w = w + 0.01 * phase(*kept, w)
            if self.kept["w2400"]:
                w = w + 0.08 * (self.kept["w2400"][name] - w)
            p.copy_(w)


def phase(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Return the turn of the way first -> second -> third, as long as its second half."""
    v = third - second
    a = v - (second - first)
    square = (v * v).sum()
    h = a - (a * v).sum() / torch.where(square == 0, 1.0, square) * v
    size = h.norm()
    turn: Tensor = h * (v.norm() / torch.where(size == 0, 1.0, size))
    return turn
