"""The one optimizer: holds groups, buffers, step and state dict; knows no mathematics.

A param group carries a rule and a view beside torch's scheduled numbers (`lr`, `weight_decay`,
`momentum`). Rules on matrices go through the executor, elementwise rules to their own step.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from polarlight.execution.batched import Batched
from polarlight.execution.heap import keep_freed_memory
from polarlight.execution.job import Executor
from polarlight.execution.sharded.executor import around_shards, check_executor
from polarlight.execution.work import Work, WorkExecutor, directions_of, local, whole
from polarlight.linalg.isolation import run_isolated
from polarlight.optimizer import apply as movement
from polarlight.optimizer import compiled
from polarlight.optimizer import masked as nonfinite
from polarlight.optimizer.buffers import OwnBuffers
from polarlight.optimizer.compiled import MomentumTensors
from polarlight.optimizer.fingerprint import fingerprint
from polarlight.optimizer.gradient_guard import Watch
from polarlight.optimizer.masked import Finite, NonFinite, Verdict, verdict_of
from polarlight.optimizer.param_groups import (
    STRUCTURE,
    Group,
    Members,
    StateDict,
    check_disjoint,
    check_group,
    name_of,
    together,
    with_gradients,
    without_frozen_integers,
)
from polarlight.optimizer.probe import Observation, Probe, count_updates
from polarlight.optimizer.state_dict import restoring
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
        executor: How directions are computed; the default batches matrices of equal shape, and
            `Sharded` goes around it as soon as a parameter is a DTensor. Processes with equal plain
            parameters share the work if they are given `Sharded(group=...)`.
        nonfinite: What to do about a gradient with a NaN or an Inf: leave its parameter out of the
            step (default), raise, or use it. Also settable later, as `optimizer.nonfinite`.

    State per parameter: `momentum_buffer` in the parameter's shape and dtype, unless the momentum
    keeps it otherwise (`InBfloat16`), and the rule's own buffers in float32 (float64 for float64
    parameters), all present from the first step, `state_dict` or load on; DTensors beside DTensors.
    A parameter without a gradient is left untouched, its state too, and by default one whose
    gradient is not finite as well; `skipped()` tells which ones these were. Momenta and directions
    are made for at most 256 MiB of parameters at a time (8 on a CPU), unless work is shared.

    Raises:
        ValueError: If a number is out of range or a parameter does not fit its rule; the message
            names it.
        RuntimeError: If a gradient is sparse.
        FloatingPointError: In a step, if a gradient is not finite and `nonfinite` says RAISE.

    Examples:
        >>> import torch, polarlight
        >>> weight = torch.nn.Parameter(torch.ones(8, 4))
        >>> rule = polarlight.rules.muon()
        >>> optimizer = polarlight.SpectralOptimizer([weight], lr=0.02, rule=rule)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
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
        executor: Executor | WorkExecutor | None = None,
        nonfinite: NonFinite = NonFinite.SKIP,
    ) -> None:
        self._watch = Watch(NonFinite(nonfinite))
        self._buffers = OwnBuffers()
        self._momenta = MomentumTensors()
        self._traced_groups: list[Group] = []
        self.executor = check_executor(Batched() if executor is None else executor)
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

        Integer parameters (quantized weights) are frozen and left out.

        Raises:
            ValueError: If the group does not fit; the optimizer is unchanged then.
        """
        param_group = dict(param_group)
        reasons = param_group.pop("reasons", {})
        if not isinstance(param_group["params"], Tensor | set):  # torch refuses sets
            param_group |= without_frozen_integers(param_group)
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
        devices = {p.device.type for group in self._groups for p in group["params"]}
        run_isolated(self._step, devices)
        return loss

    def _step(self) -> None:
        """Step every parameter with a gradient."""
        groups = self._groups
        if torch.compiler.is_compiling():
            compiled.check_lr([group["lr"] for group in groups])
        members = {i: with_gradients(group, i) for i, group in enumerate(groups)}
        watching = [probe for probe in self._probes.values() if probe.begin()]
        verdicts = self._watch.judge(
            groups, members, self._buffers.by_parameter, ask=bool(watching)
        )
        updated: dict[int, set[int]] = {i: set() for i in members}
        for part in self._together(members):
            self._watch.sift(groups, part)
            self._step_some(part, verdicts, watching)
            for index, places in part.items():
                updated[index].update(places)
        for index, done in updated.items():
            count_updates(self._probes.values(), groups[index], index, done)
        for probe in watching:
            probe.end()

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
        """State and groups; rules and views become their fingerprints, as text."""
        self._complete_state()
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update({key: fingerprint(group[key]) for key in STRUCTURE})
        return saved

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restores what `state_dict` returned; dtypes and devices are those of a new state.

        Rules stay the optimizer's; one `UserWarning` lists fields that differ and leave the meaning
        of the buffers alone (nesterov, scale, polar method, decay rates).

        Raises:
            ValueError: If groups, views or rules differ in more than that, or a buffer is missing
                or of another shape; the message shows it, and nothing has been taken over.
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
        self.__dict__.setdefault("_buffers", OwnBuffers())
        self.__dict__.setdefault("_momenta", MomentumTensors())
        self.__dict__.setdefault("_watch", Watch(state.pop("nonfinite", NonFinite.SKIP)))
        super().__setstate__(state)

    @_disable_dynamo  # as torch.compiler.disable, without importing the compiler
    @torch.inference_mode(False)  # a state made while evaluating is trained later
    def _complete_state(self) -> None:
        """Gives every trainable parameter its state, where it is missing; not part of a graph."""
        keep_freed_memory()
        self._watch.prepare(self.param_groups)
        self._buffers.complete(self.param_groups, self.state)
        self._momenta.prepare(self.param_groups)
        self._traced_groups = list(self.param_groups)

    @property
    def _groups(self) -> list[Group]:
        """The param groups, in a graph under a name that lets their momenta change.

        The compiler takes every number in an optimizer's `param_groups` for a constant.
        """
        return self._traced_groups if torch.compiler.is_compiling() else self.param_groups

    def _together(self, members: Members) -> list[Members]:
        """Places cut into what is stepped at once, and how it will be computed."""
        groups = self._groups
        matrices = [i for i in members if isinstance(groups[i]["rule"], UpdateRule)]
        params = (groups[i]["params"][place] for i in matrices for place in members[i])
        self.executor = around_shards(self.executor, params)
        return together(groups, members, shared=isinstance(self.executor, WorkExecutor))

    def _step_some(
        self, members: Members, verdicts: Mapping[int, Verdict], watching: list[Probe]
    ) -> None:
        """One step of what goes together, if anything is left of it."""
        taking_part = {i: places for i, places in members.items() if places}
        if all(isinstance(self._groups[i]["rule"], UpdateRule) for i in members):
            self._step_matrices(taking_part, verdicts, watching)
        else:
            for index, places in taking_part.items():
                self._step_entries(index, places, verdicts[index], watching)

    def _step_matrices(
        self, members: Members, verdicts: Mapping[int, Verdict], watching: list[Probe]
    ) -> None:
        """One step of parameters whose rules map matrices."""
        finite = {i: verdict_of(verdicts[i], places) for i, places in members.items()}
        works = {i: self._works(i, places, finite[i]) for i, places in members.items()}
        asked = [work for some in works.values() for work in some]
        found = iter(directions_of(self.executor, asked))
        for index, places in members.items():
            group, some = self._groups[index], works[index]
            directions = [next(found) for _ in some]
            states = self._buffers.of(work.parameter for work in some)
            nonfinite.keep(directions, states, [work.state for work in some], finite[index])
            for probe in watching:
                for i, work, D in zip(places, some, directions, strict=True):
                    p = work.parameter
                    seen = whole(p), whole(work.momentum, p), whole(D.to(p.dtype), p)
                    probe.observe(Observation(name_of(group, index, i), *seen, group))
            params = [local(work.parameter) for work in some]
            movement.move(group, params, states, directions, finite[index])

    def _works(self, index: int, places: list[int], finite: Finite) -> list[Work]:
        """What is asked of a group's parameters, after their momenta have been updated."""
        group = self._groups[index]
        rule, view = group["rule"], group["view"] or Whole()
        params = [group["params"][i] for i in places]
        states = self._buffers.of(params)
        buffers = [local(state[MOMENTUM]) for state in states if rule.momentum.buffered]
        gradients = movement.gradients(group, params)
        beta = self._momenta.of(index, group)
        momenta = nonfinite.momenta(rule.momentum, states, gradients, buffers, beta, finite)
        written = nonfinite.drafts(states, finite)
        return [
            Work(name_of(group, index, i), rule, view, p, M, state)
            for i, p, M, state in zip(places, params, momenta, written, strict=True)
        ]

    def _step_entries(
        self, index: int, places: list[int], verdict: Verdict, watching: list[Probe]
    ) -> None:
        """One step of a group whose rule is elementwise."""
        group, finite = self._groups[index], verdict_of(verdict, places)
        params = [group["params"][i] for i in places]
        states = self._buffers.of(params)
        before = [whole(p).clone() if watching else p for p in params]
        movement.step_entries(group, params, states, finite, self._momenta.of(index, group))
        self._buffers.store(self.state, params)
        for probe in watching:
            for i, p, seen, state in zip(places, params, before, states, strict=True):
                state = {key: local(x) for key, x in state.items()}
                M, D = group["rule"].momentum_and_direction(state, group["momentum"])
                M, D = whole(M, p), whole(D, p)
                probe.observe(Observation(name_of(group, index, i), seen, M, D, group))
