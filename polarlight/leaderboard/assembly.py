"""A recipe on a model: optimizer, hooks, schedules, lookahead and readouts, stepped as one.

    run = record(46).assemble(model)
    for batch in data:
        run.ahead()
        loss(model, batch).backward()
        run.step()
        run.zero_grad()
    with run.evaluating():
        validate(model)

Everything of it is saved by `state_dict` and restored by `load_state_dict`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from polarlight.diloco import Outer, OuterNesterov
from polarlight.hooks.attach import Chain, attach
from polarlight.hooks.averaging import Memory, Readout
from polarlight.hooks.circuit import Circuit, CircuitMuon
from polarlight.hooks.gradients import GradientHook
from polarlight.hooks.lookahead import Anchor, EmaNesterov
from polarlight.leaderboard.recipe import Aux, GroupCurve, Named, Recipe, RecordPart
from polarlight.optimizer import SpectralOptimizer
from polarlight.routing.roles import Assignment, Part, Role, infer_roles
from polarlight.rule import UpdateRule
from polarlight.rules.adamw import AdamWRule
from polarlight.scheduling import Curve, GroupSchedule
from polarlight.view import Heads

HIDDEN_ROLES = frozenset({Role.HIDDEN, Role.GATE_UP, Role.DOWN, Role.ATTENTION, Role.EXPERT})
KIND = "kind"
"""Entry of the groups: "hidden", or the kind of AdamW's parameters."""


PartsOf = Callable[[Part | None], Sequence[str]]
"""Kind of hidden matrix, or None for AdamW's parameters -> names of the parts that concern it."""


class Assembled:
    """A recipe on a model.

    Args:
        recipe: The recipe.
        model: The model, whose weights are as they are.
        parts: Names of parts for `explain`; None for none.

    Attributes:
        optimizer: The optimizer; hooks on weights and the anchor are attached to it.
        schedules: Schedules of its groups.
        lookahead: EMA-Nesterov, or None.
        readouts: Weights for evaluation, outermost first.
        gradients: Hooks on gradients.
        changes: Changes of weights at fixed steps.
        outer: Rounds of the outer optimizer, or None.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, parts: PartsOf | None = None) -> None:
        groups = param_groups(recipe, model, parts or (lambda kind: ()))
        self.optimizer = SpectralOptimizer(groups, lr=recipe.lr)
        named = _named(model, self.optimizer)
        hidden = {id(p) for _, p in named["hidden"]}
        self.gradients: list[GradientHook] = [make(model, named) for make in recipe.gradients]
        for hook in self.gradients:
            hook.attach(self.optimizer)
        if recipe.circuits is not None:
            CircuitMuon(circuits_of(model), recipe.circuits).attach(self.optimizer)
        if recipe.hooks:
            attach(self.optimizer, Chain(recipe.hooks), where=lambda _, p: id(p) in hidden)
        self.anchor: Anchor | None = None
        if recipe.anchor is not None:
            self.anchor = Anchor(named["hidden"], fade=recipe.anchor)
            self.anchor.attach(self.optimizer)
        self.schedules = _schedules(recipe, self.optimizer)
        self.lookahead: EmaNesterov | None = None
        if recipe.lookahead is not None:
            ahead = recipe.lookahead
            kinds = [group[KIND] for group in self.optimizer.param_groups]
            first_aux = next(i for i, kind in enumerate(kinds) if kind != "hidden")
            self.lookahead = EmaNesterov(
                named["all"],
                beta=ahead.beta,
                prefill=ahead.prefill,
                rest=ahead.rest,
                optimizer=self.optimizer,
                group=first_aux,
            )
        self.readouts: list[Readout] = [make(named) for make in recipe.readouts]
        self.changes: list[Memory] = [make(named) for make in recipe.changes]
        self.outer: Outer | None = None
        if recipe.outer is not None:
            every, lr, momentum = recipe.outer
            nesterov = OuterNesterov(lr, momentum)
            self.outer = Outer(named["all"], every=every, optimizer=nesterov)

    def ahead(self) -> None:
        """Look ahead, before the forward pass of a step."""
        if self.lookahead is not None:
            self.lookahead.ahead()

    def step(self) -> None:
        """Step the optimizer and everything that follows a step."""
        self.optimizer.step()
        if self.outer is not None:
            self.outer.step()
        if self.lookahead is not None:
            self.lookahead.follow()
        for follower in (*self.changes, *self.readouts):
            follower.update()
        for schedule in self.schedules:
            schedule.step()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the weights for evaluation in the model; restore the trained ones at the end."""
        with ExitStack() as stack:
            for readout in self.readouts:
                stack.enter_context(readout.applied())
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parts."""
        return {
            "optimizer": self.optimizer.state_dict(),
            **{f"{name} {i}": part.state_dict() for name, i, part in self._parts()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If a part's state is missing or belongs to another one.
        """
        needed = {f"{name} {i}" for name, i, _ in self._parts()}
        if missing := sorted(needed - state_dict.keys()):
            raise ValueError(f"the state has no {missing[0]}; it is of another recipe")
        self.optimizer.load_state_dict(state_dict["optimizer"])
        for name, i, part in self._parts():
            part.load_state_dict(state_dict[f"{name} {i}"])

    def _parts(self) -> Iterator[tuple[str, int, Any]]:
        """Yield what is saved beside the optimizer: kind, number, object."""
        single = {"lookahead": self.lookahead, "anchor": self.anchor, "outer": self.outer}
        yield from ((name, 0, part) for name, part in single.items() if part is not None)
        yield from (("readout", i, part) for i, part in enumerate(self.readouts))
        for name, several in (
            ("schedule", self.schedules),
            ("gradient", self.gradients),
            ("change", self.changes),
        ):
            yield from ((name, i, part) for i, part in enumerate(several))


