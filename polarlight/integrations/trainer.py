"""Hugging Face Trainer: one optimizer for the whole model, and neuron statistics in its logs.

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        optimizer_cls_and_kwargs=(
            factory(polarlight.Aurora, arguments),
            {"lr": 0.02, "aux_lr": 3e-3},
        ),
    )
    watch(trainer, every=100)

`optimizers=(polarlight.Aurora(model, lr=0.02), None)` works as well. In both, learning rates and
weight decay are the optimizer's own: `TrainingArguments.learning_rate` and `weight_decay` are not
read, and `factory(..., arguments)` and `watch` warn where they were set; the scheduler multiplies
every group's own rate. Given an optimizer *class*, Trainer passes parameters without names, which
no rule can be chosen from: hence the factory.

Trainer logs the learning rate of the first param group. The factory puts the matrices there, and
`watch` corrects what Trainer logs of any other optimizer.

Nothing here imports transformers: Trainer asks its callbacks for methods by name.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer

from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.diagnostics.rule_check import RuleCheck
from polarlight.lookup import described
from polarlight.optimizer import SpectralOptimizer, clip_grad_norm_
from polarlight.routing.explain import unwrap_optimizer
from polarlight.rule import UpdateRule

Make = Callable[..., Any]


def factory(make: Make, arguments: Any = None) -> Callable[[], Callable[..., Optimizer]]:
    """Return the entry for `optimizer_cls_and_kwargs`, which Trainer calls with the model.

    The param groups of matrices come first. A state dict with another order of groups loads too.

    Args:
        make: An optimizer's class (`polarlight.Aurora`), or a recipe that returns param groups
            (`polarlight.recipes.symmetric_stack`); called with (model, **kwargs).
        arguments: The `TrainingArguments`; if given, warns of values in it that are not read.

    Raises:
        TypeError: If `make` is an optimizer, a model or anything else that makes no optimizer.
    """
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(
            "factory takes an optimizer's class or a recipe, such as polarlight.Muon, which it "
            f"calls with the model, got {described(make)}; an optimizer that is already made goes "
            "to Trainer(optimizers=(optimizer, None))"
        )

    def build(model: nn.Module, **kwargs: Any) -> Optimizer:
        """Build the optimizer on a model, matrix groups first."""
        made = make(model, **kwargs)
        optimizer: Optimizer = made if isinstance(made, Optimizer) else SpectralOptimizer(made)
        optimizer.param_groups.sort(key=lambda group: not _is_of_matrices(group))  # stable
        optimizer.register_load_state_dict_pre_hook(_in_order_of)
        _warn_of_ignored(arguments, optimizer)
        return optimizer

    return lambda: build


def _is_of_matrices(group: Mapping[str, Any]) -> bool:
    """Tell whether a group has a matrix rule."""
    return isinstance(group.get("rule"), UpdateRule)


def _in_order_of(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """Reorder a state dict's groups like the optimizer's; None if they do not correspond."""
    order = {_names(group): place for place, group in enumerate(optimizer.param_groups)}
    groups = state_dict.get("param_groups", [])
    if sorted(map(_names, groups)) != sorted(order):
        return None
    return state_dict | {"param_groups": sorted(groups, key=lambda group: order[_names(group)])}


def _names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a group's parameter names."""
    return tuple(group.get("param_names", ()))


def _warn_of_ignored(arguments: Any, optimizer: Optimizer) -> None:
    """Warn once per optimizer of values in TrainingArguments that it does not read.

    A value counts as set if it is not the class's default, and as read if a group has it.
    """
    defaults = {f.name: f.default for f in fields(arguments)} if is_dataclass(arguments) else {}
    ignored = []
    for name, option in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
        value = getattr(arguments, name, None)
        used = {
            float(group.get(f"initial_{option}", group[option])) for group in optimizer.param_groups
        }
        if name in defaults and value != defaults[name] and value not in used:
            mine = ", ".join(f"{number:g}" for number in sorted(used))
            ignored.append(f"TrainingArguments.{name} = {value:g} is not read ({option}: {mine})")
    if ignored and optimizer not in _WARNED:
        _WARNED.add(optimizer)
        warnings.warn(
            f"{'; '.join(ignored)}. The optimizer has numbers of its own: give lr, aux_lr, "
            "weight_decay and aux_weight_decay to it instead",
            UserWarning,
            stacklevel=2,
        )


