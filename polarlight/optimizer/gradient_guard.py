"""Guard against gradients with a NaN or an Inf, without waiting for a device.

By default such a parameter is left out of the step, weight and state, as if it had no gradient.

- On an accelerator, or in a graph of `torch.compile`, gradients get a flag on their device. The
  step selects by it (`masked.py`), and counts are kept there too.
- Gradients in the host's memory are tested batch by batch, just before the batch's momenta read
  them: they are then in the cache.
- Shards are tested on every process of their mesh before anything is written
  (`shared_gradients.py`).

The host waits for a device, one transfer per group, only where it has to: under `RAISE`, for rules
with a counter on the host (`HOST_COUNTER`: SOAP and its kin), outside of a graph, and in steps that
a probe observes.

AdamW squares its gradients. For elementwise rules a gradient whose sum of squares overflows (norm
beyond 1.8e19 in float32) counts as non-finite too: it would leave an infinite second moment, and a
parameter that never moves again.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from polarlight.execution.param_task import all_to_local
from polarlight.linalg import foreach
from polarlight.linalg.matrices import wide
from polarlight.lookup import Option
from polarlight.optimizer.masked import FiniteMask, State
from polarlight.optimizer.param_groups import ActiveParams, Group, name_of
from polarlight.rule import HOST_COUNTER, UpdateRule

SMALL = 2**12
"""Entries up to which a copy takes less time on a CPU than to call a sum."""


class NonFinite(Option):
    """Policy for a gradient that is not finite."""

    SKIP = "skip"
    """Leave its parameter out of this step and count it; the others move. The default."""
    RAISE = "raise"
    """Raise FloatingPointError with its name before anything has moved. Waits for the device."""
    PROPAGATE = "propagate"
    """Use it: its own parameter and state become NaN, the others are untouched."""


class NonFiniteGuard:
    """Guard that finds non-finite gradients, skips their parameters, and counts skips.

    Attributes:
        policy: What to do about a non-finite gradient; may be changed at any time.
    """

    def __init__(self, policy: NonFinite) -> None:
        """Keep the policy; no step has been skipped."""
        self.policy = policy
        self._skipped_on_host: Counter[tuple[int, int]] = Counter()
        self._skipped_on_device: dict[torch.device, SkipCounts] = {}

    def allocate_counts(self, groups: Sequence[Group]) -> set[torch.device]:
        """Allocate skip counts on the groups' devices, counts so far kept; return the devices."""
        devices = {p.device for group in groups for p in group["params"]}
        sizes, counts = [len(group["params"]) for group in groups], self._skipped_on_device
        if all(device in counts and counts[device].sizes == sizes for device in devices):
            return devices
        places: dict[torch.device, list[tuple[int, int]]] = {}
        for i, group in enumerate(groups):
            for k, p in enumerate(group["params"]):
                places.setdefault(p.device, []).append((i, k))
        for device, on_device in places.items():
            known = counts.get(device)
            if known is None or known.sizes != sizes:
                if known is not None:
                    self._skipped_on_host.update(known.read())
                counts[device] = SkipCounts(groups, device, on_device)
        return devices

    def flag_nonfinite(
        self,
        groups: Sequence[Group],
        active: ActiveParams,
        states: Mapping[Tensor, State],
        *,
        shared: Sequence[Collection[int]],
        nonfinite_ranks: Mapping[tuple[int, int], int] = MappingProxyType({}),
        may_wait: bool,
    ) -> dict[int, FiniteMask]:
        """Return finite masks by group; drop and count known non-finite `active` ones, or raise.

        Masks hold gradients on accelerators. Dropped are shared parameters in `nonfinite_ranks`,
        and, if the host `may_wait`, whatever is found. Plain gradients in host memory are left to
        `drop_nonfinite_on_host`, except under RAISE.

        Args:
            groups: The param groups.
            active: Param indices with a gradient, by group; changed in place.
            states: State of each parameter.
            shared: Param indices of parameters that processes share, by group: they are not tested.
            nonfinite_ranks: Those of them, as (group, param) indices, whose gradient is not finite
                on some process, with the rank of one such process.
            may_wait: Whether the host may wait for a transfer per group, as for a probe.

        Raises:
            FloatingPointError: If the policy is RAISE and a gradient is not finite.
        """
        if self.policy is NonFinite.PROPAGATE:
            return dict.fromkeys(active)
        if self.policy is NonFinite.RAISE:
            _raise_if_nonfinite(groups, active, shared, nonfinite_ranks)
            return dict.fromkeys(active)
        for i, param_indices in active.items():
            self._drop(i, param_indices, sorted(k for group, k in nonfinite_ranks if group == i))
        flagged: list[tuple[int, int]] = []
        for i, param_indices in active.items():
            group = groups[i]
            plain = [k for k in param_indices if k not in shared[i]]
            if all(map(is_host_readable, {group["params"][k].device for k in plain})):
                continue  # tested later, batch by batch
            # A rule that branches on a counter on the host has to know before it runs. In a graph
            # its branches are decided already, and the counter is put back like other buffers.
            waits = may_wait or (
                not torch.compiler.is_compiling()
                and isinstance(group["rule"], UpdateRule)
                and any(HOST_COUNTER in states[group["params"][k]] for k in param_indices)
            )
            if waits:
                self._drop(i, param_indices, nonfinite_indices(group, plain, host_readable=False))
            else:
                flagged += [(i, k) for k in plain]
        return self._flag(groups, active, flagged)

    def drop_nonfinite_on_host(
        self, groups: Sequence[Group], batch: ActiveParams, shared: Sequence[Collection[int]]
    ) -> None:
        """Drop from `batch`, and count, unshared non-finite gradients on the host, under SKIP."""
        if self.policy is not NonFinite.SKIP:
            return
        for i, param_indices in batch.items():
            plain = [k for k in param_indices if k not in shared[i]]
            self._drop(i, param_indices, nonfinite_indices(groups[i], plain, host_readable=True))

    def skipped(self, groups: Sequence[Group]) -> dict[str, int]:
        """Return {parameter name: number of steps that skipped it}, no zeros; waits for devices."""
        counts = Counter(self._skipped_on_host)
        for on_device in self._skipped_on_device.values():
            counts.update(on_device.read())
        by_name: Counter[str] = Counter()
        for (i, k), n in sorted(counts.items()):
            if i < len(groups) and k < len(groups[i]["params"]):  # unless it was removed since
                by_name[name_of(groups[i], i, k)] += n
        return dict(by_name)

    def _flag(
        self, groups: Sequence[Group], active: ActiveParams, pairs: Sequence[tuple[int, int]]
    ) -> dict[int, FiniteMask]:
        """Return {group: {param: flag} or None} of `pairs` on accelerators; count False flags.

        Shards need no flag; their processes have exchanged theirs.
        """
        masks: dict[int, dict[int, Tensor]] = {i: {} for i in active}
        on_devices: dict[torch.device, set[tuple[int, int]]] = {}
        for i, k in pairs:
            device = groups[i]["params"][k].device
            if not is_host_readable(device):
                on_devices.setdefault(device, set()).add((i, k))
        for device, places in on_devices.items():
            if device not in self._skipped_on_device:
                self.allocate_counts(groups)
            counts = self._skipped_on_device[device]
            flags = counts.flag_and_count(groups, places)  # bool [parameters on the device]
            for (i, k), ok in zip(counts.places, flags.unbind(), strict=True):
                if (i, k) in places:
                    masks[i][k] = ok
        return {i: mask or None for i, mask in masks.items()}

    def _drop(self, group_index: int, param_indices: list[int], nonfinite: Sequence[int]) -> None:
        """Remove `nonfinite` from `param_indices` in place; count each as skipped, on the host."""
        for k in nonfinite:
            self._skipped_on_host[group_index, k] += 1
            param_indices.remove(k)


