"""DiLoCo: workers train apart for a round, then one outer step on their average.

    D = sum_k w_k (W - W_k)                     W_k: worker k's weights, which began at W
    u <- b u + e D,   W <- W - b u - e D        outer Nesterov; every worker continues from W

A worker is any model under any optimizer. With AdamW inside this is DiLoCo, with Muon or another
spectral rule MuLoCo; their state stays with them. Workers are processes that exchange one average
per round (`group`), or models in one process (simulated clients), or both.

    outer = Outer(model, every=30, group=torch.distributed.group.WORLD)
    for batch in data:                          backward, inner.step(), inner.zero_grad(), then
        outer.step()                            every 30th call ends a round

Client-sampled orthogonalised momentum is the same round with gradients in place of displacements
and a polar factor as the outer step. Its stability argument needs a Lipschitz map, not an exact
polar factor:

    rule = muon(nesterov=False, polar=RegularisedPolar(1e-2), scale=Unscaled())
    outer = Outer(*clients, every=1, contribution=client_gradient,
                  optimizer=partial(SpectralOptimizer, lr=0.02, rule=rule))
    outer.step(sample_clients(shares, 10, generator))

Source: DiLoCo: Douillard et al. (2023), arXiv 2311.08105. MuLoCo: (2025), arXiv 2505.23725. Client
sampling: (2026), arXiv 2606.01720, of which only summaries were read.
Deviations: u is kept divided by e, as in torch, which is the same as long as e does not change.
Clients are drawn uniformly. The damping of `RegularisedPolar` is relative, so that an average of
gradients and their sum have the same direction.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polarlight.execution.param_task import is_sharded, local_gradient, to_local
from polarlight.execution.sharded import collectives
from polarlight.execution.sharded.faults import SharedStep
from polarlight.linalg.matrices import at_least_float32
from polarlight.lookup import (
    arguments_checked,
    check_callable,
    check_count,
    check_number,
    described,
)

__all__ = ["Outer", "OuterNesterov", "client_gradient", "displacement", "sample_clients"]

Named = list[tuple[str, nn.Parameter]]
Contribution = Callable[[Tensor, Tensor], Tensor]
"""(anchor, worker's parameter) -> local tensor to subtract from the anchor."""


def displacement(anchor: Tensor, parameter: Tensor) -> Tensor:
    """Return anchor minus parameter: a worker's movement in the round, negated.

    The worker began at the anchor in its own dtype: a bfloat16 worker that does not move
    contributes zero.
    """
    start, p = to_local(anchor), to_local(parameter)
    return start.to(p.dtype).to(start.dtype) - p.to(start.dtype)


def client_gradient(anchor: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a client's local gradient; zeros where it has none."""
    start = to_local(anchor)
    if parameter.grad is None:
        return torch.zeros_like(start)
    return local_gradient(parameter).to(start.dtype, copy=True)


@dataclass(frozen=True, slots=True)
class OuterNesterov:
    """Factory of DiLoCo's outer optimizer: torch's SGD with Nesterov momentum.

    Args:
        lr: The outer learning rate e, >= 0; 1 without momentum is the workers' mean.
        momentum: The outer momentum b, in [0, 1). DiLoCo's usual value is the default; the
            modded-nanogpt record with one worker and rounds of 30 steps had 0.5.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_number("the outer lr", self.lr)
        check_number("the outer momentum", self.momentum)
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"the outer lr must be >= 0 and finite, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"the outer momentum must lie in [0, 1), got {self.momentum}")

    def __call__(self, named: Named) -> Optimizer:
        """Return SGD on these parameters, with its momentum buffers allocated."""
        momentum = self.momentum
        optimizer = torch.optim.SGD(named, self.lr, momentum, nesterov=momentum > 0)
        if momentum > 0:
            for _, p in named:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer


@arguments_checked
def sample_clients(
    shares: Sequence[float], count: int, generator: torch.Generator | None = None
) -> list[float]:
    """Draw clients and return weights for `Outer.step`, equal to `shares` on average.

    `count` clients are drawn uniformly without replacement; a drawn one has its share times
    len(shares) / count, the others 0. The weights of equal shares have the same sum in every round,
    others on average only. Processes with equally seeded generators draw the same clients; each
    passes on the weights of its own.

    Args:
        shares: Weight of each client, >= 0: its part of the data, for example.
        count: Number of clients to draw, from 1 to len(shares).
        generator: Random generator on the CPU; None takes torch's default.
    """
    clients = len(shares)
    if not 1 <= count <= clients:
        raise ValueError(f"count must lie in [1, {clients}], the number of clients, got {count}")
    _check_weights("shares", shares)
    drawn = set(torch.randperm(clients, generator=generator)[:count].tolist())
    return [share * clients / count if i in drawn else 0.0 for i, share in enumerate(shares)]


class Outer:
    """End a round every `every` steps: sum contributions, step the anchor, reset all workers.

    Args:
        workers: Models (or their named parameters) with equal weights: one per process, or several
            simulated clients. Only trainable parameters take part; buffers of modules do not.
        every: Steps of a round, H in the papers; at least 1.
        optimizer: Constructor of the outer optimizer from named parameters, such as
            `OuterNesterov(lr, momentum)`.
        contribution: A worker's contribution: `displacement` (DiLoCo) or `client_gradient`.
        group: The process group of the workers; None for one process. For sharded workers
            (DTensors) the mesh's other dimension: `mesh["workers"].get_group()`.

    Create it when the weights are loaded and sharded, before the first inner step. Memory: a copy
    of the weights in at least float32 (the anchor), the outer optimizer's state, and one sum during
    the outer step. Traffic: one all-reduce of that sum per round, and of three numbers. Inner
    optimizers keep their momenta.

    Attributes:
        optimizer: The outer optimizer; its groups take schedules.
        rounds: Number of finished rounds.
        taken: Steps taken in the present round.
        left_out: Number of contributions with a NaN or Inf, of all workers and rounds. Such a
            worker has no part in its round's sum and goes on from the anchor; the weights of the
            others are scaled to the same sum. If none is left, or if a sum of finite contributions
            overflows, the anchor stays as it is.

    Raises:
        ValueError: If no worker is given, workers differ, or an argument is outside its range.
        RuntimeError: In the first round's end, if processes differ in their settings or began from
            different weights; on all of them, with the first difference. In any round's end, if a
            process is gone or a round failed before; the message names its rank where it can.
    """

    def __init__(
        self,
        *workers: nn.Module | Iterable[tuple[str, Tensor]],
        every: int,
        optimizer: Callable[[Named], Optimizer] = OuterNesterov(),
        contribution: Contribution = displacement,
        group: Any = None,
    ) -> None:
        check_count("every", every)
        if not callable(optimizer):
            raise TypeError(
                "optimizer must construct the outer optimizer from named parameters, such as "
                f"OuterNesterov(), got {described(optimizer)}"
            )
        check_callable("contribution", contribution, "anchor, parameter", "displacement")
        named = [_trainable(worker) for worker in workers]
        self.names = _common_names(named)
        self.every = every
        self.rounds = 0
        self.taken = 0
        self.left_out = 0
        self._workers = [[p for _, p in parameters] for parameters in named]
        self._anchors = [
            nn.Parameter(at_least_float32(p.detach()).clone()) for p in self._workers[0]
        ]
        self._contribution = contribution
        self._group = group
        self._total = 0 if group is not None else len(self._workers)
        self.optimizer = optimizer(list(zip(self.names, self._anchors, strict=True)))

    def step(self, weights: Sequence[float] | None = None) -> bool:
        """Count one step of the workers; return True if it ended the round.

        Args:
            weights: Weight of each worker of this process at the round's end, >= 0; they need not
                add up to 1. A worker of weight 0 is not read. None weights all workers of all
                processes equally.
        """
        self.taken += 1
        if self.taken < self.every:
            return False
        self.end_round(weights)
        return True

    @torch.no_grad()
    def end_round(self, weights: Sequence[float] | None = None) -> None:
        """End the round now, for a shorter last round; arguments as for `step`."""
        if not self._total:
            self._total = self._compare_processes()
        given = self._weights(weights)
        with SharedStep(self._ranks):
            finite = self._finite_weights(given)
            sums = [] if finite is None else self._sums(finite)
            if not self._is_finite(sums):  # finite contributions may overflow in a sum
                sums = []
        if not sums:
            self._reset_workers()
            return
        for anchor, total in zip(self._anchors, sums, strict=True):
            anchor.grad = (
                collectives.as_dtensor_like(total, anchor) if is_sharded(anchor) else total
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._reset_workers()

    def _ranks(self) -> set[int]:
        """Return the global ranks of the other workers, and of the shards of this one."""
        shards = [p for worker in self._workers for p in worker if is_sharded(p)]
        meshes = [collectives.mesh_of_dtensor(p) for p in shards]
        if self._group is not None:
            meshes.append(collectives.mesh_of_group(self._group, "cpu"))
        return {rank for mesh in meshes if mesh is not None for rank in mesh.ranks}

    def _reset_workers(self) -> None:
        """Copy the anchor to all workers; begin the next round."""
        for worker in self._workers:
            for p, anchor in zip(worker, self._anchors, strict=True):
                p.copy_(anchor)
        self.rounds += 1
        self.taken = 0

    def _finite_weights(self, weights: Sequence[float]) -> Sequence[float] | None:
        """Return weights without workers whose contribution is not finite; None if none is left.

        The weights of the others are scaled to the same sum.
        """
        finite = [
            not weight or self._is_finite(map(self._contribution, self._anchors, worker))
            for worker, weight in zip(self._workers, weights, strict=True)
        ]
        kept = [w if ok else 0.0 for w, ok in zip(weights, finite, strict=True)]
        device = to_local(self._anchors[0]).device
        both = torch.tensor([sum(weights), sum(kept), finite.count(False)], dtype=torch.float64)
        sums = both.to(device)
        if self._group is not None:
            collectives.all_reduce_sum([sums], self._group)
        total, rest, left_out = sums.tolist()
        if not left_out:
            return weights
        self.left_out += int(left_out)
        return [w * total / rest for w in kept] if rest else None

    def _is_finite(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether local tensors of a worker are finite, on all of its processes."""
        flags = [x.isfinite().all() for x in tensors]
        if not flags:
            return True
        bad = (~torch.stack(flags).all()).to(torch.int64).reshape(1)
        shards: dict[Any, Any] = {p.device_mesh: p for p in self._workers[0] if is_sharded(p)}  # type: ignore[attr-defined]
        for p in shards.values():
            if (mesh := collectives.mesh_of_dtensor(p)) is not None:
                bad = collectives.reduce_max(bad.to(mesh.device), mesh)
        return not bad.item()

    def state_dict(self) -> dict[str, Any]:
        """Return anchors by name, the outer optimizer's state and the round's step count.

        Save the workers' own weights and optimizers beside it; within a round each worker's.
        """
        anchors = {n: a.detach() for n, a in zip(self.names, self._anchors, strict=True)}
        counts = {"rounds": self.rounds, "taken": self.taken}
        return {"anchors": anchors, "optimizer": self.optimizer.state_dict(), **counts}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; leave the workers' weights as they are.

        Raises:
            ValueError: If names or shapes differ.
        """
        saved = state_dict["anchors"]
        shapes = {n: tuple(a.shape) for n, a in zip(self.names, self._anchors, strict=True)}
        if (found := {n: tuple(a.shape) for n, a in saved.items()}) != shapes:
            odd = sorted({n for n, _ in found.items() ^ shapes.items()})
            raise ValueError(f"the state dict is of another model: they differ in {odd[0]}")
        for name, anchor in zip(self.names, self._anchors, strict=True):
            anchor.copy_(saved[name])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.rounds, self.taken = state_dict["rounds"], state_dict["taken"]

    def _weights(self, weights: Sequence[float] | None) -> Sequence[float]:
        """Return one weight per worker of this process, 1 / total by default."""
        here = len(self._workers)
        if weights is None:
            return [1 / self._total] * here
        if len(weights) != here:
            raise ValueError(f"{here} workers here need {here} weights, got {len(weights)}")
        _check_weights("weights", weights)
        return weights

    def _sums(self, weights: Sequence[float]) -> list[Tensor]:
        """Return the sum over all processes of each parameter's weighted contributions."""
        sums = [self._sum(i, weights) for i in range(len(self._anchors))]
        if self._group is not None:
            collectives.all_reduce_sum(sums, self._group)
        return sums

    def _sum(self, index: int, weights: Sequence[float]) -> Tensor:
        """Sum this process's weighted contributions to one parameter."""
        anchor = self._anchors[index]
        total = torch.zeros_like(to_local(anchor))
        for worker, weight in zip(self._workers, weights, strict=True):
            if weight:
                total.add_(self._contribution(anchor, worker[index]), alpha=weight)
        return total

    def _compare_processes(self) -> int:
        """Return the number of workers; raise unless all processes agree at the start."""
        here = {"every": self.every, "outer optimizer": repr(self.optimizer)}
        sums = [to_local(a).sum(dtype=torch.float64) for a in self._anchors]
        starts = {
            name: (tuple(a.shape), float(x))
            for name, a, x in zip(self.names, self._anchors, sums, strict=True)
        }
        said = collectives.all_gather_object((len(self._workers), here | starts), self._group)
        for place, (_, theirs) in enumerate(said):
            for key, value in said[0][1].items():
                if theirs.get(key) != value:
                    raise RuntimeError(
                        f"workers must begin alike: {key} is {value} on the group's process 0 and "
                        f"{theirs.get(key, 'missing')} on its process {place} (of weights, shape "
                        "and sum). Seed them alike or broadcast the weights, then make Outer"
                    )
        return sum(count for count, _ in said)


def _trainable(worker: nn.Module | Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Return the named parameters that require a gradient."""
    named = worker.named_parameters() if isinstance(worker, nn.Module) else worker
    return [(name, p) for name, p in named if p.requires_grad]


def _common_names(workers: Sequence[Sequence[tuple[str, Tensor]]]) -> list[str]:
    """Return the parameter names; raise unless all workers have equal parameters.

    Raises:
        ValueError: If there are none or they differ in names, shapes or values.
    """
    if not workers or not workers[0]:
        raise ValueError("Outer needs at least one worker with trainable parameters, got none")
    for place, worker in enumerate(workers[1:], 1):
        if [(n, p.shape) for n, p in worker] != [(n, p.shape) for n, p in workers[0]]:
            raise ValueError(f"worker {place} has other parameters than worker 0")
        for (name, p), (_, first) in zip(worker, workers[0], strict=True):
            if not torch.equal(to_local(p.detach()), to_local(first.detach())):
                raise ValueError(
                    f"workers must begin from equal weights; {name} of worker {place} is not that "
                    "of worker 0: copy.deepcopy one model, or load_state_dict"
                )
    return [name for name, _ in workers[0]]


def _check_weights(what: str, weights: Sequence[float]) -> None:
    """Raise ValueError unless all weights are >= 0 and finite."""
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"{what} must be >= 0 and finite, got {list(weights)}")
