"""Every polynomial schedule: its coefficients, the safety factor of its input, and its source.

A schedule is a list of odd quintics p(s) = a s + b s^3 + c s^5, applied one after another to the
singular values of a matrix that has been divided by `safety` times its Frobenius norm.
"""

import math
from dataclasses import dataclass, field

Quintic = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Polynomials (a, b, c), one per step, with what their input must satisfy.

    Attributes:
        name: Short name, used in tables and in `repr`.
        steps: One (a, b, c) per Newton-Schulz step.
        safety: The input is divided by this factor times its norm. Schedules that leave their
            interval above sigma = 1 need a little more than 1: rounding to bfloat16 can lift a norm
            by 0.4 percent.
        source: Where the coefficients were published or how they were made.
    """

    name: str
    steps: tuple[Quintic, ...]
    safety: float = 1.0
    source: str = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError(f"schedule {self.name!r} needs at least one step (a, b, c), got none")
        if not self.safety >= 1:
            raise ValueError(f"safety must be >= 1, got {self.safety}")

    def __call__(self, sigma: float) -> float:
        """The singular value that comes out for sigma = singular value / Frobenius norm."""
        sigma /= self.safety
        for a, b, c in self.steps:
            sigma = sigma * (a + sigma**2 * (b + sigma**2 * c))
        return sigma

    @property
    def slope(self) -> float:
        """Amplification of vanishing singular values: the derivative at zero."""
        return math.prod(a for a, _, _ in self.steps) / self.safety


def constant(name: str, step: Quintic, steps: int, *, source: str) -> Schedule:
    """The same polynomial, `steps` times."""
    return Schedule(name=f"{name} x{steps}", steps=(step,) * steps, source=source)


_JORDAN = (3.4445, -4.7750, 2.0315)
_SIMPLE = (2.0, -1.5, 0.5)

JORDAN = constant("jordan", _JORDAN, 5, source="Jordan et al., Muon (2024)")
"""Steep and inexact: singular values above 1.6e-3 land in [0.68, 1.20]; never converges to 1."""

YOU = Schedule(
    name="you x5",
    steps=(
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    source="Jiacheng You, modded-nanogpt (2024)",
)
"""Five different steps: above 5.2e-3 within [0.9, 1.15]."""

SIMPLE_QUINTIC = constant(
    "simple quintic",
    _SIMPLE,
    12,
    source="modded-nanogpt track 3 and the Aurora release (2026)",
)
"""Converges quadratically to 1 and tolerates sigma up to sqrt(2); slope only 2 per step."""

DEEPSEEK_V4 = Schedule(
    name="deepseek-v4 8+2",
    steps=(_JORDAN,) * 8 + (_SIMPLE,) * 2,
    source="DeepSeek-V4 (2026), arXiv 2606.19348: 8 Jordan steps, then 2 simple ones",
)
"""Above 1.1e-5 within [0.7, 1.003]: steep first, exact last."""

POLAR_EXPRESS_PUBLISHED: tuple[Quintic, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749733, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Amsel et al., "The Polar Express" (2025), arXiv 2505.16932: lower bound 1e-3, no safety factor.

`linalg.polar_express` generates them; the tests hold the two against each other.
"""
