"""Guard against gradients with a NaN or an Inf, without waiting for a device.

By default such a parameter is left out of the step, weight and state, as if it had no gradient.

- On an accelerator, or in a graph of `torch.compile`, gradients get a flag on their device. The
  step selects by it (`masked.py`), and counts are kept there too.
- Gradients in the host's memory are tested batch by batch, just before the batch's momenta read
  them: they are then in the cache.
- Shards are tested on every process of their mesh before anything is written
  (`shared_gradients.py`).

The host waits for a device, one transfer per group, only where it has to: under `RAISE`, for rules
with a counter on the host (`HOST_COUNTER`: SOAP and its kin), and in steps that a probe observes.

AdamW squares its gradients. For elementwise rules a gradient whose sum of squares overflows (norm
beyond 1.8e19 in float32) counts as non-finite too: it would leave an infinite second moment, and a
parameter that never moves again.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from polarlight.execution.param_task import local_gradient
from polarlight.linalg import foreach
from polarlight.optimizer.masked import FiniteMask, State
from polarlight.optimizer.param_groups import ActiveParams, Group, name_of
from polarlight.rule import HOST_COUNTER, UpdateRule


class NonFinite(StrEnum):
    """Policy for a gradient that is not finite."""

    SKIP = "skip"
    """Leave its parameter out of this step and count it; the others move. The default."""
    RAISE = "raise"
    """Raise FloatingPointError with its name before anything has moved. Waits for the device."""
    PROPAGATE = "propagate"
    """Use it: its own parameter and state become NaN, the others are untouched."""


class NonFiniteGuard:
    """Finds non-finite gradients, leaves their parameters out of a step, and counts them.

    Attributes:
        policy: What to do about a non-finite gradient; may be changed at any time.
    """

    def __init__(self, policy: NonFinite) -> None:
        self.policy = policy
        self._skipped_on_host: Counter[tuple[int, int]] = Counter()
        self._skipped_on_device: dict[tuple[int, torch.device], Tensor] = {}

    def allocate_counts(self, groups: Sequence[Group]) -> None:
        """Allocate skip counts on every device, outside of a graph that will add to them."""
        for i, group in enumerate(groups):
            for device in {p.device for p in group["params"]}:
                self._device_counts(i, device, len(group["params"]))

    def flag_nonfinite(
        self,
        groups: Sequence[Group],
        active: ActiveParams,
        states: Mapping[Tensor, State],
        *,
        sharded: Sequence[Collection[int]],
        elsewhere: Collection[tuple[int, int]] = (),
        wait: bool,
    ) -> dict[int, FiniteMask]:
        """Return one mask per group; remove from `active` what the host knows to be non-finite.

        Plain gradients in the host's memory are left to `drop_nonfinite_on_host`, but for RAISE.

        Args:
            groups: The param groups.
            active: Param indices with a gradient, by group; changed in place.
            states: State of each parameter.
            sharded: Param indices of parameters that processes hold together, by group.
            elsewhere: Those of them, by group, whose gradient is not finite on some process.
            wait: Whether the host may wait for a transfer per group, as for a probe.

        Raises:
            FloatingPointError: If the policy is RAISE and a gradient is not finite.
        """
        if self.policy is NonFinite.PROPAGATE:
            return dict.fromkeys(active)
        if self.policy is NonFinite.RAISE:
            _raise_if_nonfinite(groups, active, sharded, elsewhere)
            return dict.fromkeys(active)
        for i, param_indices in active.items():
            self._drop(i, param_indices, sorted(k for group, k in elsewhere if group == i))
        masks: dict[int, FiniteMask] = {}
        for i, param_indices in active.items():
            group = groups[i]
            # A rule that branches on a counter on the host has to know before it runs.
            waits = wait or (
                isinstance(group["rule"], UpdateRule)
                and any(HOST_COUNTER in states[group["params"][k]] for k in param_indices)
            )
            masks[i] = self._flag_group(i, group, param_indices, sharded[i], waits)
        return masks

    def drop_nonfinite_on_host(
        self, groups: Sequence[Group], batch: ActiveParams, sharded: Sequence[Collection[int]]
    ) -> None:
        """Remove from `batch` plain parameters whose gradient in host memory is not finite."""
        if self.policy is not NonFinite.SKIP:
            return
        for i, param_indices in batch.items():
            params, squares = groups[i]["params"], _squares(groups[i])
            plain = [k for k in param_indices if k not in sharded[i]]
            for device, on_device, gradients in gradients_by_device(params, plain):
                if is_host_readable(device):
                    known = finite_on_host(gradients, squares)
                    bad = [k for k, ok in zip(on_device, known, strict=True) if not ok]
                    self._drop(i, param_indices, bad)

    def skipped(self, groups: Sequence[Group]) -> dict[str, int]:
        """Return how many steps left each parameter out, by name; zero counts are absent."""
        counts = Counter(self._skipped_on_host)
        for (i, _), on_device in self._skipped_on_device.items():
            counts.update({(i, k): n for k, n in enumerate(on_device.tolist()) if n})
        by_name: Counter[str] = Counter()
        for (i, k), n in sorted(counts.items()):
            if i < len(groups) and k < len(groups[i]["params"]):  # unless it was removed since
                by_name[name_of(groups[i], i, k)] += n
        return dict(by_name)

    def _flag_group(
        self,
        i: int,
        group: Group,
        param_indices: list[int],
        sharded: Collection[int],
        wait: bool,
    ) -> FiniteMask:
        """Return flags of plain gradients on devices that the host cannot read without waiting.

        With `wait` the host waits: non-finite ones are removed from `param_indices` instead.
        Shards need no flag; their processes have exchanged theirs.
        """
        plain = [k for k in param_indices if k not in sharded]
        if all(map(is_host_readable, {group["params"][k].device for k in plain})):
            return None
        mask: dict[int, Tensor] = {}
        for device, on_device, gradients in gradients_by_device(group["params"], plain):
            if is_host_readable(device):
                continue
            if wait:
                known = finite_on_host(gradients, _squares(group))
                bad = [k for k, ok in zip(on_device, known, strict=True) if not ok]
                self._drop(i, param_indices, bad)
                continue
            flags = finite_flags(gradients, _squares(group))  # bool [len(on_device)]
            mask.update(zip(on_device, flags.unbind(), strict=True))
            counts, nonfinite = self._device_counts(i, device, len(group["params"])), ~flags
            if len(on_device) == len(counts):
                counts += nonfinite
            else:
                for k, one in zip(on_device, nonfinite.unbind(), strict=True):
                    counts[k] += one
        return mask or None

    def _drop(self, i: int, param_indices: list[int], nonfinite: Sequence[int]) -> None:
        """Remove parameters from a group's list of active ones, and count them on the host."""
        for k in nonfinite:
            self._skipped_on_host[i, k] += 1
            param_indices.remove(k)

    def _device_counts(self, i: int, device: torch.device, size: int) -> Tensor:
        """Return the skip counts of one group on one device, int64 [size]."""
        key = (i, device)
        if key not in self._skipped_on_device or len(self._skipped_on_device[key]) != size:
            self._skipped_on_device[key] = torch.zeros(size, dtype=torch.int64, device=device)
        return self._skipped_on_device[key]


