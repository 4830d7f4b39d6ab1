"""The order of momentum and polar factor."""

from dataclasses import dataclass

from torch import Size, Tensor

from polarlight import UpdateRule
from polarlight.lab.claims.arms import MUON, PUBLISHED, at
from polarlight.lab.claims.claim import Area, Arm, Claim
from polarlight.lab.claims.verdict import lower
from polarlight.lab.train.recipes import TrainingRecipe
from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.properties import NO_INVARIANTS, ROTATIONS, Invariants, Symmetries
from polarlight.linalg.slot import Buffers, MatrixMap, Stage
from polarlight.stages import Original, RawGradient


@dataclass(frozen=True, slots=True)
class MeanOfPolars(Stage):
    """The running mean of the gradients' polar factors, and one step ahead of it as in Muon."""

    polar: MatrixMap
    beta: float = 0.95

    def buffer_shapes(self, shape: Size) -> dict[str, Size]:
        """The mean."""
        return {"polar_mean": shape}

    def __call__(self, X: Tensor, buffers: Buffers) -> Tensor:
        """Update the mean; returns the step."""
        U, mean = at_least_float32(self.polar(X)), buffers["polar_mean"]
        mean.lerp_(U, 1 - self.beta)
        return U.lerp(mean, self.beta).to(X.dtype)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return those of a polar factor."""
        return self.polar.symmetries(m, n) & ROTATIONS

    def invariants(self, m: int, n: int) -> Invariants:
        """Return none: a mean of polar factors is no polar factor."""
        return NO_INVARIANTS


def _polar_first() -> UpdateRule:
    mean = MeanOfPolars(PUBLISHED)
    return UpdateRule(name="polar_first", momentum=RawGradient(), map=mean, scale=Original())


POLAR = Arm(
    recipe=TrainingRecipe(rule=_polar_first, lr=0.02, about="polar factor, then momentum"),
    lrs=(0.01, 0.02, 0.04, 0.08),
)

CLAIM = Claim(
    name="momentum-first",
    says="Momentum before the polar factor is worth more than twice the steps: half the steps of "
    "Muon reach a lower loss than all steps with momentum after it.",
    source="Jordan et al., Muon (2024): momentum belongs before orthogonalisation",
    area=Area.POLAR,
    dated="2026-11-24",
    arms={"momentum first, half": at(MUON, steps=100), "polar first": POLAR},
    checks=(lower("momentum first, half", "polar first"),),
    notes="The half run has its own schedule; both have their own swept learning rates.",
)
