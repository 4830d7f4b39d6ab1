"""Every polynomial schedule: its coefficients, the safety factor of its input, and its source.

A schedule is a list of odd quintics p(s) = a s + b s^3 + c s^5, applied one after another to the
singular values of a matrix that has been divided by `safety` times its norm. Cubics have c = 0.

Rounding lifts singular values above the bound of their normalisation: a matrix of rank 1 in
bfloat16 sits up to 0.4 percent above 1, and every later step errs as much again. Schedules that
touch the end of their interval in each step blow up there (CANS) or change the sign of a direction
(the five-step cubic, Turbo-Muon). Here they are `stretched`, as Polar Express is, or get a
`safety`; the tests perturb every step of every schedule by 0.6 percent.
"""

import math
from dataclasses import dataclass, field
from zlib import crc32

from polarlight.linalg.normalisation import AOL, FROBENIUS, Normalisation
from polarlight.registry import registered

Quintic = tuple[float, float, float]


@registered("Schedule")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Schedule:
    """Polynomials (a, b, c), one per step, with what their input must satisfy.

    Attributes:
        name: Short name, used in tables and in `repr`.
        steps: One (a, b, c) per Newton-Schulz step.
        safety: The input is divided by this factor times its norm. Schedules that leave their
            interval above sigma = 1 need a little more than 1: rounding to bfloat16 can lift a norm
            by 0.4 percent.
        normalisation: The one it was published for. A scalar one may be replaced by any other.
        source: Where the coefficients were published or how they were made.
    """

    name: str
    steps: tuple[Quintic, ...]
    safety: float = 1.0
    normalisation: Normalisation = field(default=FROBENIUS, repr=False)
    source: str = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError(f"schedule {self.name!r} needs at least one step (a, b, c), got none")
        if not self.safety >= 1:
            raise ValueError(f"safety must be >= 1, got {self.safety}")

    def __call__(self, sigma: float) -> float:
        """The singular value that comes out for sigma = singular value / norm."""
        sigma /= self.safety
        for a, b, c in self.steps:
            sigma = sigma * (a + sigma**2 * (b + sigma**2 * c))
        return sigma

    def __repr__(self) -> str:
        """Return the name, and a checksum of the coefficients to ten digits."""
        numbers = [self.safety, *(x for step in self.steps for x in step)]
        checksum = crc32(" ".join(f"{x:.10g}" for x in numbers).encode())
        return f"Schedule({self.name!r}, {checksum:08x})"

    @property
    def slope(self) -> float:
        """Amplification of vanishing singular values: the derivative at zero."""
        return math.prod(a for a, _, _ in self.steps) / self.safety

    def check(self, normalisation: Normalisation) -> None:
        """Raise ValueError if the schedule needs another normalisation than the one given."""
        if not self.normalisation.scalar and normalisation != self.normalisation:
            raise ValueError(
                f"schedule {self.name!r} needs the normalisation {self.normalisation}, "
                f"got {normalisation}: pass normalisation={self.normalisation!r}"
            )


def constant(name: str, step: Quintic, steps: int, *, source: str) -> Schedule:
    """Return a schedule of one polynomial, `steps` times."""
    return Schedule(name=f"{name} x{steps}", steps=(step,) * steps, source=source)


def stretched(steps: tuple[Quintic, ...], safety: float) -> tuple[Quintic, ...]:
    """Every polynomial but the last as p(s / safety): rounding then stays inside its interval."""
    *first, last = steps
    return *((a / safety, b / safety**3, c / safety**5) for a, b, c in first), last


_JORDAN = (3.4445, -4.7750, 2.0315)
_SIMPLE = (2.0, -1.5, 0.5)
_SAFETY = 1.01

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

CUBIC = constant(
    "cubic", (1.5, -0.5, 0.0), 15, source="Bjorck and Bowie (1971), SIAM J. Numer. Anal. 8, 358"
)
"""The classical Newton-Schulz step: two products, slope 1.5, quadratic at 1, safe below sqrt(3)."""

PADE_QUINTIC = constant(
    "pade quintic", (1.875, -1.25, 0.375), 12, source="Kenney and Laub (1991), SIMAX 12, 273"
)
"""Cubic convergence at 1, the limit of Polar Express; slope 1.875; above 4.4e-4 within [0.7, 1]."""

DEEPSEEK_V4 = Schedule(
    name="deepseek-v4 8+2",
    steps=(_JORDAN,) * 8 + (_SIMPLE,) * 2,
    source="DeepSeek-V4 (2026), arXiv 2606.19348: 8 Jordan steps, then 2 simple ones",
)
"""Above 1.1e-5 within [0.7, 1.003]: steep first, exact last."""

CANS_PUBLISHED: tuple[Quintic, ...] = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)
"""Grishina, Smirnov, Rakhuba (2025), arXiv 2506.10935: overflows from sigma = 1.002 on."""

CANS = Schedule(
    name="cans x5",
    steps=stretched(CANS_PUBLISHED, _SAFETY),
    safety=_SAFETY,
    source="arXiv 2506.10935, Chebyshev-accelerated; stretched by 1.01 here",
)
"""Chebyshev-accelerated: above 1e-3 within [0.85, 1.12]; a close relative of Polar Express."""

TURBO_MUON = Schedule(
    name="turbo-muon x4",
    steps=(
        (4.0098, -7.0585, 2.4635),
        (3.4585, -5.5479, 2.5959),
        (2.7573, -3.2939, 1.4254),
        (2.7215, -3.0494, 1.3169),
    ),
    safety=1.2,
    normalisation=AOL(),
    source="Boissin et al., Turbo-Muon (2025), arXiv 2512.04632; safety 1.2 added here",
)
"""Four steps for the flatter spectra that AOL leaves: above 1e-2 within [0.76, 1.09].

Published without a safety factor: the first polynomial is negative above 0.884, and rank-1 or
orthogonal matrices arrive at 1 and come out with the wrong sign.
"""

CUBIC5_PUBLISHED: tuple[Quintic, ...] = (
    (3.3656577, -3.3420992, 0.0),
    (2.5744352, -1.4957376, 0.0),
    (2.5368962, -1.4312570, 0.0),
    (2.4418906, -1.2764040, 0.0),
    (2.2230472, -0.9630650, 0.0),
)
"""arXiv 2606.00371 (2026): five cubics; changes sign from sigma = 1.0036 on."""

CUBIC5 = Schedule(
    name="cubic5",
    steps=stretched(CUBIC5_PUBLISHED, _SAFETY),
    safety=_SAFETY,
    source="arXiv 2606.00371, ten products in place of fifteen; stretched by 1.01 here",
)
"""Five different cubics: above 6.6e-3 within [0.7, 1.3]."""
