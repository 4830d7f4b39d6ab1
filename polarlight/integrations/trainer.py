"""Hugging Face Trainer: the whole model routed, one optimizer, its neurons in the logs.

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        optimizer_cls_and_kwargs=(factory(polarlight.Aurora), {"lr": 0.02, "aux_lr": 3e-3}),
    )
    watch(trainer, every=100)

`optimizers=(polarlight.Aurora(model, lr=0.02), None)` works as well. In both, learning rates and
weight decay are the optimizer's own: `TrainingArguments.learning_rate` and `weight_decay` are not
read; the scheduler multiplies every group's own rate. Given an optimizer *class*, Trainer passes
parameters without names, which no rule can be chosen from: hence the factory.

Nothing here imports transformers: Trainer asks its callbacks for methods by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.diagnostics.rule_check import RuleCheck
from polarlight.optimizer.spectral import SpectralOptimizer

Make = Callable[..., Any]


def factory(make: Make) -> Callable[[], Callable[..., Optimizer]]:
    """For `optimizer_cls_and_kwargs=(factory(make), kwargs)`: Trainer calls it with the model.

    Args:
        make: An optimizer's class (`polarlight.Aurora`), or a recipe that returns param groups
            (`polarlight.recipes.symmetric_stack`); called with (model, **kwargs).
    """

    def build(model: nn.Module, **kwargs: Any) -> Optimizer:
        made = make(model, **kwargs)
        return made if isinstance(made, Optimizer) else SpectralOptimizer(made)

    return lambda: build


def watch(trainer: Any, *, every: int = 100) -> "NeuronCallback":
    """Logs, every so many steps, how many rows of tall matrices starve, through the trainer.

    The values go where the trainer's own do: its history, the console, every tracker.
    `print(watch(...).check.report())` after training says which rule moved which parameter.

    Args:
        trainer: A `transformers.Trainer`.
        every: Steps between two records, at least 1.
    """
    callback = NeuronCallback(trainer, every)
    trainer.add_callback(callback)
    return callback


class NeuronCallback:
    """The callback that `watch` adds; it follows the optimizer while the trainer trains.

    Attributes:
        check: Counts every parameter's updates by rule.
    """

    def __init__(self, trainer: Any, every: int) -> None:
        self.check = RuleCheck(every)
        self._trainer = trainer
        self._monitor = NeuronMonitor(self._keep, every)
        self._latest: dict[str, float] = {}
        self._handles: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Starts watching; a resumed run goes on counting where it stopped."""
        optimizer = more["optimizer"]
        inner = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(inner, SpectralOptimizer):
            raise ValueError(f"watch follows polarlight's optimizers, got {type(inner).__name__}")
        self._monitor.step = state.global_step
        self._handles = [inner.observe(self._monitor), inner.observe(self.check)]

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Hands new records to the trainer."""
        if self._latest:
            latest, self._latest = self._latest, {}
            self._trainer.log(latest)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Stops watching."""
        for handle in self._handles:
            handle.remove()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Trainer calls a method for every event; those not listed above do nothing."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return _nothing

    def _keep(self, step: int, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Averages over the tall matrices of the model."""
        updates = [record["update"] for record in records.values()]
        if updates:
            starved = (update["starved"]["0.1"] for update in updates)
            self._latest = {
                "starved_rows": sum(starved) / len(updates),
                "row_spread": sum(update["spread"] for update in updates) / len(updates),
            }


def _nothing(*arguments: Any, **more: Any) -> None:
    return None
