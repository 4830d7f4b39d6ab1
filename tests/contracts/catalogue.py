"""Every registered rule, with every solver and balance of the package that it can take."""

import dataclasses
import inspect
from dataclasses import replace
from itertools import chain

import polarlight
from polarlight import rules
from polarlight.linalg.chaotic import MAXIMAL_SLOPE, Chaotic
from polarlight.linalg.nuclear import NuclearPolar
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.linalg.spectral_power import ExactPower, RationalPower
from polarlight.rule import UpdateRule
from polarlight.stages.centre import centred
from polarlight.stages.eigenbasis import PowerIteration
from polarlight.stages.orientation import Columns, Pairs, oriented

EXACT = polarlight.linalg.ExactPolar()
FEW_STEPS = {"ExactBalanced": {"steps": 2, "cg_steps": 4}}
"""What a solver promises here holds of every step, so the slow one takes few."""


def _plain():
    """Every registered rule; `pytest -p MODULE` adds those of a module outside the package."""
    for name, entry in rules.REGISTERED.items():
        yield name, entry.make


def _exact(make):
    """The rule in a form whose float64 comparisons are sharp.

    The polar method is exact, and bases of eigenvectors keep what they know nothing about.
    """
    sharp = {"polar": EXACT, "solver": rules.WarmPolar(EXACT)}
    if "refresh" in inspect.signature(make).parameters:
        sharp["refresh"] = replace(
            inspect.signature(make).parameters["refresh"].default, floor=1e-6
        )
    return make(**{k: v for k, v in sharp.items() if k in inspect.signature(make).parameters})


def solvers():
    """Every solver class of the package: a public dataclass with a polar method."""
    for name in rules.__all__:
        found = getattr(rules, name)
        fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
        if "polar" in {f.name for f in fields} and not hasattr(found, "step"):  # a rule
            yield name, found(polar=EXACT, **FEW_STEPS.get(name, {}))


def _variants():
    for name, solver in solvers():
        for side in polarlight.stages.Side:
            yield f"aurora-{name}-{side.value}", polarlight.rules.aurora(solver, side=side)
    balances = [
        polarlight.stages.EquilibrateColumns(),
        polarlight.stages.EquilibrateBoth(),
        polarlight.rules.rows_after(2),
    ]
    for balance in balances:
        yield f"muoneq-{type(balance).__name__}", polarlight.rules.muoneq(balance, polar=EXACT)
    # To nearest: at random, parts of a parameter draw other bits than parameters of their own.
    kept = polarlight.stages.InBfloat16(polarlight.stages.EMA(), stochastic=False)
    yield "muon-bfloat16-momentum", replace(polarlight.rules.muon(polar=EXACT), momentum=kept)
    coded = polarlight.stages.InInt8(polarlight.stages.EMA(), stochastic=False)
    yield "muon-int8-momentum", replace(polarlight.rules.muon(polar=EXACT), momentum=coded)
    yield from _spectral_variants()
    yield from _rotated_variants()
    yield from _oriented_variants()


def _spectral_variants():
    for size in (rules.SumNorm(), rules.MeanNorm()):
        yield f"freon-{type(size).__name__}", rules.freon(size=size)
    for power in (ExactPower(-0.5), ExactPower(0.5), RationalPower(4, 1)):
        yield f"freon-{power}", rules.freon(power)
    yield "kaon-maximal-slope", rules.kaon(Chaotic(MAXIMAL_SLOPE))
    yield "shampoo-without-memory", rules.shampoo(betas=(0.0, 0.0))


def _rotated_variants():
    sharp = PowerIteration(floor=1e-6)
    yield "soap-every-2", rules.soap(every=2, refresh=sharp)
    yield "soap-rounds", rules.soap(every=1, refresh=replace(sharp, rounds=5))
    yield "soap-one-side", rules.soap(every=1, max_side=4, refresh=sharp)
    yield "soap-no-side", rules.soap(every=1, max_side=0)
    yield "kl_soap-every-2-sorted", rules.kl_soap(every=2, refresh=sharp)


def _oriented_variants():
    for polar in (OneSidedPolar(GramSide.LEFT), polarlight.linalg.RegularisedPolar()):
        yield f"one_sided-{polar}", rules.one_sided(polar)
    sharp = [rules.row_norm(), rules.one_sided(EXACT)]
    sharp += [rules.row_then_polar(EXACT), rules.polar_then_row(EXACT)]
    for rule in sharp:
        for variant in (centred(rule), oriented(rule, Columns()), oriented(rule, Pairs())):
            yield variant.name, variant
    yield "normuon_columns", oriented(rules.normuon(polar=EXACT), Columns())


RULES: dict[str, UpdateRule] = dict(
    chain(((name, _exact(make)) for name, make in _plain()), _variants())
)
SHIPPED: dict[str, UpdateRule] = {name: make() for name, make in _plain()}
"""The rules as users get them, with their default polar methods."""

GROWING = {
    "polargrad": (rules.polargrad(), 1.0),
    "polargrad-half": (rules.polargrad(power=0.5), 0.5),
    "polargrad_polar_first": (rules.polargrad_polar_first(), 1.0),
    "one_sided-nuclear": (rules.one_sided(NuclearPolar(), scale=polarlight.stages.Unscaled()), 1.0),
    "freon-own-size": (rules.freon(size=rules.OwnSize()), -1 / 3),
}
"""Rules whose updates grow with the gradients by design, and the degree; the others have degree 0.

Direct ones of the package (`SHIPPED`) that are listed here are exempt from the contract that the
scale of the gradients does not matter, and held to theirs instead.
"""