_WARNED: WeakSet[Optimizer] = WeakSet()


def watch(trainer: Any, *, every: int = 100) -> "NeuronCallback":
    """Log the fraction of starved rows of tall matrices through the trainer.

    Values appear in the trainer's history, console and trackers. After training,
    `print(watch(...).check.report())` shows which rule updated which parameter.

    Args:
        trainer: A `transformers.Trainer`.
        every: Steps between two records, at least 1.
    """
    callback = NeuronCallback(trainer, every)
    trainer.add_callback(callback)
    handler = getattr(trainer, "callback_handler", None)
    if handler is not None:  # before those that print and track what is logged
        handler.callbacks.insert(0, handler.callbacks.pop())
    return callback


def clip_gradients(trainer: Any, max_norm: float | None = None) -> "ClipCallback":
    """Clip the gradients of the AdamW part alone, in place of the Trainer's own clipping.

    Trainer clips all gradients by their common norm, 1.0 by default, which the matrices dominate;
    `polarlight.clip_grad_norm_` says what that does. Sets `max_grad_norm` of the trainer to 0.

    Args:
        trainer: A `transformers.Trainer`.
        max_norm: Largest norm, > 0; None takes the trainer's `max_grad_norm`.

    Returns:
        The callback; its `norm` is the last norm before clipping, float32 [].

    Raises:
        ValueError: If the norm is not positive.
    """
    limit = float(trainer.args.max_grad_norm if max_norm is None else max_norm)
    if not limit > 0:
        raise ValueError(f"max_norm must be > 0, got {limit}; give one, or do not clip")
    trainer.args.max_grad_norm = 0.0
    callback = ClipCallback(trainer, limit)
    trainer.add_callback(callback)
    return callback


class _Callback:
    """Trainer callback without effect: the base of those here."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return a no-op for Trainer events without a method here."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *arguments, **more: None


class ClipCallback(_Callback):
    """Trainer callback that `clip_gradients` adds.

    Attributes:
        max_norm: Largest norm of the clipped gradients.
        norm: Last norm before clipping, float32 []; None before the first step.
    """

    def __init__(self, trainer: Any, max_norm: float) -> None:
        self.max_norm = max_norm
        self.norm: Tensor | None = None
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Clip before the step, gradients of a scaled loss after dividing the scale out."""
        self._trainer.accelerator.unscale_gradients()
        self.norm = clip_grad_norm_(unwrap_optimizer(more["optimizer"]), self.max_norm)


class NeuronCallback(_Callback):
    """Trainer callback that `watch` adds; it observes the optimizer during training.

    Attributes:
        check: Counts every parameter's updates by rule.
    """

    def __init__(self, trainer: Any, every: int) -> None:
        self.check = RuleCheck(every)
        self._trainer = trainer
        self._monitor = NeuronMonitor(self._keep, every)
        self._latest: dict[str, float] = {}
        self._handles: list[Any] = []
        self._groups: list[dict[str, Any]] = []
        self._rate: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Attach the probes; a resumed run continues its step count."""
        inner = unwrap_optimizer(more["optimizer"])
        if not isinstance(inner, SpectralOptimizer):
            raise ValueError(f"watch follows polarlight's optimizers, got {type(inner).__name__}")
        _warn_of_ignored(args, inner)
        self._groups = [group for group in inner.param_groups if _is_of_matrices(group)]
        self._monitor.step = state.global_step
        self._handles = [inner.observe(self._monitor), inner.observe(self.check)]

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Log new records through the trainer."""
        if self._latest:
            latest, self._latest = self._latest, {}
            self._trainer.log(latest)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Keep this step's lr before the scheduler changes it."""
        if self._groups:
            self._rate = float(self._groups[0]["lr"])

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Replace the logged learning rate of the first group by that of the matrices."""
        for logged in (more["logs"], state.log_history[-1]):
            if self._rate is not None and "learning_rate" in logged:
                logged["learning_rate"] = self._rate

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Detach the probes."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, step: int, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep means over the tall matrices for the next log."""
        updates = [record["update"] for record in records.values()]
        if updates:
            starved = (update["starved"]["0.1"] for update in updates)
            self._latest = {
                "starved_rows": sum(starved) / len(updates),
                "row_spread": sum(update["spread"] for update in updates) / len(updates),
            }
