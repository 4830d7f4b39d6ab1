"""`SpectralOptimizer`: param groups, buffers, step and state dict, without the mathematics.

A param group has a rule and a view besides torch's scheduled numbers (`lr`, `weight_decay`,
`momentum`). Rules on matrices go through the executor, elementwise rules to their own step.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from polarlight.execution.batched import Batched
from polarlight.execution.job import Executor
from polarlight.execution.param_task import (
    ParamExecutor,
    ParamTask,
    any_sharded,
    directions_of,
    full_tensor,
    local_tensors,
    mark_expendable,
    shared_indices,
    to_local,
)
from polarlight.execution.sharded.executor import Sharded, check_executor
from polarlight.linalg.isolation import run_isolated, run_isolated_around_graph
from polarlight.optimizer.apply import apply_update, step_elementwise_group
from polarlight.optimizer.buffers import RuleBuffers
from polarlight.optimizer.compiled import GraphInputs, warn_of_eager_step, warn_of_number_lrs
from polarlight.optimizer.fingerprint import fingerprint
from polarlight.optimizer.gradient_guard import NonFinite, NonFiniteGuard
from polarlight.optimizer.masked import (
    AlikeTasks,
    FiniteFlags,
    clone_buffers,
    commit_where_finite,
    flags_from_mask,
    join_flags,
    update_momenta,
    with_gradient_if_read,
)
from polarlight.optimizer.param_groups import (
    STRUCTURE,
    ActiveParams,
    Group,
    StateDict,
    alike_groups,
    check_disjoint,
    check_group,
    check_not_flattened,
    clone_shared_tensors,
    indices_with_gradients,
    names_of,
    partition_for_step,
    without_frozen_integers,
)
from polarlight.optimizer.probe import Probe, add_probe, count_updates, report_tasks, report_update
from polarlight.optimizer.shared_gradients import IndexPair, SharedGradients
from polarlight.optimizer.state_dict import restoring
from polarlight.optimizer.streaming import is_streaming, step_streamed
from polarlight.rule import Rule, UpdateRule
from polarlight.view import MatrixView, Whole


class SpectralOptimizer(Optimizer):
    """Optimizer that applies to every param group its own rule.

    Args:
        params: Tensors, `(name, tensor)` pairs, or dicts of these with `rule`, `view` and numbers
            of their own, as `route` makes them.
        lr: Learning rate, at least 0: a float, or a one-element tensor, copied for further groups.
        weight_decay: Decoupled: weights are multiplied by 1 - lr * weight_decay. At least 0.
        momentum: Decay of the first moment, in [0, 1).
        rule: Rule of the groups that bring none; None if all do, as those of a recipe.
        view: Which part of a parameter is a matrix, for groups that bring none. None means that
            parameters must be matrices.
        maximize: Ascend instead of descend.
        executor: How directions are computed; the default batches matrices of equal shape, and
            `Sharded` wraps it as soon as a parameter is a DTensor. Processes with equal plain
            parameters share the work if they are given `Sharded(group=...)`.
        nonfinite: What to do about a gradient with a NaN or an Inf: leave its parameter out of the
            step (default), raise, or use it. Also settable later, as `optimizer.nonfinite`.

    State per parameter, from the first step, `state_dict` or load on: `momentum_buffer` in the
    parameter's shape and dtype (unless under `InBfloat16` or `InInt8`), and the rule's buffers in
    float32 (float64 for float64 parameters); DTensors for DTensors. A step skips parameters without
    a gradient and, by default, those with a non-finite one; `skipped()` counts these. Momenta and
    directions are made for at most 256 MiB of parameters at a time (8 on a CPU), unless shared.

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
        executor: Executor | ParamExecutor | None = None,
        nonfinite: NonFinite = NonFinite.SKIP,
    ) -> None:
        """Check and add the param groups; state is allocated later."""
        self._guard = NonFiniteGuard(NonFinite(nonfinite))
        self._shared = SharedGradients()
        self._buffers = RuleBuffers()
        self._graph = GraphInputs()
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
        check_not_flattened(self.param_groups)

    def add_param_group(self, param_group: Group) -> None:
        """Check and add a group; absent entries come from the constructor's arguments.

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
        clone_shared_tensors(self.param_groups)
        self.reasons.update(reasons)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step all parameters with a gradient; return the loss of `closure`, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._step_in_graph()
        else:
            run_isolated(self._step, self._complete_state())
        return loss

    @partial(_disable_dynamo, recursive=False)
    def _step_in_graph(self) -> None:
        """Trace `_step` into a graph of `torch.compile`; stay eager if processes share params."""
        devices = self._prepare_graph()
        params = [group["params"] for group in self.param_groups]
        if isinstance(self.executor, ParamExecutor) or any(shared_indices(params, self.executor)):
            warn_of_eager_step()
            _disable_dynamo(run_isolated)(self._step, devices)
        else:
            run_isolated_around_graph(self._step, devices)

    @_disable_dynamo
    def _prepare_graph(self) -> set[str]:
        """Allocate state; make a graph's momentum tensors and rules; return device types."""
        devices = self._complete_state()
        self._graph.prepare(self.param_groups, self._buffers.by_param)
        return devices

    def _step(self) -> None:
        """Step every parameter that has a gradient; processes agree first if they share any."""
        groups = self._groups
        if torch.compiler.is_compiling():
            warn_of_number_lrs([group["lr"] for group in groups])
        active = {i: indices_with_gradients(group, i) for i, group in enumerate(groups)}
        matrices = [i for i, group in enumerate(groups) if isinstance(group["rule"], UpdateRule)]
        has_shards = any_sharded([p for i in matrices for p in groups[i]["params"]])
        if has_shards and not isinstance(self.executor, ParamExecutor):
            self.executor = Sharded(self.executor)
        shared = shared_indices([group["params"] for group in groups], self.executor)
        if not any(shared):
            self._step_active(groups, active, shared, {})
            return
        states, policy = self._buffers.by_param, self._guard.policy
        with self._shared.prepared(groups, active, states, shared, self.executor, policy) as found:
            self._step_active(groups, active, shared, found)

    def _step_active(
        self,
        groups: list[Group],
        active: dict[int, list[int]],
        shared: list[set[int]],
        nonfinite_ranks: dict[tuple[int, int], int],
    ) -> None:
        """Step active parameters, batch by batch, without non-finite ones; call the probes."""
        observing = [probe for probe in self._probes.values() if probe.begin()]
        states, wait = self._buffers.by_param, bool(observing)
        masks = self._guard.flag_nonfinite(
            groups, active, states, shared=shared, nonfinite_ranks=nonfinite_ranks, may_wait=wait
        )
        matrices = [i for i, group in enumerate(groups) if isinstance(group["rule"], UpdateRule)]
        one_batch = isinstance(self.executor, ParamExecutor)
        updated: dict[int, set[int]] = {i: set() for i in active}
        for batch in partition_for_step(groups, active, one_batch=one_batch):
            self._guard.drop_nonfinite_on_host(groups, batch, shared)
            finite = {
                i: flags_from_mask(masks[i], param_indices, groups[i]["params"])
                for i, param_indices in batch.items()
                if param_indices
            }
            if all(i in matrices for i in batch):
                self._step_matrices(batch, finite, observing)
            else:
                self._step_elementwise(batch, finite, observing)
            if self._probes:
                for i, param_indices in batch.items():
                    updated[i].update(param_indices)
        if self._probes:
            count_updates(self._probes.values(), groups, updated)
        for probe in observing:
            probe.end()

    @property
    def nonfinite(self) -> NonFinite:
        """Policy for a gradient that is not finite."""
        return self._guard.policy

    @nonfinite.setter
    def nonfinite(self, policy: NonFinite) -> None:
        self._guard.policy = NonFinite(policy)

    def skipped(self) -> dict[str, int]:
        """Return {name: steps that left it out for a non-finite gradient}, without zeros; waits.

        Counted since construction, copy or unpickling; zeros are absent. Waits for the device.
        """
        return self._guard.skipped(self.param_groups)

    def observe(self, probe: Probe) -> RemovableHandle:
        """Report every step to `probe` until the returned handle's `remove()` is called."""
        return add_probe(self._probes, probe)

    def state_dict(self) -> StateDict:
        """Return state and param groups, with fingerprints as text instead of rules and views."""
        self._complete_state()
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update({key: fingerprint(group[key]) for key in STRUCTURE})
        return saved

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load buffers (dtype, device as in a new state) and hyperparameters, not rules or views.

        By position, as torch does. Rules, and names if it has any, stay the optimizer's; one
        `UserWarning` lists fields of rules that differ and leave the meaning of the buffers alone
        (nesterov, scale, polar method, decay rates).

        Raises:
            ValueError: If groups, views or rules differ in more than that, a buffer is missing or
                of another shape, or names are in another order and no load hook is registered;
                the message shows it, and nothing has been taken over.
            TypeError: If it is no dict.
        """
        with restoring(self, state_dict):
            super().load_state_dict(state_dict)
        clone_shared_tensors(self.param_groups)
        self._complete_state()

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: everything but the probes."""
        kept = {"executor": self.executor, "reasons": self.reasons, "nonfinite": self.nonfinite}
        return super().__getstate__() | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned; torch's `load_state_dict` calls this too."""
        parts = {"_probes": OrderedDict(), "_buffers": RuleBuffers(), "_graph": GraphInputs()}
        parts |= {"_guard": NonFiniteGuard(state.pop("nonfinite", NonFinite.SKIP))}
        parts |= {"_shared": SharedGradients()}
        for name, part in parts.items():
            self.__dict__.setdefault(name, part)
        super().__setstate__(state)

    @_disable_dynamo  # as torch.compiler.disable, without importing the compiler
    @torch.inference_mode(False)  # a state made while evaluating is trained later
    def _complete_state(self) -> set[str]:
        """Allocate missing state and skip counts, outside of graphs; return types of devices."""
        devices = self._guard.allocate_counts(self.param_groups)
        self._buffers.complete(self.param_groups, self.state)
        return {device.type for device in devices}

    @property
    def _groups(self) -> list[Group]:
        """Param groups; under `torch.compile` copies whose momentum is a tensor, not a number."""
        return self._graph.groups if torch.compiler.is_compiling() else self.param_groups

    def _step_matrices(
        self, batch: ActiveParams, finite: Mapping[int, FiniteFlags], observing: list[Probe]
    ) -> None:
        """Step one batch of matrices: momenta, executor's directions, weights; report to probes."""
        groups = self._groups
        if not observing and is_streaming(self.executor):
            self._shared.step.moved, states = True, self._buffers.by_param
            batch = step_streamed(self.executor, groups, batch, states, self._update_momenta)
            finite = {i: finite[i] for i in batch}
        parts = [
            self._update_momenta([(i, k) for i in alike for k in batch[i]], finite, bool(observing))
            for alike in alike_groups(groups, finite)
        ]
        # Directions of whole matrices, of all groups at once: the executor batches or shares them.
        directions = iter(directions_of(self.executor, [t for part in parts for t in part.tasks]))
        self._shared.step.moved = True
        for part in parts:  # weights, elementwise on the local shards
            D = [next(directions) for _ in part.tasks]
            if part.finite is not None:
                written = [task.state for task in part.tasks]
                commit_where_finite(D, part.states, written, part.finite)
            report_tasks(observing, [groups[i] for i, _ in part.places], part.tasks, D)
            part.tasks.clear()  # frees the momenta before weights are copied
            apply_update(groups[part.places[0][0]], part.weights, part.states, D, part.finite)

    def _update_momenta(
        self, places: Sequence[IndexPair], finite: Mapping[int, FiniteFlags], keep_momenta: bool
    ) -> AlikeTasks:
        """Update alike groups' momenta in place; return tasks (momenta expendable unless kept)."""
        groups = self._groups
        group = groups[places[0][0]]
        rule, view = group["rule"], group["view"] or Whole()
        params = [groups[i]["params"][k] for i, k in places]
        flags = join_flags([i for i, _ in places], finite, params)
        states = [self._buffers.by_param[p] for p in params]
        weights, gradients, buffers = local_tensors(params, states, maximize=group["maximize"])
        extra = rule.momentum.extra_state
        held = [{x: to_local(own[x]) for x in extra} if extra else {} for own in states]
        momenta = update_momenta(rule.momentum, held, gradients, buffers, group["momentum"], flags)
        # A rule writes to clones where flags decide afterwards which of them are kept.
        clones = states if flags is None else clone_buffers(states)
        written = with_gradient_if_read(rule, view, params, gradients, clones, flags)
        rules = [rule] * len(params)
        if torch.compiler.is_compiling():
            rules = [self._graph.rule_of(p, rule) for p in params]
        names = {i: names_of(groups[i], i) for i in {i for i, _ in places}}
        tasks = [
            ParamTask(names[i][k], r, view, p, M, state)
            for (i, k), r, p, M, state in zip(places, rules, params, momenta, written, strict=True)
        ]
        if isinstance(self.executor, ParamExecutor) and not keep_momenta:
            mark_expendable(tasks, [gradients, buffers, *(own.values() for own in held)])
        return AlikeTasks(places, weights, states, tasks, flags)

    def _step_elementwise(
        self, batch: ActiveParams, finite: Mapping[int, FiniteFlags], observing: list[Probe]
    ) -> None:
        """Step groups with elementwise rules; report each update to observing probes."""
        self._shared.step.moved = True
        for i in finite:
            group = self._groups[i]
            params = [group["params"][k] for k in batch[i]]
            states = [self._buffers.by_param[p] for p in params]
            before = [full_tensor(p).clone() if observing else p for p in params]
            step_elementwise_group(group, params, states, finite[i])
            self._buffers.store(self.state, params)
            if observing:
                for k, p, W, state in zip(batch[i], params, before, states, strict=True):
                    local = {key: to_local(x) for key, x in state.items()}
                    M, U = group["rule"].momentum_and_direction(local, group["momentum"])
                    report_update(observing, names_of(group, i)[k], group, p, W, M, U)
