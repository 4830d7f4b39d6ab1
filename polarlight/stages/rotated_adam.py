"""Adam in the eigenbases of two Kronecker factors: the stage behind SOAP and KL-SOAP.

Which work falls due is decided by a counter on the host (`rule.HOST_COUNTER`), one per matrix,
saved and loaded with the state: a decomposition that were computed in every step and thrown away in
nine of ten would cost more than the method itself. Counters of one batch may differ; then only the
members that are due are taken out and worked on. Nothing of the gradients decides a branch.

The second moment does not turn with the bases. Where a refresh turns them onto coordinates that
had next to no gradient, a direction is as large as the floor lets it be, up to about 1 / eps; the
code's eps is absolute and bounds less. It takes gradients that share no direction, refreshed in
every step (`tests/rules/test_soap.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from polarlight.linalg.isolation import isolated
from polarlight.linalg.properties import (
    LEFT,
    LEFT_SIGNED,
    NO_INVARIANTS,
    RIGHT,
    RIGHT_SIGNED,
    ROTATIONS,
    SIGNED,
    SIZES_IGNORED,
    Invariants,
    Symmetries,
    Symmetry,
)
from polarlight.linalg.rest import PER_MATRIX, SIZES, moving
from polarlight.linalg.slot import GRADIENT, Buffers, Stage
from polarlight.lookup import check_betas, check_count
from polarlight.registry import registered
from polarlight.rule import HOST_COUNTER
from polarlight.stages.adam import adam_direction, check_eps
from polarlight.stages.eigenbasis import PowerIteration, starting_basis
from polarlight.stages.factors import SIDES, Factors, GramFactors, live_entries
from polarlight.stages.statistics import batch_shapes, in_units, norm_of_any_size

BatchBuffers = dict[str, Tensor]
"""Buffers and `gradient` of some matrices, each [b, p, q]."""


class Due(Enum):
    """Work that the bases of a matrix need in a call."""

    START = "start"
    REFRESH = "refresh"
    NOTHING = "nothing"


@registered(
    "RotatedAdam", stateful=True, may_differ=("betas", "refresh", "every", "eps", "bias_correction")
)
@dataclass(frozen=True, slots=True)
class RotatedAdam(Stage):
    """Q_L D Q_R' with D = Adam of Q_L' G Q_R; the gradient G comes from `RawGradient`.

    Shapes: [..., m, n] -> [..., m, n]. State: `first_moment` and `second_moment` [..., m, n] in the
    bases, `left_basis`, `right_basis`, the factors' buffers, `unit` [..., 1, 1], `momentum_sizes`
    [..., 1, 2], `step` on the host. The first call sets the bases and returns zero (unless
    `at_once`), so that no gradient is seen in a basis of its own making; every later one rotates,
    steps, and only then lets factors and bases follow. A row or column without any gradient so far
    stays at rest, and so does a matrix whose first moment is (`linalg/rest.py`).

    Cost per call: products of about 6 m n (m + n) flops; every `every` calls two QR factors. The
    products want full float32: eigenvectors do not survive TF32.

    Args:
        betas: Adam's decay rates, in [0, 1).
        factors: The statistic whose eigenvectors are the bases.
        refresh: How the bases follow it.
        every: Calls between two refreshes, at least 1.
        eps: Adam's floor, as a fraction of the root mean square of the second moment's root.
        bias_correction: Divide the moments by 1 - beta^t.
        max_side: A longer side keeps its own coordinates.
        at_once: Set the bases before the first direction instead of after it, so that the first
            call moves, in bases of its own gradient.
        due: Work of the bases in this call; None asks the counter. Set by `at_step`.
    """

    betas: tuple[float, float] = (0.95, 0.95)
    factors: Factors = GramFactors()
    refresh: PowerIteration = PowerIteration()
    every: int = 10
    eps: float = 1e-8
    bias_correction: bool = True
    max_side: int = 10_000
    at_once: bool = False
    due: Due | None = None

    def __post_init__(self) -> None:
        check_betas("betas", self.betas)
        check_eps(self.eps)
        check_count("every", self.every)
        if self.max_side < 0:
            raise ValueError(f"max_side must be >= 0, got {self.max_side}")

    def buffer_shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Return moments and the sizes of the first, factors, bases, unit and counter."""
        *batch, m, n = shape
        sizes = {HOST_COUNTER: (1, 1), "unit": (1, 1), SIZES: PER_MATRIX}
        sizes |= {"first_moment": (m, n), "second_moment": (m, n)}
        for side, length in zip(SIDES, (m, n), strict=True):
            if length <= self.max_side:
                sizes |= {f"{side}_basis": (length, length)} | self.factors.sizes(side, length)
        return batch_shapes(batch, sizes)

    @isolated
    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Return the direction; update all buffers."""
        members = {name: as_batch(buffer) for name, buffer in buffers.items()}
        step = members.pop(HOST_COUNTER)
        G = in_units(X.reshape(-1, *X.shape[-2:]), members["unit"])  # [b, m, n]
        # Factors first, then a direction in the old bases, then new bases for the next step.
        members[GRADIENT] = G
        self.factors.update(G, members)
        if self.at_once:
            do_due(self.due, step, members, start=self._start)
        direction = self._direction(G, members, step)
        start = None if self.at_once else self._start
        do_due(self.due, step, members, start=start, refresh=self._follow, every=self.every)
        step.add_(1)
        return direction.reshape(X.shape).to(X.dtype)

    def _direction(self, G: Tensor, members: BatchBuffers, step: Tensor) -> Tensor:
        """Return Adam's direction in the bases, rotated back; zero for members without bases."""
        left, right = (members.get(f"{side}_basis") for side in SIDES)
        rotated = rotate(G, left, right)  # [b, m, n], Left' G Right
        if self.at_once:  # in its own bases a gradient is diagonal; the rest is rounding
            diagonal = torch.eye(*G.shape[-2:], dtype=G.dtype, device=G.device)
            rotated = rotated * on_device(step > 0, G).maximum(diagonal)
        else:
            rotated = rotated * on_device(step > 0, G)
        moments = members["first_moment"], members["second_moment"]
        D = adam_direction(rotated, *moments, self.betas, self.eps)
        D = D * moving(norm_of_any_size(moments[0]), members[SIZES])  # which no basis changes
        if self.bias_correction:
            D = D * on_device(bias_correction(step + self.at_once, self.betas), G)
        turned_back = rotate(D, *(None if Q is None else Q.mT for Q in (left, right)))
        return turned_back * live_entries(G, members)

    def at_step(self, t: int) -> "RotatedAdam":
        """Return the stage that starts, refreshes or keeps its bases, as it does at count t."""
        return replace(self, due=due_at(t, self.every))

    def _start(self, members: BatchBuffers) -> None:
        """Set bases and factors from the first gradient."""
        start_bases(members)
        self.factors.start(members[GRADIENT], members)

    def _follow(self, members: BatchBuffers) -> None:
        """Refresh the bases; rotate the first moment with them, only reorder the second one."""
        follow_bases(members, self.refresh)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return rotations on the sides that have bases, as far as these turn with the gradient."""
        if min(m, n) > self.max_side:
            return SIGNED | SIZES_IGNORED
        if max(m, n) > self.max_side:
            return LEFT | RIGHT_SIGNED if m < n else RIGHT | LEFT_SIGNED
        return basis_symmetries(m, n)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return NO_INVARIANTS

    def moves(self, m: int, n: int) -> bool:
        """Return whether the first call does more than set the bases."""
        return self.at_once

    def __str__(self) -> str:
        return f"Adam in eigenbases that follow every {self.every} steps"


def basis_symmetries(m: int, n: int) -> Symmetries:
    """Return the symmetries of a method in two bases that start from the first gradient.

    That gradient chooses min(m, n) vectors of each. Where the longer side needs two or more beyond
    them, these are an arbitrary choice and do not turn with it.
    """
    turning, fixed = (LEFT, RIGHT_SIGNED) if m < n else (RIGHT, LEFT_SIGNED)
    negated = {Symmetry.LEFT_SIGNS, Symmetry.RIGHT_SIGNS}
    return ROTATIONS if abs(m - n) <= 1 else turning | (fixed & negated)


def start_bases(members: BatchBuffers) -> None:
    """Set each basis to the singular vectors of `gradient`, largest singular value first."""
    G = members[GRADIENT]
    for side, X in zip(SIDES, (G, G.mT), strict=True):
        if f"{side}_basis" in members:
            members[f"{side}_basis"].copy_(starting_basis(X))


def follow_bases(members: BatchBuffers, refresh: PowerIteration) -> None:
    """Refresh each basis by its factor; what is kept in the bases follows.

    A `first_moment` is rotated, exactly. A `second_moment` and eigenvalues have no rotation: they
    are reordered as the vectors are.
    """
    for side in SIDES:
        if f"{side}_basis" not in members:
            continue
        old = members[f"{side}_basis"]
        new, order = refresh(members[f"{side}_factor"], old)
        order = order.unsqueeze(-1)  # [b, side, 1], of the old vectors
        kept = {
            name: members[name] if side == "left" else members[name].mT
            for name in ("first_moment", "second_moment")
            if name in members
        }
        if "first_moment" in kept:  # out of the old basis, into the new one
            kept["first_moment"].copy_(new.mT @ (old @ kept["first_moment"]))
        kept["second_moment"].copy_(kept["second_moment"].take_along_dim(order, dim=-2))
        eigenvalues = members.get(f"{side}_eigenvalues")
        if eigenvalues is not None:
            eigenvalues.copy_(eigenvalues.take_along_dim(order, dim=-2))
        old.copy_(new)


def due_at(t: int, every: int) -> Due:
    """Return the work due at count t: a start at 0, a refresh every `every` calls after it."""
    return Due.START if t == 0 else Due.NOTHING if t % every else Due.REFRESH


def do_due(
    due: Due | None,
    step: Tensor,
    members: BatchBuffers,
    *,
    start: Callable[[BatchBuffers], None] | None = None,
    refresh: Callable[[BatchBuffers], None] | None = None,
    every: int = 1,
) -> None:
    """Start or refresh members in place where due; with `due` given, all of them alike.

    Args:
        due: Work of all members; None asks the counters.
        step: Counters [b, 1, 1] on the host.
        members: Buffers [b, p, q] of the members, and their gradient.
        start: Work at count 0, if any.
        refresh: Work every `every` counts after 0, if any.
        every: Counts between two refreshes.
    """
    if start is not None:
        if due is None:
            for_some(step == 0, start, members)
        elif due is Due.START:
            start(members)
    if refresh is not None:
        if due is None:
            for_some((step > 0) & (step % every == 0), refresh, members)
        elif due is Due.REFRESH:
            refresh(members)


def rotate(X: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Return Left' X Right, with None for the identity."""
    X = X if left is None else left.mT @ X
    return X if right is None else X @ right