class SkipCounts:
    """Numbers of skipped steps of all parameters on one device, and their flags.

    Attributes:
        places: Pairs (group index, param index), equal shapes of a group side by side, so that the
            flags of a stack lie side by side too.
        sizes: Number of parameters of each group, on any device.
    """

    def __init__(
        self, groups: Sequence[Group], device: torch.device, places: list[tuple[int, int]]
    ) -> None:
        """Store (group, param) places, elementwise last, equal shapes adjacent; counts are zero."""
        self.sizes = [len(group["params"]) for group in groups]
        self.places = sorted(
            places,
            key=lambda place: (
                _squares_gradients(groups[place[0]]),
                place[0],
                groups[place[0]]["params"][place[1]].shape,
            ),
        )
        self._counts = torch.zeros(len(places), dtype=torch.int64, device=device)
        self._finite = torch.zeros((), dtype=torch.float32, device=device)

    def read(self) -> dict[tuple[int, int], int]:
        """Return {(group, param): count} of counts above zero; waits for the device."""
        return {place: n for place, n in zip(self.places, self._counts.tolist(), strict=True) if n}

    def flag_and_count(
        self, groups: Sequence[Group], active: Collection[tuple[int, int]]
    ) -> Tensor:
        """Return bool [places], False at `active` non-finite gradients; increase their counts."""
        measures = [self._finite] * len(self.places)
        for squares in (False, True):
            positions = [
                n
                for n, place in enumerate(self.places)
                if place in active and _squares_gradients(groups[place[0]]) == squares
            ]
            chosen = [self.places[n] for n in positions]
            gradients = [groups[i]["params"][k].grad for i, k in chosen]
            for n, norm in zip(positions, _norms(gradients, squares), strict=True):
                measures[n] = norm
        flags = torch.stack(measures) < math.inf  # False for NaN
        self._counts += flags.logical_not()
        return flags


