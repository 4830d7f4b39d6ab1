"""The results of modded-nanoGPT's optimization benchmark (track 3), as parts.

Source: KellerJordan/modded-nanogpt, records/track_3_optimization, results 1 to 46, by their scripts
and logs. `docs/track3.md` lists them with their parts.

`scored` is: steps of the schedule, step at which the result is scored, mean loss there, runs.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from polarlight.leaderboard import around, parts
from polarlight.leaderboard.assembly import Result
from polarlight.leaderboard.parts import Clock
from polarlight.leaderboard.recipe import EVERY_KIND, MLP, POLAR, Aux, Recipe, RecordPart
from polarlight.linalg.normalisation import FROBENIUS
from polarlight.lookup import look_up
from polarlight.routing.roles import Part as Kind
from polarlight.rules.adamw import AdamWRule
from polarlight.rules.dyn_muon import dyn_muon
from polarlight.rules.grafted_shampoo import grafted_shampoo
from polarlight.rules.kl_soap import kl_soap
from polarlight.rules.pmuon import pmuon
from polarlight.rules.psgd_kron import psgd_kron
from polarlight.rules.sink_soap import sink_soap
from polarlight.rules.soap_h import soap_h
from polarlight.scheduling import Constant, Cooldown, Curve, Joined, Piecewise, WarmUp
from polarlight.stages.gradient_moment import GradientSecondMoment
from polarlight.stages.momentum import RawGradient
from polarlight.stages.side import Side

TOKENS_PER_STEP = 524_288
"""Of the benchmark: losses are summed over them."""

Parts = tuple[RecordPart, ...]
Scored = tuple[int, int, float, int]


def _row(
    number: int,
    title: str,
    recipe: dict[str, Any],
    some: Parts = (),
    *,
    scored: Scored,
    initial: str = "Z",
) -> Result:
    horizon, steps, loss, runs = scored
    base = Recipe(name=f"track3_{number}", **recipe)
    numbers = {"horizon": horizon, "steps": steps, "loss": loss, "runs": runs}
    return Result(number=number, title=title, base=base, parts=some, initial=initial, **numbers)  # type: ignore[arg-type]


def _at(cooldown: Curve, lr: float, weight_decay: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return the rates of a recipe."""
    return {"cooldown": cooldown, "lr": lr, "weight_decay": weight_decay, **more}


def _falling(clock: Clock, steps: float, fall: float = 0.7, **shape: float) -> Cooldown:
    """Return the benchmark's cooldown over a number of steps of the full run."""
    return Cooldown(max(clock(steps), 1), fall=fall, **shape)


def _muons(clock: Clock) -> Iterator[Result]:
    """Muon with other numbers, or one part more."""

    def at(steps: int, lr: float, wd: float, **more: Any) -> dict[str, Any]:
        return _at(_falling(clock, steps), lr, wd, **more)

    square, raw = GradientSecondMoment(), RawGradient()
    even, ahead = parts.normuon_lite(), around.lookahead(0.6, clock(500), clock(2400))
    yield _row(1, "Muon", at(3600, 0.02, 0.01), initial="T", scored=(3600, 3600, 3.2777, 1))
    yield _row(3, "Muon", at(3500, 0.025, 0.0125), initial="T", scored=(3500, 3500, 3.2767, 1))
    yield _row(6, "Muon", at(3375, 0.025, 0.025), scored=(3375, 3375, 3.2788, 20))
    recipe = at(3325, 0.10, 0.0125, balance=lambda kind: square)
    yield _row(7, "Muon^2", recipe, initial="T", scored=(3325, 3325, 3.2752, 1))
    recipe = at(3300, 0.035, 0.025)
    yield _row(10, "NorMuon-lite", recipe, (even,), scored=(3300, 3250, 3.2789, 20))
    yield _row(12, "Muon", at(3350, 0.035, 0.025), scored=(3350, 3325, 3.2790, 20))
    recipe = at(8500, 0.03, 0.015, momentum=raw)
    yield _row(22, "SpectralDescent", recipe, scored=(8500, 8225, 3.2774, 4))
    recipe = at(3250, 0.025, 0.05, aux=around.RETUNED)
    yield _row(36, "Muon, retuned", recipe, scored=(3250, 3250, 3.2787, 10))
    recipe = at(3150, 0.035, 0.025)
    yield _row(39, "EMA-Nesterov", recipe, (ahead,), scored=(3150, 3125, 3.2786, 20))