def circuits_of(model: nn.Module) -> list[Circuit]:
    """Return value and output projections of every attention layer whose heads are known.

    Raises:
        ValueError: If there are none.
    """
    found = {(_layer(a), a.part): a for a in infer_roles(model) if isinstance(a.heads, Heads)}
    pairs = [
        (value, found[layer, Part.OUTPUT])
        for (layer, kind), value in found.items()
        if kind is Part.VALUE and (layer, Part.OUTPUT) in found
    ]
    if not pairs:
        raise ValueError(
            "Circuit-Muon needs attention layers with separate value and output projections and a "
            "known number of heads; leave the part out: without=('circuit-muon',)"
        )
    return [Circuit(v.parameter, o.parameter, v.heads.count) for v, o in pairs]  # type: ignore[union-attr]


def _layer(assignment: Assignment) -> str:
    """Return the name of the module that holds a projection."""
    return assignment.name.rpartition(".")[0].rpartition(".")[0]


def param_groups(
    recipe: Recipe, model: nn.Module, parts: PartsOf = lambda kind: ()
) -> list[dict[str, Any]]:
    """Return the param groups of a recipe, by the roles of the model's parameters.

    Hidden matrices of one role with one rule are a group; so are AdamW's parameters of a kind.

    Args:
        recipe: The recipe.
        model: Its parameters are grouped.
        parts: Names of parts by kind of matrix, for `explain`.
    """
    groups: dict[object, dict[str, Any]] = {}
    found = list(infer_roles(model))
    output = {a.name.removesuffix("weight") for a in found if a.part is Part.OUTPUT}
    for assignment in found:
        name, p = assignment.name, assignment.parameter
        if assignment.role in HIDDEN_ROLES and p.ndim >= 2:
            rule = recipe.rule_of(assignment.part)
            own = (recipe.lr, recipe.weight_decay)
            lr, decay = recipe.rates.get(assignment.part, own)
            key: object = (assignment.role, rule, assignment.view, lr, decay)
            numbers = {"lr": lr, "weight_decay": decay, KIND: "hidden"}
            more = {"view": assignment.view} if isinstance(rule, UpdateRule) else {}
            fresh = {"rule": rule, "momentum": recipe.beta, **numbers, **more}
        else:
            kind = aux_kind(assignment, output)
            key, fresh = _aux_group(recipe.aux, kind)
        fresh |= {"role": str(assignment.role), "params": [], "reasons": {}}
        group = groups.setdefault(key, fresh)
        group["params"].append((name, p))
        hidden = group[KIND] == "hidden"
        named = ", ".join(parts(assignment.part if hidden else None))
        group["reasons"][name] = (
            f"{assignment.reason}; parts {named}" if named else assignment.reason
        )
    return list(groups.values())


def aux_kind(assignment: Assignment, output: set[str]) -> str:
    """Return the kind of a parameter of AdamW's: embed, head, gains, biases or output_biases.

    Args:
        assignment: Role and name of the parameter.
        output: Names, up to `weight`, of the projections that attention ends with.
    """
    if assignment.parameter.ndim >= 2:
        return "head" if assignment.role is Role.HEAD else "embed"
    if not assignment.name.endswith("bias"):
        return "gains"
    return "output_biases" if assignment.name.removesuffix("bias") in output else "biases"


