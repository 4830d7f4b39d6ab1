"""Parts of the leaderboard's results, each with its numbers.

Steps are those of the full run; a `Clock` maps them to a shorter or longer one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from polarlight.leaderboard.recipe import (
    MLP,
    POLAR,
    Recipe,
    RecordPart,
)
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import FROBENIUS, Normalisation, Schatten4
from polarlight.linalg.schedules import SIMPLE_QUINTIC
from polarlight.linalg.slot import MatrixMap, Slot
from polarlight.linalg.weighted_iterates import WeightedIterates
from polarlight.routing.roles import Part as Kind
from polarlight.rules.aurora_release import BalancedPolar
from polarlight.stages.interpolated import (
    Contra,
    Divisor,
    Interpolated,
    Normalised,
    PowerIterationNorm,
)
from polarlight.stages.ramp import Logistic, Number, Ramp
from polarlight.stages.renormalise import KeepNorm
from polarlight.stages.second_moment import RowSecondMoment
from polarlight.stages.side import OnSide, Side
from polarlight.stages.soap_balance import SoapBalance, TrustGate

POLAR4 = NewtonSchulz(SIMPLE_QUINTIC, normalisation=Schatten4())
"""The polar factor from result 20 on: the same quintics from the Schatten-4 norm."""

SCHATTEN4 = Schatten4()


@dataclass(frozen=True, slots=True)
class Clock:
    """Steps of the full run, mapped to a run of another length.

    Attributes:
        ratio: Length over that of the full run.
    """

    ratio: float = 1.0

    def __call__(self, step: float) -> int:
        """Return the step of this run."""
        return round(step * self.ratio)

    def ramp(self, start: float, end: float, first: float, last: float) -> Ramp:
        """Return a ramp between two steps of the full run, at least one step long."""
        return Ramp(start, end, self(first), max(self(last), self(first) + 1))


def logistic(clock: Clock, start: float, end: float, middle: float) -> Logistic:
    """Return a logistic curve whose middle is as many steps from the start as its width."""
    return Logistic(start, end, middle=middle * clock.ratio, width=middle * clock.ratio)


def part(
    name: str, about: str, of_benchmark: bool = False
) -> Callable[[Callable[[Recipe], Recipe]], RecordPart]:
    """Return a decorator that makes a part of a change."""
    return lambda change: RecordPart(
        name=name, about=about, change=change, of_benchmark=of_benchmark
    )


def _mapped(recipe: Recipe, wrap: Callable[[Slot, Kind], Slot]) -> Recipe:
    inner = recipe.map
    return replace(recipe, map=lambda kind: wrap(inner(kind), kind))


def schatten_polar() -> RecordPart:
    """Polar factor from the Schatten-4 norm."""

    @part("polar", "twelve quintics from the Schatten-4 norm")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, map=lambda kind: POLAR4)

    return change


def soap(
    name: str,
    kinds: Collection[Kind],
    *,
    every: int,
    norm: Normalisation = SCHATTEN4,
    floor: float = 1e-8,
    blend: float = 1.0,
    gate: TrustGate | None = None,
) -> RecordPart:
    """SOAP's preconditioner before the polar factor of some kinds."""
    stage = SoapBalance(0.9, every, floor=floor, blend=blend, gate=gate, norm=norm)

    @part(name, f"{stage}", of_benchmark=blend < 1)
    def change(recipe: Recipe) -> Recipe:
        before = recipe.balance
        return replace(recipe, balance=lambda kind: stage if kind in kinds else before(kind))

    return change


def soap_mlp_and_value() -> tuple[RecordPart, ...]:
    """SOAP as in results 20 to 43."""
    value = soap("soap-v", {Kind.VALUE}, every=10, floor=0.55, blend=0.95)
    return soap("soap-mlp", MLP, every=10), value


def trust_gate(clock: Clock) -> TrustGate:
    """Trust gate of the output projections."""
    return TrustGate(clock.ramp(0.45, 0.0, 1375, 1625), clock.ramp(0.85, 1.0, 1624, 1625))


def contra(fraction: Number, *, power_form: bool = False) -> RecordPart:
    """Contra-Muon."""
    norm: Divisor = PowerIterationNorm() if power_form else SCHATTEN4
    size: Divisor = FROBENIUS if power_form else SCHATTEN4

    @part("contra", f"minus {fraction} of the normalised momentum")
    def change(recipe: Recipe) -> Recipe:
        return _mapped(recipe, lambda inner, kind: Contra(inner, fraction, norm, size))

    return change


def soft(weight: Ramp) -> RecordPart:
    """Soft-Muon."""

    @part("soft", f"towards weighted iterates, {weight}")
    def change(recipe: Recipe) -> Recipe:
        iterates = WeightedIterates()
        return _mapped(recipe, lambda inner, kind: Interpolated(inner, iterates, weight))

    return change


def tempered(rho: Ramp) -> RecordPart:
    """Tempered polar factor."""

    @part("tempered", f"towards the normalised momentum, {rho}")
    def change(recipe: Recipe) -> Recipe:
        return _mapped(
            recipe,
            lambda inner, kind: Interpolated(inner, Normalised(), rho, 0.25, name="tempered"),
        )

    return change


def aurora(side: Side, rounds: int, exponent: float, polar: MatrixMap = POLAR) -> RecordPart:
    """Aurora in place of the polar factor."""

    @part("aurora", f"rows balanced, {side.value}, {rounds} rounds, exponent {exponent:g}")
    def change(recipe: Recipe) -> Recipe:
        balanced = OnSide(side, BalancedPolar(polar, rounds, exponent), otherwise=polar)
        return replace(recipe, map=lambda kind: balanced)

    return change


def normuon_lite(
    *, beta2: float = 0.95, norm: Normalisation = FROBENIUS, keep: bool = True
) -> RecordPart:
    """NorMuon's second moment: rows of tall and square matrices, columns of wide ones."""
    rows = RowSecondMoment(beta2)
    even = OnSide(Side.WIDE, rows, otherwise=rows)

    @part("normuon-lite", f"second moment along the long axis, {beta2:g}")
    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, post=(*recipe.post, KeepNorm(even, norm) if keep else even))

    return change