def _on_gradients(clock: Clock) -> Iterator[Result]:
    """Gradients changed in front of the momentum."""
    rates = {
        **dict.fromkeys((Kind.QUERY, Kind.KEY, Kind.VALUE), (0.020, 0.025)),
        Kind.OUTPUT: (0.025, 0.025),
        Kind.UP: (0.030, 0.0375),
        Kind.DOWN: (0.030, 0.025),
    }
    recipe = _at(_falling(clock, 3300), 0.02, 0.025, rates=rates)
    newton = around.newton_muon(clock)
    yield _row(15, "Newton-Muon", recipe, (newton,), scored=(3300, 3275, 3.2785, 15))
    aux = Aux(embed=0.6, head=0.009375, vectors=0.03)
    down = {Kind.DOWN: 10 / 3}
    recipe = _at(_falling(clock, 3165, power=0.9), 0.00325, aux=aux)
    some: Parts = (around.muown(clock(3165), 1.2, down),)
    yield _row(23, "Muown", recipe, some, scored=(3165, 3075, 3.2790, 30))
    recipe = _at(_falling(clock, 3045, power=0.9), 0.0045, aux=aux, beta=0.946)
    contra = parts.contra(clock.ramp(0.325, 0.0, 0, 1925), power_form=True)
    factors = {**down, Kind.OUTPUT: 1.5, Kind.UP: 1.5}
    rows = around.muown(clock(3005), 0.9, factors)
    some = (rows, contra, parts.normuon_lite(beta2=0.8))
    yield _row(31, "Muown, Contra-Muon", recipe, some, scored=(3045, 2995, 3.2789, 20))


def _other_rules(clock: Clock) -> Iterator[Result]:
    """Hidden matrices with a rule of their own."""

    def at(steps: int, lr: float, wd: float, rule: Any) -> dict[str, Any]:
        return _at(_falling(clock, steps), lr, wd, rule=rule)

    warm = WarmUp(max(clock(250), 1), _falling(clock, 5625))
    recipe = _at(warm, 0.0015, 0.1, rule=AdamWRule(0.95, 1e-10), beta=0.9)
    yield _row(2, "AdamW", recipe, initial="T", scored=(5625, 5625, 3.2790, 1))
    recipe = at(3250, 0.035, 0.025, pmuon(polar=POLAR))
    yield _row(18, "PMuon", recipe, scored=(3250, 3225, 3.2776, 9))
    recipe = at(4150, 0.0015, 0.2, grafted_shampoo(every=5))
    yield _row(21, "Shampoo, grafted", recipe, scored=(4150, 4100, 3.2776, 4))
    yield _row(26, "SinkSOAP", at(3125, 0.04, 0.025, sink_soap()), scored=(3125, 3090, 3.2785, 10))
    power = parts.logistic(clock, 0.25, -0.25, 128)
    recipe = at(3200, 0.02, 0.025, dyn_muon(power=power, unit=TOKENS_PER_STEP, polar=POLAR))
    yield _row(28, "DynMuon", recipe, scored=(3200, 3175, 3.2790, 25))
    recipe = at(3375, 0.01, 0.1, grafted_shampoo(betas=(0.9, 0.9), shampoo_beta=0.9))
    yield _row(35, "Shampoo, pseudo-inverse", recipe, scored=(3375, 3375, 3.2767, 2))


