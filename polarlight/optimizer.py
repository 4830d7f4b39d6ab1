"""The one optimizer: holds groups, buffers, step and state dict; knows no mathematics.

A param group carries a rule and a view beside torch's scheduled numbers (`lr`, `weight_decay`,
`momentum`). Rules on matrices go through the executor, elementwise rules to their own step.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from polarlight.execution.batched import Batched
from polarlight.execution.job import Executor, jobs_of, new_buffers
from polarlight.groups import (
    STRUCTURE,
    Group,
    StateDict,
    check_disjoint,
    check_group,
    name_of,
    with_objects,
)
from polarlight.probe import CountingProbe, Observation, Probe
from polarlight.rule import MOMENTUM, Rule, UpdateRule, bound, momentum_state
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

    State per parameter: `momentum_buffer` in the parameter's shape and dtype, unless the momentum
    keeps it otherwise (`InBfloat16`), and the rule's own buffers in float32 (float64 for float64
    parameters), all present from the first step, `state_dict` or load on. A parameter without a
    gradient is left untouched, its state too. A NaN or Inf in a gradient reaches that parameter and
    its state, and no other.

    Raises:
        ValueError: If a number is out of range or a parameter does not fit its rule; the message
            names it.
        RuntimeError: If a gradient is sparse.
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
    ) -> None:
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
        members = [self._with_gradients(index) for index in range(len(self.param_groups))]
        watching = [probe for probe in self._probes.values() if probe.begin()]
        for index, places in enumerate(members):
            matrices = isinstance(self.param_groups[index]["rule"], UpdateRule)
            if places:
                update = self._step_matrices if matrices else self._step_entries
                update(index, places, watching)
            self._count(index, set(places))
        for probe in watching:
            probe.end()
        return loss

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
        super().load_state_dict(with_objects(state_dict, self.param_groups))
        self._restore_dtypes(state_dict)
        self._complete_state()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: everything but the probes."""
        return super().__getstate__() | {"executor": self.executor, "reasons": self.reasons}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse of `__getstate__`, also used by torch's `load_state_dict`."""
        self.__dict__.setdefault("_probes", OrderedDict())
        super().__setstate__(state)

    @_disable_dynamo  # as torch.compiler.disable, without importing the compiler
    def _complete_state(self) -> None:
        """Gives every trainable parameter its state, where it is missing; not part of a graph."""
        for group in self.param_groups:
            for p in group["params"]:
                if (p.requires_grad or p.grad is not None) and not self.state[p]:
                    self.state[p] = _new_state(group, p)

    def _restore_dtypes(self, state_dict: StateDict) -> None:
        """Undoes torch's cast of loaded state to the parameter's dtype."""
        saved_ids = (i for group in state_dict["param_groups"] for i in group["params"])
        parameters = (p for group in self.param_groups for p in group["params"])
        for saved_id, p in zip(saved_ids, parameters, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[p][key].dtype:
                    self.state[p][key] = value.detach().clone().to(device=p.device)

    def _with_gradients(self, index: int) -> list[int]:
        """The places in a group of the parameters that have a gradient; refuses sparse ones."""
        group = self.param_groups[index]
        places = [i for i, p in enumerate(group["params"]) if p.grad is not None]
        for i in places:
            if group["params"][i].grad.is_sparse:
                name = name_of(group, index, i)
                raise RuntimeError(f"{name} has a sparse gradient; only dense ones are supported")
        return places

    def _count(self, index: int, places: set[int]) -> None:
        """Tells the probes that count which parameters of a group were updated."""
        group = self.param_groups[index]
        for probe in self._probes.values():
            if isinstance(probe, CountingProbe):
                for i, p in enumerate(group["params"]):
                    rule = group["rule"] if i in places else None
                    probe.count(name_of(group, index, i), rule, frozen=not p.requires_grad)

    def _step_matrices(self, index: int, places: list[int], watching: list[Probe]) -> None:
        """One step of a group whose rule maps matrices."""
        group = self.param_groups[index]
        rule, view = group["rule"], group["view"] or Whole()
        params = [group["params"][i] for i in places]
        states = [self.state[p] for p in params]
        buffers = [state[MOMENTUM] for state in states if rule.momentum.buffered]
        average = bound(rule.momentum, states)
        momenta = average(_gradients(group, params), buffers, group["momentum"])
        jobs = [jobs_of(rule, view, M, state) for M, state in zip(momenta, states, strict=True)]
        results = iter(self.executor.directions([job for parts in jobs for job in parts]))
        directions = [view.join([next(results) for _ in parts]) for parts in jobs]
        for probe in watching:
            for i, p, M, D in zip(places, params, momenta, directions, strict=True):
                probe.observe(Observation(name_of(group, index, i), p, M, D, group))
        _move(params, directions, group["lr"], group["weight_decay"])

    def _step_entries(self, index: int, places: list[int], watching: list[Probe]) -> None:
        """One step of a group whose rule is elementwise."""
        group = self.param_groups[index]
        params = [group["params"][i] for i in places]
        states = [self.state[p] for p in params]
        before = [p.clone() if watching else p for p in params]
        group["rule"].step(
            params,
            _gradients(group, params),
            states,
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
    return new_buffers(rule, group["view"] or Whole(), p) | momentum_state(rule.momentum, p)


def _gradients(group: Group, params: list[Tensor]) -> list[Tensor]:
    gradients = [p.grad for p in params if p.grad is not None]
    return list(torch._foreach_neg(gradients)) if group["maximize"] else gradients


def _move(
    params: list[Tensor], directions: list[Tensor], lr: float | Tensor, weight_decay: float
) -> None:
    """W <- (1 - lr weight_decay) W - lr direction."""
    if isinstance(lr, Tensor):
        lr = lr.reshape(())
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_sub_(params, torch._foreach_mul(directions, lr))
    else:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, directions, alpha=-lr)