def _aux_group(aux: Aux, kind: str) -> tuple[object, dict[str, Any]]:
    """Return the key and the entries of the group of one kind."""
    beta2 = aux.beta2.get(kind, 0.95)
    rule = AdamWRule(beta2, 1e-10, bias_correction=kind not in aux.uncorrected)
    rate = {"embed": aux.embed, "head": aux.head}.get(kind, aux.vectors)
    shown = kind if kind in ("embed", "head") else "vectors"
    numbers = {"lr": rate, "weight_decay": aux.weight_decay, "momentum": aux.beta1}
    return (shown, rule), {"rule": rule, KIND: shown, **numbers}


def _named(model: nn.Module, optimizer: SpectralOptimizer) -> dict[str, Named]:
    """Return the parameters: all, hidden matrices, all but embeddings, hidden ones by kind."""
    named = [
        (name, p, group[KIND])
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    ]

    def chosen(*without: str) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p, kind in named if kind not in without]

    hidden = [(name, p) for name, p, kind in named if kind == "hidden"]
    parts = {a.name: a.part for a in infer_roles(model)}
    by_kind: dict[str, list[tuple[str, Tensor]]] = {str(part): [] for part in Part}
    for name, p in hidden:
        by_kind[str(parts[name])].append((name, p))
    return {**by_kind, "all": chosen(), "hidden": hidden, "not_embedding": chosen("embed")}


def _schedules(recipe: Recipe, optimizer: SpectralOptimizer) -> list[GroupSchedule]:
    """Return the schedules of both halves of the groups, and of other entries."""

    def schedule(key: str, hidden: bool, curve: Curve) -> GroupSchedule:
        return GroupSchedule(
            optimizer, curve, key=key, where=lambda group: (group[KIND] == "hidden") == hidden
        )

    aux = recipe.cooldown if recipe.aux_cooldown is None else recipe.aux_cooldown
    return [
        schedule("lr", True, recipe.cooldown),
        schedule("lr", False, aux),
        *(schedule(c.key, c.hidden, c.curve) for c in recipe.curves),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A result of the leaderboard.

    Attributes:
        number: Its number.
        title: What it is called there.
        base: The recipe before its parts.
        parts: Changes, in the order in which they are made.
        initial: How weights are initialized: one of the schemes of `lab/train/track3/initial.py`.
        horizon: Steps of its schedule.
        steps: Step at which it is scored.
        loss: Mean validation loss there.
        runs: Number of runs.
    """

    number: int
    title: str
    base: Recipe
    parts: tuple[RecordPart, ...] = ()
    initial: str
    horizon: int
    steps: int
    loss: float
    runs: int

    def recipe(self) -> Recipe:
        """Return the recipe with all parts."""
        recipe = self.base
        for part in self.parts:
            recipe = part.change(recipe)
        return recipe

    def assemble(self, model: nn.Module) -> Assembled:
        """Return the recipe on a model, whose weights are as they are."""
        return Assembled(self.recipe(), model, self.parts_of)

    def parts_of(self, kind: Part | None) -> list[str]:
        """Return the names of the parts that concern a kind of hidden matrix.

        Args:
            kind: The kind; None for the parameters that AdamW has.
        """
        found, before = [], self.base
        for part in self.parts:
            after = part.change(before)
            if _concerns(before, after, kind):
                found.append(part.name)
            before = after
        return found

    @property
    def label(self) -> str:
        """Number and parts, as text that is equal for equal results."""
        return f"result {self.number}: {'; '.join(map(repr, self.parts)) or self.title}"

    @property
    def of_benchmark(self) -> tuple[str, ...]:
        """Names of the parts whose numbers belong to the benchmark's model or loss."""
        return tuple(part.name for part in self.parts if part.of_benchmark)


_OF_ALL = ("lookahead", "readouts", "changes", "outer")
_OF_HIDDEN = ("lr", "weight_decay", "beta", "rates", "gradients", "hooks", "cooldown", "anchor")
_OF_AUX = ("aux", "aux_cooldown")
"""Entries of a recipe by what they concern; those of the rule are seen in the rule."""


def _concerns(before: Recipe, after: Recipe, kind: Part | None) -> bool:
    """Tell whether a change of a recipe concerns a kind of matrix, None for AdamW's parameters."""

    def differs(names: tuple[str, ...]) -> bool:
        return any(getattr(before, name) != getattr(after, name) for name in names)

    def curves(recipe: Recipe) -> list[GroupCurve]:
        return [curve for curve in recipe.curves if curve.hidden == (kind is not None)]

    if differs(_OF_ALL) or curves(before) != curves(after):
        return True
    if kind is None:
        shared = after.aux_cooldown is None and differs(("cooldown",))
        return shared or differs(_OF_AUX)
    coupled = kind in (Part.VALUE, Part.OUTPUT) and differs(("circuits",))
    return coupled or differs(_OF_HIDDEN) or before.rule_of(kind) != after.rule_of(kind)