def is_host_readable(device: torch.device) -> bool:
    """Return whether the host can read the device's tensors now without waiting."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def gradients_by_device(
    params: Sequence[Tensor], param_indices: Sequence[int], sharded: Collection[int] = ()
) -> Iterator[tuple[torch.device, list[int], list[Tensor]]]:
    """Yield each device with the param indices on it and their local gradients."""
    found: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
    for k in param_indices:
        gradient = params[k].grad
        if gradient is not None:
            gradient = local_gradient(params[k]) if k in sharded else gradient
            device = gradient.device
            if device not in found:
                found[device] = ([], [])
            found[device][0].append(k)
            found[device][1].append(gradient)
    for device, (on_device, gradients) in found.items():
        yield device, on_device, gradients


def finite_on_host(gradients: Sequence[Tensor], squares: bool) -> list[bool]:
    """Return `finite_flags` as Python bools, in one transfer."""
    if is_host_readable(gradients[0].device) and not squares:
        # A finite sum has finite terms, and is the cheapest to compute; a sum may also overflow.
        sums = torch.stack([foreach.as_plain(g.sum()) for g in gradients]).tolist()
        if all(map(math.isfinite, sums)):
            return [True] * len(gradients)
    return list(finite_flags(gradients, squares).tolist())


def finite_flags(gradients: Sequence[Tensor], squares: bool) -> Tensor:
    """Return a bool [n]: whether each of n gradients on one device is finite.

    With `squares`, the sum of squares has to be finite as well.
    """
    if squares:
        wide = [torch.float64 if g.dtype == torch.float64 else torch.float32 for g in gradients]
        norms = [
            torch.linalg.vector_norm(g, dtype=dtype)
            for g, dtype in zip(gradients, wide, strict=True)
        ]
        return torch.stack([foreach.as_plain(norm) for norm in norms]).isfinite()
    on_gpu = gradients[0].device.type == "cuda" and foreach.have_kernels(gradients)
    if on_gpu and all(g.numel() for g in gradients):
        return torch.stack(torch._foreach_norm(list(gradients), float("inf"))).isfinite()
    return torch.stack([foreach.as_plain(g.isfinite().all()) for g in gradients])


def nonfinite_indices(group: Group, param_indices: Sequence[int]) -> list[int]:
    """Return the param indices whose plain gradient is not finite; waits for the device."""
    return [
        k
        for _, on_device, gradients in gradients_by_device(group["params"], param_indices)
        for k, ok in zip(on_device, finite_on_host(gradients, _squares(group)), strict=True)
        if not ok
    ]


def finite_of(groups: Sequence[Group], pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return a bool [n]: whether the local gradient of each parameter is finite.

    Stays on the device of the gradients; the host waits for its own memory alone.

    Args:
        groups: The param groups.
        pairs: Group index and param index of n parameters with a gradient.
    """
    found: dict[tuple[int, int], Tensor] = {}
    for i in dict.fromkeys(i for i, _ in pairs):
        group, param_indices = groups[i], [k for j, k in pairs if j == i]
        for device, on_device, gradients in gradients_by_device(
            group["params"], param_indices, param_indices
        ):
            if is_host_readable(device):
                flags = torch.tensor(finite_on_host(gradients, _squares(group)))
            else:
                flags = finite_flags(gradients, _squares(group))
            found.update(zip([(i, k) for k in on_device], flags.unbind(), strict=True))
    device = found[pairs[0]].device
    return torch.stack([found[pair].to(device) for pair in pairs])


def _squares(group: Group) -> bool:
    """Return whether the group's rule squares its gradients."""
    return not isinstance(group["rule"], UpdateRule)


def _raise_if_nonfinite(
    groups: Sequence[Group],
    active: ActiveParams,
    sharded: Sequence[Collection[int]],
    elsewhere: Collection[tuple[int, int]],
) -> None:
    """Raise FloatingPointError with the names of all parameters with a non-finite gradient."""
    found = set(elsewhere)
    for i, param_indices in active.items():
        plain = [k for k in param_indices if k not in sharded[i]]
        found |= {(i, k) for k in nonfinite_indices(groups[i], plain)}
    if found:
        names = [name_of(groups[i], i, k) for i, k in sorted(found)]
        raise FloatingPointError(
            f"the gradient of {', '.join(names)} is not finite; nothing was changed. "
            "NonFinite.SKIP leaves such parameters out of the step"
        )
