"""torchtitan: an optimizers container whose entries may name polarlight's optimizers.

    optimizer=PolarlightOptimizers.Config(
        param_groups=[
            ParamGroupConfig(
                pattern=r".*",
                optimizer_name="Aurora",
                optimizer_kwargs={"lr": 0.02, "weight_decay": 0.01, "aux_lr": 1e-3},
            )
        ]
    )

A name is a class (`Aurora`, `Muon`, `NorMuon`, ...) or a recipe (`aurora_mlp`, `muon_with_adamw`,
`symmetric_stack`); its arguments are those of the class or recipe. Among the parameters that an
entry takes (its pattern matches and no earlier one did) roles decide, from the modules of the whole
model part: hidden matrices get the method, the rest AdamW. `Adam`, `AdamW`
and `DistMuon` stay torchtitan's own. Per model part and name there is one optimizer, so that its
work is shared evenly over all of its matrices; arguments of the whole optimizer (`nonfinite`) are
given once, in `optimizer_factory_kwargs_by_name`. `implementation` concerns torchtitan's optimizers
only.

Everything else is torchtitan's: schedules, flat checkpoints by name, hooks. Written for 0.3.0.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torchtitan.components.checkpointer.utils import canonical_fqn
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

import polarlight
from polarlight import recipes
from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.routing.route import ParamGroup

Made = SpectralOptimizer | list[ParamGroup]

MAKERS: Mapping[str, Callable[..., Made]] = {
    maker.__name__: maker
    for maker in (
        polarlight.Aurora,
        polarlight.Freon,
        polarlight.Kaon,
        polarlight.KLSOAP,
        polarlight.Muon,
        polarlight.MuonEq,
        polarlight.NorMuon,
        polarlight.PolarAdamW,
        polarlight.PolarGrad,
        polarlight.SOAP,
        polarlight.UNorMuon,
        recipes.aurora_mlp,
        recipes.muon_with_adamw,
        recipes.symmetric_stack,
    )
}
"""Values of `optimizer_name` beside torchtitan's own names."""


class PolarlightOptimizers(OptimizersContainer):
    """torchtitan's `OptimizersContainer`, extended by polarlight's names.

    Raises:
        NotImplementedError: If a name is unknown.
        ValueError: If a pattern takes no parameter, or the optimizer refuses its arguments.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """Configuration of the container, with torchtitan's fields."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        """Return the class of an optimizer's name."""
        if name in MAKERS:
            return SpectralOptimizer
        try:
            theirs: Callable[..., Optimizer] = OptimizersContainer._resolve_optimizer_factory(name)
        except NotImplementedError as error:
            raise NotImplementedError(f"{error} polarlight adds: {', '.join(MAKERS)}") from None
        return theirs

    @staticmethod
    def _build_param_groups(
        model: nn.Module,
        param_group_configs: list[ParamGroupConfig],
        impl_kwargs: dict[str, Any],
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
        """Build torchtitan's groups; split those with our names by role."""
        groups, patterns = OptimizersContainer._build_param_groups(
            model, param_group_configs, impl_kwargs
        )
        for name in MAKERS.keys() & groups.keys():
            entries = [entry for entry in param_group_configs if entry.optimizer_name == name]
            parts = [
                (entry.pattern, part)
                for entry, taken in zip(entries, groups[name], strict=True)
                for part in routed(model, MAKERS[name], entry.optimizer_kwargs, taken["params"])
            ]
            groups[name] = [part for _, part in parts]
            patterns[name] = [f"{f}: {part['role']}, {part['rule'].name}" for f, part in parts]
        return groups, patterns


def routed(
    model: nn.Module,
    make: Callable[..., Made],
    arguments: Mapping[str, Any],
    taken: Iterable[Tensor],
) -> list[ParamGroup]:
    """Return the groups of `make(model, **arguments)`, restricted to the taken parameters."""
    made = make(model, **arguments)
    wanted = {id(p) for p in taken}
    groups = made.param_groups if isinstance(made, SpectralOptimizer) else made
    reasons = made.reasons if isinstance(made, SpectralOptimizer) else {}
    parts = (_restricted(group, wanted, reasons) for group in groups)
    return [part for part in parts if part["params"]]


def _restricted(group: ParamGroup, wanted: set[int], reasons: Mapping[str, str]) -> ParamGroup:
    """Return the group with its wanted parameters only, under torchtitan's names."""
    named = zip(group["param_names"], group["params"], strict=True)
    kept = [(name, p) for name, p in named if id(p) in wanted]
    said = group.get("reasons") or reasons
    return group | {
        "params": [p for _, p in kept],
        "param_names": [canonical_fqn(name) for name, _ in kept],
        "reasons": {canonical_fqn(name): said[name] for name, _ in kept if name in said},
    }