def _on_the_hyperball(clock: Clock) -> Iterator[Result]:
    """The norm of every hidden matrix kept."""
    ball, even = around.hyperball(), parts.normuon_lite(keep=False)
    warm = max(clock(250), 1)

    def recipe(**more: Any) -> dict[str, Any]:
        return _at(Constant(), 0.018, **more)

    def linear(steps: int, fall: float = 0.4) -> RecordPart:
        return around.split_cooldown(_falling(clock, steps, 1.0), _falling(clock, steps, fall))

    def curved(steps: int, fall: float, power: float, floor: float) -> Cooldown:
        return _falling(clock, steps, fall, power=power, floor=floor)

    adam = around.split_cooldown(
        Joined(WarmUp(warm, Constant(), first=0), warm, _falling(clock, 4875, 1.0)),
        _falling(clock, 4875, 0.4),
    )
    of_adam = recipe(rule=AdamWRule(0.95, 1e-8), beta=0.9)
    yield _row(4, "AdamH", of_adam, (ball, adam), initial="H", scored=(4875, 4875, 3.2741, 5))
    some: Parts = (ball, linear(3325))
    yield _row(5, "MuonH", recipe(), some, initial="H", scored=(3325, 3325, 3.2782, 10))
    some = (even, ball, linear(3275))
    yield _row(8, "NorMuonH", recipe(), some, initial="H", scored=(3275, 3250, 3.2778, 10))
    some = (even, ball, linear(3210), around.muloco(max(clock(30), 1)))
    yield _row(13, "MuLoCo, K = 1", recipe(), some, initial="H", scored=(3210, 3210, 3.2785, 10))
    kl, some = recipe(rule=kl_soap()), (ball, linear(3125))
    yield _row(19, "KL-SOAP-H", kl, some, initial="H", scored=(3125, 3125, 3.2780, 6))
    slow = around.split_cooldown(curved(3125, 1.0, 1.5, 0.017), curved(3125, 0.4, 1.5, 0.04))
    yield _row(25, "KL-SOAP-H", kl, (ball, slow), initial="H", scored=(3125, 3040, 3.2781, 5))
    bent = around.split_cooldown(curved(3200, 1.0, 1.25, 0.0), _falling(clock, 3125, 0.4))
    soap = recipe(rule=soap_h())
    yield _row(27, "SOAP-H", soap, (ball, bent), initial="H", scored=(3200, 3125, 3.2782, 6))
    psgd = {**recipe(rule=psgd_kron()), "lr": 0.025}
    some = (ball, around.split_cooldown(_falling(clock, 3400, 1.0), curved(3400, 0.5, 1.0, 0.1)))
    yield _row(33, "PSGD-Kron", psgd, some, initial="K", scored=(3400, 3375, 3.2779, 5))
    retuned = recipe(aux=Aux(embed=0.91, head=0.0064, vectors=0.0195, weight_decay=0.001))
    some = (ball, linear(3250, 0.85))
    yield _row(37, "MuonH, retuned", retuned, some, initial="N", scored=(3250, 3250, 3.2786, 10))


def _floored(clock: Clock) -> Iterator[Result]:
    """A least update over weight, and no decay."""
    even, floor = parts.normuon_lite(), around.update_floor(0.35)
    contra = (parts.contra(0.2, power_form=True), even, floor)
    mlp = parts.soap("soap-mlp", MLP, every=10, norm=FROBENIUS)
    output, gate = {Kind.OUTPUT}, parts.trust_gate(clock)
    gated = parts.soap("soap-attn-proj", output, every=10, norm=FROBENIUS, floor=0.2, gate=gate)
    both = (parts.aurora(Side.LONG_AXIS, 2, 0.5), contra[0], floor)
    split = around.split_cooldown(_falling(clock, 3175, 0.8), _falling(clock, 3175, 0.4))

    def row(number: int, title: str, some: Parts, scored: Scored, initial: str = "T") -> Result:
        recipe = _at(_falling(clock, scored[0]), 0.0375)
        return _row(number, title, recipe, some, initial=initial, scored=scored)

    yield row(9, "NorMuon-lite, floor", (even, floor), (3250, 3250, 3.2771, 8))
    yield row(11, "Contra-Muon", contra, (3225, 3225, 3.2785, 16))
    yield row(14, "SOAP on MLPs", (mlp, *contra), (3175, 3150, 3.2776, 4))
    yield row(16, "SOAP, trust gate", (mlp, gated, *contra), (3175, 3125, 3.2784, 8))
    yield row(17, "Aurora, Contra-Muon", both, (3200, 3175, 3.2789, 20), "Z")
    yield row(24, "split cooldown", (*contra, split), (3175, 3175, 3.2782, 10))


