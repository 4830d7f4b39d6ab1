"""A result of the leaderboard as a value: slots by kind of matrix, hooks, curves, readouts.

A `Recipe` is made of parts: each is named and changes the recipe before it, so that a result
without one of its parts is a recipe too. `leaderboard/table.py` has the results, `assembly.py` puts
a recipe on a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from polarlight.hooks.attach import WeightHook
from polarlight.hooks.averaging import Memory, Readout
from polarlight.hooks.gradients import GradientHook
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.schedules import SIMPLE_QUINTIC
from polarlight.linalg.slot import Slot
from polarlight.routing.roles import Part as Kind
from polarlight.rule import Momentum, Rule, Scale, UpdateRule
from polarlight.scheduling import Constant, Curve
from polarlight.stages.momentum import EMA
from polarlight.stages.scales import Original

POLAR = NewtonSchulz(SIMPLE_QUINTIC)
"""The benchmark's polar factor: twelve simple quintics from the Frobenius norm."""

MLP = frozenset({Kind.GATE, Kind.UP, Kind.GATE_UP, Kind.DOWN})
EVERY_KIND = frozenset(Kind)
"""Kinds of hidden matrices: the projection that each is."""

Named = Sequence[tuple[str, Tensor]]
ReadoutMaker = Callable[[Mapping[str, Named]], Readout]
"""Parameters by "all", "hidden", "not_embedding" or kind of matrix -> a readout of some of them."""

GradientMaker = Callable[[nn.Module, Mapping[str, Named]], GradientHook]
"""Model, parameters likewise -> a hook on the gradients of some of them."""

ChangeMaker = Callable[[Mapping[str, Named]], Memory]
"""Parameters likewise -> an object whose `update()` changes weights after a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aux:
    """AdamW of everything that is no hidden matrix.

    Attributes:
        embed: Learning rate of embeddings.
        head: Of the output layer.
        vectors: Of biases and gains.
        weight_decay: Of all three.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment by kind: embed, head, gains, biases, output_biases (of the
            projections that attention ends with).
        uncorrected: Kinds without bias correction.
    """

    embed: float = 0.3
    head: float = 1 / 320
    vectors: float = 0.01
    weight_decay: float = 0.0
    beta1: float = 0.8
    beta2: Mapping[str, float] = field(default_factory=dict)
    uncorrected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCurve:
    """A curve of some groups.

    Attributes:
        key: Entry of the groups.
        hidden: Whether it is for hidden matrices or for the others.
        curve: Value by step; a factor for lr and weight decay.
    """

    key: str
    hidden: bool
    curve: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookahead:
    """Numbers of `hooks.EmaNesterov`."""

    beta: float
    prefill: int
    rest: int


def no_balance(kind: Kind) -> Slot | None:
    """Return None: nothing before the map."""
    return None


def plain_polar(kind: Kind) -> Slot:
    """Return the benchmark's polar factor."""
    return POLAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a result does beside the model and its data.

    Attributes:
        name: Name of the rules in checkpoints.
        rule: Rule of hidden matrices in place of the slots below; None for the slots.
        momentum: Momentum slot.
        balance: Slot before the map, by kind of matrix.
        map: The map, by kind of matrix.
        post: Slots after it.
        scale: Factor by shape.
        lr: Learning rate of hidden matrices.
        weight_decay: Their decoupled weight decay.
        beta: Their momentum, if no curve moves it.
        rates: Learning rate and weight decay of some kinds of matrices, in place of these.
        gradients: Hooks on gradients, before the step.
        hooks: Weight hooks of hidden matrices, in order.
        aux: AdamW of the rest.
        cooldown: Factor on the learning rate of hidden matrices.
        aux_cooldown: Factor on the others; None for the same.
        curves: Curves of other entries.
        lookahead: EMA-Nesterov on all parameters, or None.
        readouts: Weights for evaluation, outermost first.
        changes: Changes of weights at fixed steps.
        anchor: Fade of the pull of hidden matrices towards their start, or None.
        circuits: Damping of Circuit-Muon on value and output projections, or None.
        outer: Steps of a round, learning rate and momentum of the outer Nesterov, or None.
    """

    name: str
    rule: Rule | None = None
    momentum: Momentum = EMA()
    balance: Callable[[Kind], Slot | None] = no_balance
    map: Callable[[Kind], Slot] = plain_polar
    post: tuple[Slot, ...] = ()
    scale: Scale = Original()
    lr: float = 0.02
    weight_decay: float = 0.0
    beta: float = 0.95
    rates: Mapping[Kind, tuple[float, float]] = field(default_factory=dict)
    gradients: tuple[GradientMaker, ...] = ()
    hooks: tuple[WeightHook, ...] = ()
    aux: Aux = field(default_factory=Aux)
    cooldown: Curve = Constant()  # noqa: RUF009  a frozen value
    aux_cooldown: Curve | None = None
    curves: tuple[GroupCurve, ...] = ()
    lookahead: Lookahead | None = None
    readouts: tuple[ReadoutMaker, ...] = ()
    changes: tuple[ChangeMaker, ...] = ()
    anchor: Curve | None = None
    circuits: float | None = None
    outer: tuple[int, float, float] | None = None

    def rule_of(self, kind: Kind) -> Rule:
        """Return the rule of one kind of hidden matrix."""
        if self.rule is not None:
            return self.rule
        return UpdateRule(
            name=self.name,
            momentum=self.momentum,
            balance=self.balance(kind),
            map=self.map(kind),
            post=self.post,
            scale=self.scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPart:
    """One named change of a recipe.

    Attributes:
        name: Name for `--without`.
        about: What it does, with its numbers.
        change: Returns the recipe with it.
        of_benchmark: Whether its numbers belong to the benchmark's model or loss, so that another
            model needs others.
    """

    name: str
    about: str
    change: Callable[[Recipe], Recipe]
    of_benchmark: bool = False

    def __repr__(self) -> str:
        return f"{self.name}: {self.about}"
