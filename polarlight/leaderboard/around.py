"""Parts of the leaderboard's results around the rule: weight hooks, curves, readouts, AdamW."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import cos, pi

from torch import nn

from polarlight.hooks.attach import FromGroup, HookNumber, WeightHook
from polarlight.hooks.averaging import Memory, Readout, Snapshot, TailAverage, UpdateAverage
from polarlight.hooks.constraints import HyperBall, UpdateFloor
from polarlight.hooks.decay import CautiousDecay
from polarlight.hooks.gradients import GradientHook
from polarlight.hooks.muown import Muown
from polarlight.hooks.newton_muon import NewtonMuon
from polarlight.hooks.radius import RadialBrake, RadiusPin
from polarlight.leaderboard.parts import Clock, part
from polarlight.leaderboard.recipe import (
    Aux,
    GroupCurve,
    Lookahead,
    Named,
    Recipe,
    RecordPart,
)
from polarlight.leaderboard.weight_changes import Extrapolation, Pulses
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.polar_express import polar_express
from polarlight.routing.roles import Part as Kind
from polarlight.scheduling import Curve, Joined, Piecewise, PowerCool
from polarlight.stages.scales import MatchRmsAdamW


def _hooked(name: str, about: str, hook: WeightHook) -> RecordPart:
    @part(name, about)
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, hooks=(*recipe.hooks, hook))

    return change


def hyperball() -> RecordPart:
    """Constant norm of every hidden matrix."""
    return _hooked("hyperball", "norm of each matrix kept", HyperBall())


def update_floor(floor: float) -> RecordPart:
    """Least update over weight, of whole matrices."""
    return _hooked("update-floor", f"update over weight at least {floor:g}", UpdateFloor(floor))


def row_floor(floor: float) -> RecordPart:
    """Least update over weight, row by row."""
    about = f"update over weight of each row at least {floor:g}"
    return _hooked("row-floor", about, UpdateFloor(floor, rows=True))


def moving_floor(curve: Piecewise) -> RecordPart:
    """Least update over weight that moves with the steps."""
    hook = UpdateFloor(FromGroup("update_floor", curve(0)))
    return _moving("update-floor", f"update over weight at least {curve}", hook, curve)


def radial_brake(outward: HookNumber = 0.5) -> RecordPart:
    """Outward part of each step braked."""
    return _hooked("radial-brake", f"{outward} of an outward step kept", RadialBrake(outward))


def moving_brake(curve: Piecewise) -> RecordPart:
    """Outward part of each step braked, more and more."""
    hook = RadialBrake(FromGroup("outward", curve(0)))
    return _moving("radial-brake", f"{curve} of an outward step kept", hook, curve)


def _moving(name: str, about: str, hook: UpdateFloor | RadialBrake, curve: Piecewise) -> RecordPart:
    number = hook.floor if isinstance(hook, UpdateFloor) else hook.outward
    assert isinstance(number, FromGroup)
    moving = GroupCurve(key=number.key, hidden=True, curve=curve)

    @part(name, about)
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, hooks=(*recipe.hooks, hook), curves=(*recipe.curves, moving))

    return change


def radius_pin() -> RecordPart:
    """Norm of each matrix moved by the radial part of its step alone."""
    return _hooked("radius-pin", "norm moved by the radial part alone", RadiusPin())


def cautious_decay(weight_decay: float) -> RecordPart:
    """Cautious decay, after the pin if there is one."""

    @part("cautious-decay", f"{weight_decay:g} where step and decay agree")
    def change(recipe: Recipe) -> Recipe:
        if recipe.hooks and isinstance(recipe.hooks[-1], RadiusPin):
            return replace(recipe, hooks=(*recipe.hooks[:-1], RadiusPin(weight_decay)))
        return replace(recipe, hooks=(*recipe.hooks, CautiousDecay(weight_decay)))

    return change


def power_cool(clock: Clock, horizon: float) -> RecordPart:
    """PowerCool: the hidden matrices' rate falls over 2386 steps, the others' over 1413."""
    at = clock(horizon)

    @part("powercool", f"power 1.2 of the steps left of {at}")
    def change(recipe: Recipe) -> Recipe:
        return replace(
            recipe,
            cooldown=PowerCool(at, 2386.4 * clock.ratio),
            aux_cooldown=PowerCool(at, 1413.0 * clock.ratio),
        )

    return change


def power_cool_twice(clock: Clock, horizon: float, at: float, then: float) -> RecordPart:
    """PowerCool towards one horizon, from a step on towards another."""
    first, second, switch = clock(horizon), clock(then), clock(at)

    @part("powercool", f"power 1.2 of the steps left of {first}, from step {switch} of {second}")
    def change(recipe: Recipe) -> Recipe:
        both = (
            Joined(PowerCool(first, length), switch, PowerCool(second, length))
            for length in (2386.4 * clock.ratio, 1413.0 * clock.ratio)
        )
        return replace(recipe, cooldown=next(both), aux_cooldown=next(both))

    return change


def momentum_schedule(clock: Clock, nominal: float, cool: float) -> RecordPart:
    """Momentum from 0.85 up to 0.95, and down again at the end of the nominal length."""
    points = [(0, 0.85), (clock(300), 0.95), (clock(nominal - cool), 0.95), (clock(nominal), 0.85)]
    curve = GroupCurve(key="momentum", hidden=True, curve=Piecewise(*_rising(points)))

    @part("momentum-schedule", f"0.85 to 0.95 over {clock(300)} steps, down over the last")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, curves=(*recipe.curves, curve))

    return change


def _rising(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the points at least one step apart, for very short runs."""
    kept = points[:1]
    for step, value in points[1:]:
        kept.append((max(step, kept[-1][0] + 1), value))
    return kept