def _powered(number: int, title: str, some: Parts, scored: Scored, initial: str = "T") -> Result:
    return _row(number, title, _at(Constant(), 0.0375), some, initial=initial, scored=scored)


def _powercool(clock: Clock) -> Iterator[Result]:
    """Results 20 to 43 with PowerCool."""
    brake, pin = around.radial_brake(), around.radius_pin()
    floor, soap = around.update_floor(0.3825), parts.soap_mlp_and_value()
    wide = parts.aurora(Side.WIDE, 3, 0.25, parts.POLAR4)

    def contra(last: float) -> RecordPart:
        return parts.contra(clock.ramp(0.2, 0.0, 0, last))

    def cool(horizon: float) -> RecordPart:
        return around.power_cool(clock, horizon)

    soft, even = (
        parts.soft(clock.ramp(0.0, 0.8, 2500, 2908)),
        parts.normuon_lite(norm=parts.SCHATTEN4),
    )
    twenty = (*soap, parts.schatten_polar(), contra(2000), soft, even)
    some: Parts = (*twenty, floor, cool(3105))
    yield _powered(20, "Soft-Muon", some, (3105, 3030, 3.2790, 30))
    some = (*twenty, brake, floor, pin, cool(3105))
    yield _powered(29, "radial brake", some, (3105, 2990, 3.2787, 11))
    some = (*twenty, floor, around.anchor(clock), cool(3105))
    yield _powered(32, "SODA", some, (3105, 3000, 3.2778, 9))
    pruned = (*soap, wide, contra(2500), brake, floor, pin, around.aux_beta2(**_SLOWER))
    some = (*pruned, around.momentum_schedule(clock, 3020, 100), cool(3050))
    yield _powered(30, "pruned stack", some, (3050, 2930, 3.2784, 16), "P")
    some = (*some, around.extrapolation(clock))
    yield _powered(34, "RRE extrapolation", some, (3050, 2925, 3.2781, 8), "P")
    some = (*soap, *_tempered(clock, wide), cool(3020))
    yield _powered(38, "Tempered-Polar", some, (3020, 2900, 3.2786, 9), "P")
    ahead = around.lookahead(0.3, clock(300), clock(1950))
    forty = (*pruned, around.momentum_schedule(clock, 2900, 100), ahead, cool(2980))
    yield _powered(40, "EMA-Nesterov", forty, (2980, 2890, 3.2788, 16), "P")
    some = (around.circuit_muon(), *forty)
    yield _powered(41, "Circuit-Muon", some, (2980, 2875, 3.2790, 20), "P")
    yield _pulsed(clock, (around.circuit_muon(), *pruned))
    some = (*forty, around.reference(clock(2375), clock(2850)))
    yield _powered(42, "reference", some, (2980, 2860, 3.2789, 16), "P0")


def _pulsed(clock: Clock, before: Parts) -> Result:
    """Return result 43."""
    some = (
        *before,
        around.momentum_schedule(clock, 2850, 100),
        around.lookahead(0.3, clock(300), clock(1900)),
        around.power_cool_twice(clock, 2950, 2600, 3010),
        around.pulses(clock),
    )
    return _powered(43, "Circuit-Muon, pulses", some, (3010, 2850, 3.2786, 13), "P")


