"""Who looks at the gradients of a step, when, and who is left out.

What lies elsewhere is judged before anything moves: on an accelerator by flags that stay there, for
shards by asking the other processes. What lies in the host's memory is looked at piece by piece,
just before the piece's momenta read it: from then on it is in the cache.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from polarlight.execution.work import is_sharded
from polarlight.optimizer import finiteness
from polarlight.optimizer.masked import NonFinite, State, Verdict
from polarlight.optimizer.param_groups import Group, name_of
from polarlight.rule import HOST_COUNTER, UpdateRule


class Watch:
    """Judges the gradients of a step and keeps count of those that were left out.

    Attributes:
        policy: What is done about them; may be changed at any time.
    """

    def __init__(self, policy: NonFinite) -> None:
        self.policy = policy
        self._seen: Counter[tuple[int, int]] = Counter()
        self._counts: dict[tuple[int, torch.device], Tensor] = {}

    def prepare(self, groups: Sequence[Group]) -> None:
        """Makes the counts on every device, so that a step in a graph finds them there."""
        for index, group in enumerate(groups):
            for device in {p.device for p in group["params"]}:
                self._counts_on(index, device, len(group["params"]))

    def judge(
        self,
        groups: Sequence[Group],
        members: Mapping[int, list[int]],
        states: Mapping[Tensor, State],
        ask: bool,
    ) -> dict[int, Verdict]:
        """One verdict per group; takes out of `members` what is known to be left out.

        What lies in the host's memory is left to `sift`, but for a policy of RAISE.

        Args:
            groups: The param groups.
            members: Per group, the places of the parameters with a gradient.
            states: The state of each parameter.
            ask: Whether the host may wait for a transfer per group, for it is watching.

        Raises:
            FloatingPointError: If the policy is RAISE and a gradient is not finite.
        """
        if self.policy is NonFinite.PROPAGATE:
            return dict.fromkeys(members)
        elsewhere = finiteness.bad_everywhere(groups, members)
        if self.policy is NonFinite.RAISE:
            _refuse(groups, members, elsewhere)
            return dict.fromkeys(members)
        for index, places in members.items():
            self._remove(index, places, _of(elsewhere, index))
        return {
            index: self._skip(
                index, groups[index], places, ask or _counts_on_host(groups[index], places, states)
            )
            for index, places in members.items()
        }

    def sift(self, groups: Sequence[Group], members: Mapping[int, list[int]]) -> None:
        """Takes out of `members` whose gradients the host can see, here and now, to be bad."""
        if self.policy is not NonFinite.SKIP:
            return
        for index, places in members.items():
            group = groups[index]
            for device, here, gradients in _by_device(group, places):
                if finiteness.in_memory(device):
                    self._remove_bad(index, group, places, here, gradients)

    def skipped(self, groups: Sequence[Group]) -> dict[str, int]:
        """How many steps each parameter was left out of, by name; those with none are absent."""
        found = Counter(self._seen)
        for (index, _), counts in self._counts.items():
            found.update({(index, place): n for place, n in enumerate(counts.tolist()) if n})
        names: Counter[str] = Counter()
        for (i, place), n in sorted(found.items()):
            if i < len(groups) and place < len(groups[i]["params"]):  # unless it was taken out
                names[name_of(groups[i], i, place)] += n
        return dict(names)

    def _skip(self, index: int, group: Group, places: list[int], ask: bool) -> Verdict:
        """Flags for what the host cannot see, or None if it need not: it asked, or there is none.

        Sharded parameters are known: their processes have told each other.
        """
        if all(map(finiteness.in_memory, {group["params"][i].device for i in places})):
            return None
        finite: dict[int, Tensor] = {}
        for device, here, gradients in _by_device(group, places):
            if finiteness.in_memory(device):
                continue
            if ask:
                self._remove_bad(index, group, places, here, gradients)
            else:
                flags = finiteness.are_finite(gradients, _squares(group))
                self._count(index, len(group["params"]), here, flags)
                finite.update(zip(here, flags.unbind(), strict=True))
        return finite or None

    def _remove_bad(
        self,
        index: int,
        group: Group,
        places: list[int],
        here: Sequence[int],
        gradients: Sequence[Tensor],
    ) -> None:
        """Looks at the gradients of some places and takes out those that are not finite."""
        known = finiteness.known_finite(gradients, _squares(group))
        self._remove(index, places, [i for i, ok in zip(here, known, strict=True) if not ok])

    def _remove(self, index: int, places: list[int], bad: Sequence[int]) -> None:
        """Takes the places that are known not to be finite out, and counts them."""
        for place in bad:
            self._seen[index, place] += 1
            places.remove(place)

    def _count(self, index: int, size: int, here: Sequence[int], flags: Tensor) -> None:
        """Adds to the counts of one group on one device."""
        counts, bad = self._counts_on(index, flags.device, size), flags.logical_not()
        if len(here) == size:
            counts += bad
        else:
            for place, one in zip(here, bad.unbind(), strict=True):
                counts[place] += one

    def _counts_on(self, index: int, device: torch.device, size: int) -> Tensor:
        """The counts of one group on one device, int64 [size]."""
        key = (index, device)
        if key not in self._counts or len(self._counts[key]) != size:
            self._counts[key] = torch.zeros(size, dtype=torch.int64, device=device)
        return self._counts[key]


def _by_device(
    group: Group, places: Sequence[int]
) -> Iterator[tuple[torch.device, list[int], list[Tensor]]]:
    """Per device, the places of plain parameters and their gradients."""
    plain = [i for i in places if not is_sharded(group["params"][i])]
    return finiteness.by_device(group["params"], plain)


def _squares(group: Group) -> bool:
    """Whether the group's rule squares its gradients."""
    return not isinstance(group["rule"], UpdateRule)


def _refuse(
    groups: Sequence[Group], members: Mapping[int, Sequence[int]], elsewhere: set[finiteness.Place]
) -> None:
    """Raises FloatingPointError if a gradient is not finite."""
    bad = [
        name_of(groups[index], index, place)
        for index, places in members.items()
        for place in sorted({*finiteness.known_bad(groups[index], places), *_of(elsewhere, index)})
    ]
    if bad:
        raise FloatingPointError(
            f"the gradient of {', '.join(bad)} is not finite; nothing was changed. "
            "NonFinite.SKIP leaves such parameters out of the step"
        )


def _of(places: set[finiteness.Place], index: int) -> list[int]:
    """Those in one group."""
    return sorted(place for group, place in places if group == index)


def _counts_on_host(group: Group, places: Sequence[int], states: Mapping[Tensor, State]) -> bool:
    """Whether the group's rule branches on a counter of its own."""
    return isinstance(group["rule"], UpdateRule) and any(
        HOST_COUNTER in states[group["params"][i]] for i in places
    )