def lookahead(beta: float, prefill: int, rest: int) -> RecordPart:
    """EMA-Nesterov."""

    @part("ema-nesterov", f"lookahead {beta:g} z, steps {prefill} to {rest}")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, lookahead=Lookahead(beta=beta, prefill=prefill, rest=rest))

    return change


def _read(name: str, about: str, make: Callable[[Mapping[str, Named]], Readout]) -> RecordPart:
    @part(name, about)
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, readouts=(*recipe.readouts, make))

    return change


def tail_average(tau: float, start: int) -> RecordPart:
    """Tail average of all but the embedding, at evaluation."""
    return _read(
        "tail-ema",
        f"evaluate 0.6 of the average over {tau:g} steps, from step {start}",
        lambda named: TailAverage(named["not_embedding"], tau=max(tau, 1.0), start=max(start, 1)),
    )


def update_average(start: int) -> RecordPart:
    """Weights six mean updates back, at evaluation."""
    return _read(
        "update-ema",
        f"evaluate 6 mean updates back, from step {start}",
        lambda named: UpdateAverage(named["hidden"], start=start),
    )


def reference(at: int, read_from: int) -> RecordPart:
    """A little of the weights of an earlier step, at evaluation."""
    return _read(
        "reference",
        f"evaluate 0.075 of the weights of step {at}, from step {read_from}",
        lambda named: Snapshot(named["all"], at=max(at, 1), read_from=read_from),
    )


def anchor(clock: Clock) -> RecordPart:
    """Pull of hidden matrices towards their initial weights."""

    def fade(step: int) -> float:
        done = min(max((step / clock.ratio - 2000) / 750, 0.0), 1.0)
        return (1 + cos(pi * done)) / 2

    @part("anchor", "pull of 1 / (t + 2) towards the initial weights")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, anchor=fade)

    return change


def circuit_muon(damping: float = 1e-3) -> RecordPart:
    """Steps of value and output projections made for each other."""

    @part("circuit-muon", f"value and output steps coupled per head, damping {damping:g}")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, circuits=damping)

    return change