def is_host_readable(device: torch.device) -> bool:
    """Return whether the device is the CPU, outside of a graph: reading it does not wait."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def gradients_by_device(
    params: Sequence[Tensor], param_indices: Sequence[int], *, local_parts: bool = False
) -> Iterator[tuple[torch.device, list[int], list[Tensor]]]:
    """Yield (device, indices of params with a gradient, gradients or `local_parts`) per device."""
    every = [params[k].grad for k in param_indices]
    indices = [k for k, g in zip(param_indices, every, strict=True) if g is not None]
    gradients = [g for g in every if g is not None]
    local = all_to_local(gradients) if local_parts else gradients
    if len({g.device for g in local}) == 1:  # nearly always
        yield local[0].device, indices, local
        return
    found: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
    for k, gradient in zip(indices, local, strict=True):
        on_device = found.setdefault(gradient.device, ([], []))
        on_device[0].append(k)
        on_device[1].append(gradient)
    for device, (its_indices, its_gradients) in found.items():
        yield device, its_indices, its_gradients


def finite_on_host(gradients: Sequence[Tensor], squares: bool) -> list[bool]:
    """Return a bool per gradient, True if finite (if `squares`, its sum of squares too); waits."""
    if is_host_readable(gradients[0].device) and not squares:
        # A finite sum has finite terms, and is the cheapest to compute; a sum may also overflow.
        parts = _concatenate_small(gradients) if foreach.have_kernels(gradients) else gradients
        sums = torch.stack(list(foreach.all_plain([x.sum() for x in parts]))).tolist()
        if all(map(math.isfinite, sums)):
            return [True] * len(gradients)
    return list(finite_flags(gradients, squares).tolist())


def _concatenate_small(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients in any order, small ones with equal trailing dimensions concatenated."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for g in gradients:
        by_shape.setdefault(g.shape, []).append(g)
    parts: list[Tensor] = []
    alike: dict[torch.Size, list[Tensor]] = {}
    for shape, some in by_shape.items():
        small = shape and shape.numel() <= SMALL
        (alike.setdefault(shape[1:], []) if small else parts).extend(some)
    return [*parts, *(torch.cat(some) for some in alike.values())]


def finite_flags(gradients: Sequence[Tensor], squares: bool) -> Tensor:
    """Return bool [n] on the device, True if finite (with `squares`, the sum of squares too)."""
    return torch.stack(_norms(gradients, squares)) < math.inf


def _norms(gradients: Sequence[Tensor], squares: bool) -> list[Tensor]:
    """Return each gradient's largest magnitude (or, for `squares`, 2-norm) as [] on its device.

    In float32 or float64; not finite where an entry is not.
    """
    order = 2.0 if squares else math.inf
    norms: dict[int, Tensor] = {}
    kinds: dict[torch.dtype, list[int]] = {}
    eager = not torch.compiler.is_compiling()
    native = eager and foreach.have_kernels(gradients)
    for i, g in enumerate(gradients):
        if not g.numel():
            norms[i] = torch.zeros((), device=g.device)
        elif native or (eager and foreach.have_kernels([g])):
            kinds.setdefault(g.dtype, []).append(i)
        else:
            norm = torch.linalg.vector_norm(g, order, dtype=wide(g.dtype))
            norms[i] = foreach.as_plain(norm)
    for dtype, positions in kinds.items():
        some = torch._foreach_norm([gradients[i] for i in positions], order, dtype=wide(dtype))
        norms.update(zip(positions, some, strict=True))
    return [norms[i] for i in range(len(gradients))]


def any_nonfinite(
    groups: Sequence[Group], active: ActiveParams, shared: Sequence[Collection[int]]
) -> bool:
    """Return whether any active gradient that is not in `shared` is not finite; waits."""
    return any(
        nonfinite_indices(groups[i], [k for k in param_indices if k not in shared[i]])
        for i, param_indices in active.items()
    )


def nonfinite_indices(
    group: Group, param_indices: Sequence[int], *, host_readable: bool | None = None
) -> list[int]:
    """Return indices of non-finite gradients, of all or only (not) `host_readable` devices; waits.

    With an elementwise rule, the sum of a gradient's squares has to be finite as well.

    Args:
        group: The param group.
        param_indices: Params to test; those without a gradient are left out.
        host_readable: True for gradients that the host can read without waiting alone, False for
            the others alone; by default all.
    """
    found: list[int] = []
    for device, on_device, gradients in gradients_by_device(group["params"], param_indices):
        if host_readable in (None, is_host_readable(device)):
            known = finite_on_host(gradients, _squares_gradients(group))
            found += [k for k, ok in zip(on_device, known, strict=True) if not ok]
    return found


def finite_of(groups: Sequence[Group], pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return bool [n], True where the local gradient of (group, param) index pairs is finite.

    Stays on the device of the gradients; the host waits for its own memory alone.

    Args:
        groups: The param groups.
        pairs: Group index and param index of n parameters with a gradient.
    """
    found: list[tuple[int, int]] = []
    flags: list[Tensor] = []
    for i in dict.fromkeys(i for i, _ in pairs):
        group, param_indices = groups[i], [k for j, k in pairs if j == i]
        for device, on_device, gradients in gradients_by_device(
            group["params"], param_indices, local_parts=True
        ):
            if is_host_readable(device):
                flags.append(torch.tensor(finite_on_host(gradients, _squares_gradients(group))))
            else:
                flags.append(finite_flags(gradients, _squares_gradients(group)))
            found += [(i, k) for k in on_device]
    joined = torch.cat([some.to(flags[0].device) for some in flags])
    if found == list(pairs):
        return joined
    by_pair = dict(zip(found, joined.unbind(), strict=True))
    return torch.stack([by_pair[pair] for pair in pairs])


def _squares_gradients(group: Group) -> bool:
    """Return whether a group's rule is elementwise, as AdamW, and so squares gradients."""
    return not isinstance(group["rule"], UpdateRule)


def _raise_if_nonfinite(
    groups: Sequence[Group],
    active: ActiveParams,
    shared: Sequence[Collection[int]],
    nonfinite_ranks: Mapping[tuple[int, int], int],
) -> None:
    """Raise FloatingPointError that names all non-finite gradients, if there are any; waits."""
    found = set(nonfinite_ranks)
    for i, param_indices in active.items():
        plain = [k for k in param_indices if k not in shared[i]]
        found |= {(i, k) for k in nonfinite_indices(groups[i], plain)}
    if found:
        names = [name_of(groups[i], i, k) for i, k in sorted(found)]
        ranks = ", ".join(map(str, sorted(set(nonfinite_ranks.values()))))
        raise FloatingPointError(
            f"the gradient of {', '.join(names)} is not finite"
            f"{f' (as seen on rank {ranks})' if ranks else ''}; nothing was changed. "
            "NonFinite.SKIP leaves such parameters out of the step"
        )
