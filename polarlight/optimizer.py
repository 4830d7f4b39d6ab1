"""The one optimizer: holds groups, buffers, step and state dict; knows no mathematics.

A param group carries a rule and a view beside torch's scheduled numbers (`lr`, `weight_decay`,
`momentum`). Rules on matrices go through the executor, elementwise rules to their own step.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from polarlight import nonfinite
from polarlight.execution.batched import Batched
from polarlight.execution.job import Executor, jobs_of, new_buffers
from polarlight.groups import (
    STRUCTURE,
    Group,
    StateDict,
    check_disjoint,
    check_group,
    name_of,
    restoring,
    with_gradients,
)
from polarlight.nonfinite import Finite, NonFinite, Watch
from polarlight.probe import CountingProbe, Observation, Probe
from polarlight.rule import MOMENTUM, Rule, UpdateRule
from polarlight.view import MatrixView, Whole


class SpectralOptimizer(Optimizer):
    """Applies to every param group its rule.

    Args:
        params: Tensors, `(name, tensor)` pairs, or dicts of these with `rule`, `view` and numbers
            of their own, as `route` makes them.
        lr: Learning rate, a float or a one-element tensor; at least 0.
        weight_decay: Decoupled: weights are multiplied by 1 - lr * weight_decay. At least 0.
        momentum: Decay of the first moment, in [0, 1).
        rule: Rule of the groups that bring none; None if all do, as those of a recipe.
        view: Which part of a parameter is a matrix, for groups that bring none. None means that
            parameters must be matrices.
        maximize: Ascend instead of descend.
        executor: How directions are computed; the default batches matrices of equal shape.
        nonfinite: What to do about a gradient with a NaN or an Inf: leave its parameter out of the
            step (default), raise, or use it. Also settable later, as `optimizer.nonfinite`.

    State per parameter: `momentum_buffer` in the parameter's shape and dtype and the rule's own
    buffers in float32 (float64 for float64 parameters), all present from the first step,
    `state_dict` or load on. A parameter without a gradient is left untouched, its state too, and by
    default one whose gradient is not finite as well; `skipped()` tells which ones these were.

    Raises:
        ValueError: If a number is out of range or a parameter does not fit its rule; the message
            names it.
        RuntimeError: If a gradient is sparse.
        FloatingPointError: In a step, if a gradient is not finite and `nonfinite` says RAISE.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        *,
        rule: Rule | None = None,
        view: MatrixView | None = None,
        maximize: bool = False,
        executor: Executor | None = None,
        nonfinite: NonFinite = NonFinite.SKIP,
    ) -> None:
        self._watch = Watch(NonFinite(nonfinite))
        self.executor: Executor = executor or Batched()
        self.reasons: dict[str, str] = {}
        self._probes: OrderedDict[int, Probe] = OrderedDict()
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "maximize": maximize,
            "rule": rule,
            "view": view,
            "role": "",
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group; entries it lacks come from the constructor's arguments.

        Raises:
            ValueError: If the group does not fit; the optimizer is unchanged then.
        """
        param_group = dict(param_group)
        reasons = param_group.pop("reasons", {})
        if not isinstance(param_group["params"], Tensor | set):  # torch refuses sets
            param_group["params"] = list(param_group["params"])
            check_disjoint(self.param_groups, param_group["params"])
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1], len(self.param_groups) - 1)
        except ValueError:
            self.param_groups.pop()
            raise
        self.reasons.update(reasons)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Performs one step; returns what `closure` returned, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._complete_state()
        members = [with_gradients(group, i) for i, group in enumerate(self.param_groups)]
        watching = [probe for probe in self._probes.values() if probe.begin()]
        verdicts = self._watch.judge(self.param_groups, members, self.state, ask=bool(watching))
        for index, (places, finite) in enumerate(zip(members, verdicts, strict=True)):
            matrices = isinstance(self.param_groups[index]["rule"], UpdateRule)
            if places:
                update = self._step_matrices if matrices else self._step_entries
                update(index, places, finite, watching)
            self._count(index, set(places))
        for probe in watching:
            probe.end()
        return loss

    @property
    def nonfinite(self) -> NonFinite:
        """What is done about a gradient that is not finite."""
        return self._watch.policy

    @nonfinite.setter
    def nonfinite(self, policy: NonFinite) -> None:
        self._watch.policy = NonFinite(policy)

    def skipped(self) -> dict[str, int]:
        """How many steps each parameter was left out of for a gradient that was not finite.

        By name; parameters that never were are absent. Counted since construction, copy or
        unpickling; waits for the device.
        """
        return self._watch.skipped(self.param_groups)

    def observe(self, probe: Probe) -> RemovableHandle:
        """Lets `probe` look at steps until the returned handle's `remove()` is called."""
        handle = RemovableHandle(self._probes)
        self._probes[handle.id] = probe
        return handle

    def state_dict(self) -> StateDict:
        """State and groups; rules and views become text, so that `weights_only=True` loads it."""
        self._complete_state()
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update({key: repr(group[key]) for key in STRUCTURE})
        return saved

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restores what `state_dict` returned, in the dtypes that were saved.

        Raises:
            ValueError: If groups, rules or views differ; the message shows both.
        """
        with restoring(self):
            super().load_state_dict(state_dict)
        self._complete_state()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: everything but the probes."""
        kept = {"executor": self.executor, "reasons": self.reasons, "nonfinite": self.nonfinite}
        return super().__getstate__() | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse of `__getstate__`, also used by torch's `load_state_dict`."""
        self.__dict__.setdefault("_probes", OrderedDict())
        policy = state.pop("nonfinite", NonFinite.SKIP)
        self.__dict__.setdefault("_watch", Watch(policy))
        super().__setstate__(state)

    def _complete_state(self) -> None:
        """Gives every trainable parameter its state, where it is missing."""
        for group in self.param_groups:
            for p in group["params"]:
                if (p.requires_grad or p.grad is not None) and not self.state[p]:
                    self.state[p] = _new_state(group, p)

    def _count(self, index: int, places: set[int]) -> None:
        """Tells the probes that count which parameters of a group were updated."""
        group = self.param_groups[index]
        for probe in self._probes.values():
            if isinstance(probe, CountingProbe):
                for i, p in enumerate(group["params"]):
                    rule = group["rule"] if i in places else None
                    probe.count(name_of(group, index, i), rule, frozen=not p.requires_grad)

    def _step_matrices(
        self, index: int, places: list[int], finite: Finite, watching: list[Probe]
    ) -> None:
        """One step of a group whose rule maps matrices."""
        group = self.param_groups[index]
        rule, view = group["rule"], group["view"] or Whole()
        params = [group["params"][i] for i in places]
        states = [self.state[p] for p in params]
        buffers = [state[MOMENTUM] for state in states if rule.momentum.buffered]
        gradients = _gradients(group, params)
        momenta = nonfinite.momenta(rule, gradients, buffers, group["momentum"], finite)
        written = nonfinite.drafts(states, finite)
        jobs = [jobs_of(rule, view, M, state) for M, state in zip(momenta, written, strict=True)]
        results = iter(self.executor.directions([job for parts in jobs for job in parts]))
        directions = [view.join([next(results) for _ in parts]) for parts in jobs]
        nonfinite.keep(directions, states, written, finite)
        for probe in watching:
            for i, p, M, D in zip(places, params, momenta, directions, strict=True):
                probe.observe(Observation(name_of(group, index, i), p, M, D, group))
        _move(params, directions, group["lr"], group["weight_decay"], finite)

    def _step_entries(
        self, index: int, places: list[int], finite: Finite, watching: list[Probe]
    ) -> None:
        """One step of a group whose rule is elementwise."""
        group = self.param_groups[index]
        params = [group["params"][i] for i in places]
        states = [self.state[p] for p in params]
        before = [p.clone() if watching else p for p in params]
        nonfinite.step_entries(
            group["rule"],
            params,
            _gradients(group, params),
            states,
            finite,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
        )
        for probe in watching:
            for i, p, state in zip(places, before, states, strict=True):
                M, D = group["rule"].momentum_and_direction(state, group["momentum"])
                probe.observe(Observation(name_of(group, index, i), p, M, D, group))


def _new_state(group: Group, p: Tensor) -> dict[str, Tensor]:
    rule = group["rule"]
    if not isinstance(rule, UpdateRule):
        return dict(rule.new_state(p))
    state = new_buffers(rule, group["view"] or Whole(), p)
    if rule.momentum.buffered:
        state[MOMENTUM] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return state


def _gradients(group: Group, params: list[Tensor]) -> list[Tensor]:
    gradients = [p.grad for p in params if p.grad is not None]
    return list(torch._foreach_neg(gradients)) if group["maximize"] else gradients


def _move(
    params: list[Tensor],
    directions: list[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    finite: Finite,
) -> None:
    """W <- (1 - lr weight_decay) W - lr direction; weights that are left out do not decay."""
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    if weight_decay != 0:
        nonfinite.decay(params, 1 - lr * weight_decay, finite)
    if isinstance(lr, Tensor):
        torch._foreach_sub_(params, torch._foreach_mul(directions, lr))
    else:
        torch._foreach_add_(params, directions, alpha=-lr)