def muloco(every: int) -> RecordPart:
    """Outer Nesterov on all parameters every few steps."""

    @part("muloco", f"outer Nesterov every {every} steps, lr 0.7, momentum 0.5")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, outer=(every, 0.7, 0.5))

    return change


def split_cooldown(hidden: Curve, aux: Curve) -> RecordPart:
    """One curve for hidden matrices, another for the rest."""

    @part("split-cooldown", f"{hidden} and {aux}")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, cooldown=hidden, aux_cooldown=aux)

    return change


def aux_beta2(**beta2: float) -> RecordPart:
    """Second moments of AdamW with other memories."""

    @part("aux-beta2", ", ".join(f"{kind} {beta:g}" for kind, beta in beta2.items()))
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, aux=replace(recipe.aux, beta2={**recipe.aux.beta2, **beta2}))

    return change


def uncorrected_vectors() -> RecordPart:
    """AdamW of biases and gains without bias correction."""

    @part("uncorrected-vectors", "biases and gains without bias correction")
    def change(recipe: Recipe) -> Recipe:
        kinds = frozenset({"gains", "biases", "output_biases"})
        return replace(recipe, aux=replace(recipe.aux, uncorrected=kinds))

    return change


def newton_muon(clock: Clock) -> RecordPart:
    """Gradients times the inverse covariance of their layer's inputs."""
    every = max(clock(64), 1)

    def make(model: nn.Module, named: Mapping[str, Named]) -> GradientHook:
        return NewtonMuon(model, named["hidden"], every=every)

    @part("newton", f"inverse covariance of inputs, seen every {every} steps")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, gradients=(*recipe.gradients, make))

    return change


def muown(length: int, power: float, factors: Mapping[Kind, float]) -> RecordPart:
    """Directions and norms of rows trained apart.

    Args:
        length: Steps of the schedule of row norms.
        power: Of the schedule.
        factors: By kind of matrix, on the last norm of 2.496.
    """

    def make(model: nn.Module, named: Mapping[str, Named]) -> GradientHook:
        target = {name: 2.496 for name, _ in named["hidden"]}
        for kind, factor in factors.items():
            target |= {name: 2.496 * factor for name, _ in named[str(kind)]}
        return Muown(named["hidden"], target.__getitem__, length=max(length, 2), power=power)

    told = ", ".join(f"{kind} {factor:.3g}" for kind, factor in factors.items())
    fine = NewtonSchulz(polar_express(12))

    @part("muown", f"row norms to 2.496 over {length} steps, power {power:g}, times {told}")
    def change(recipe: Recipe) -> Recipe:
        return replace(
            recipe,
            gradients=(*recipe.gradients, make),
            scale=MatchRmsAdamW(),
            map=lambda kind: fine,
        )

    return change


def extrapolation(clock: Clock) -> RecordPart:
    """Weights moved along their last changes, every five steps near the end."""
    start, last = clock(2820), clock(2925)

    def make(named: Mapping[str, Named]) -> Memory:
        return Extrapolation(named["hidden"], start=start, last=last)

    @part("extrapolation", f"every 5 steps from step {start}", of_benchmark=True)
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, changes=(*recipe.changes, make))

    return change


def pulses(clock: Clock) -> RecordPart:
    """Changes of weights at five steps."""

    def make(named: Mapping[str, Named]) -> Memory:
        circuits = {name for kind in (Kind.VALUE, Kind.OUTPUT) for name, _ in named[str(kind)]}
        other = frozenset(name for name, _ in named["hidden"]) - circuits
        return Pulses(named["not_embedding"], other, clock)

    @part("pulses", f"weights changed at steps {clock(2400)} to {clock(2850)}", of_benchmark=True)
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, changes=(*recipe.changes, make))

    return change


RETUNED = Aux(embed=0.7, head=0.004, vectors=0.015, weight_decay=0.001)
"""AdamW's rates of result 36."""