def bias_correction(step: Tensor, betas: tuple[float, float]) -> Tensor:
    """Return sqrt(1 - beta2^t) / (1 - beta1^t), on the host in float64; 0 counts as t = 1."""
    t = step.double().clamp_min(1)
    return (1 - betas[1] ** t).sqrt() / (1 - betas[0] ** t)


def on_device(x: Tensor, like: Tensor) -> Tensor:
    """Return a few host numbers on the device of `like`, without waiting for it."""
    return x.to(like.device, like.dtype, non_blocking=True)


def as_batch(buffer: Tensor) -> Tensor:
    """Return [..., p, q] as [b, p, q], a view that writes through."""
    return buffer.view(-1, *buffer.shape[-2:])


def for_some(mask: Tensor, change: Callable[[BatchBuffers], None], members: BatchBuffers) -> None:
    """Apply `change` in place to the members [b, ...] that `mask` [b, 1, 1], on the host, names."""
    if mask.all():
        change(members)
    elif mask.any():
        chosen = mask.flatten().nonzero().flatten()
        index = chosen.to(members[GRADIENT].device, non_blocking=True)
        part = {name: tensor.index_select(0, index) for name, tensor in members.items()}
        change(part)
        for name, tensor in part.items():
            members[name].index_copy_(0, index, tensor)