_SLOWER = dict.fromkeys(("embed", "head", "gains", "biases", "output_biases"), 0.99)
"""Second moments of AdamW from result 30 on."""


def _tempered(clock: Clock, wide: RecordPart) -> Parts:
    """Return the parts of result 38 behind SOAP."""

    def moving(start: float, end: float, last: float) -> Piecewise:
        return Piecewise((clock(2400), start), (max(clock(last), clock(2400) + 1), end))

    return (
        wide,
        parts.tempered(clock.ramp(0.0, 0.05, 2600, 2800)),
        parts.contra(clock.ramp(0.2, 0.0, 0, 2750)),
        around.moving_brake(moving(0.5, 0.4, 2900)),
        around.moving_floor(moving(0.3825, 0.4, 2800)),
        around.radius_pin(),
        around.aux_beta2(**_SLOWER),
        around.momentum_schedule(clock, 2900, 100),
        around.update_average(clock(2500)),
        around.reference(clock(2375), clock(2900)),
    )


def _lately(clock: Clock) -> Iterator[Result]:
    """Results 44 to 46: SOAP on all matrices, in every step."""
    gate, tau = parts.trust_gate(clock), 150 * clock.ratio
    before = (
        parts.soap("soap", EVERY_KIND, every=1),
        parts.soap("trust-gate", {Kind.OUTPUT}, every=1, gate=gate),
        parts.schatten_polar(),
        around.radial_brake(),
    )
    after = (
        around.aux_beta2(**{**_SLOWER, "biases": 0.997, "output_biases": 0.9965}),
        around.uncorrected_vectors(),
        around.momentum_schedule(clock, 2900, 200),
        around.lookahead(0.3, clock(300), clock(1950)),
        around.power_cool(clock, 2900),
    )
    pin, floor = around.radius_pin(), around.update_floor(0.3825)
    plain = (*before, floor, pin, *after)
    yield _powered(44, "SOAP on all matrices", plain, (2900, 2750, 3.2789, 20), "P125")
    some: Parts = (*plain, around.tail_average(tau, clock(2000)))
    yield _powered(45, "tail average", some, (2900, 2720, 3.2786, 10), "P125")
    rows, decay = around.row_floor(0.3825), around.cautious_decay(0.025)
    some = (*before, rows, pin, decay, *after, around.tail_average(tau, clock(2400)))
    yield _powered(46, "row floor, cautious decay", some, (2900, 2690, 3.2783, 8), "P125")


_TABLES = (_muons, _on_gradients, _other_rules, _on_the_hyperball, _floored, _powercool, _lately)


def results(ratio: float = 1.0) -> dict[int, Result]:
    """Return the results by number.

    Args:
        ratio: Length of a run over that of the full one, to which schedules are scaled.
    """
    clock = Clock(ratio)
    found = {row.number: row for table in _TABLES for row in table(clock)}
    return dict(sorted(found.items()))


def result(number: int, *, steps: int | None = None, without: tuple[str, ...] = ()) -> Result:
    """Return one result of the leaderboard.

    Args:
        number: Its number, 1 to 46.
        steps: Steps of a run of another length, to which its schedules are scaled; None for its own
            scored step.
        without: Names of parts to leave out.

    Raises:
        ValueError: If there is no such result, or a part is not one of the result's.
    """
    known = results()
    if number not in known:
        raise ValueError(f"a result is a number from 1 to {max(known)}, got {number}")
    found = known[number]
    if steps is not None:
        ratio = steps / found.steps
        found = replace(
            results(ratio)[number], steps=steps, horizon=max(round(found.horizon * ratio), steps)
        )
    names = {one.name: one for one in found.parts}
    for name in without:
        look_up(name, names, f"part of result {number}")
    return replace(found, parts=tuple(one for one in found.parts if one.name not in without))
