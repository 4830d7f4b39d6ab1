"""The engine that nobody has to choose: the cheapest form of a short schedule, by a cost model.

Momentum matrices of language models have one or a few singular values far above the rest. Divided
by its Schatten-8 norm, which the first step's own products give, such a matrix starts with its
largest singular value near 1 whatever its width, and four quintic steps from a lower bound of 8e-3
leave it closer to orthonormal than Jordan's five do (`docs/accuracy.md`, recorded momentum).

What is left to choose is the form. A step costs 4 m n k + 2 k^3 flops on the matrix itself, and 8
k^3 on its Gram matrix beside 4 m n k for every restart: the longer the matrix, the more the Gram
form saves. Symmetric products count as what they cost on the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.gram import GramNewtonSchulz, restart_positions, segment_growth
from polarlight.linalg.matrices import check_matrix
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import Schatten8
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.precision import iteration_dtype, read_as
from polarlight.linalg.properties import ROTATIONS, Invariants, Symmetries, polar_invariants
from polarlight.linalg.rates import Rates, assumed_rates
from polarlight.linalg.remembered import remembered
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.linalg.slot import PolarMap
from polarlight.lookup import check_object
from polarlight.registry import registered

QUICK = polar_express(4, lower=8e-3, safety=1.02)
"""Four steps: within [0.94, 1.03] above 8e-3 of the norm, slope 159.

The safety is twice that of other schedules: bfloat16 rounds the first step's square once more.
"""

Engine = NewtonSchulz | GramNewtonSchulz

NEGLIGIBLE = 1e-3
"""Growth of rounding up to which nothing is restarted: the schedule errs by fifty times that."""


@registered("AutoPolar")
@dataclass(frozen=True, slots=True)
class AutoPolar(PolarMap):
    """Approximate polar factor by whichever form of the schedule costs least for the shape.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: `flops`; 62 n^3 at 4:1 against 90 for five plain steps, 24 against 30 for a square. In
    float32 42 n^3 at 4:1, for its Gram matrices bear all four steps.

    Args:
        schedule: The polynomials, for singular values over the Schatten-8 norm.
        dtype: Dtype of the iteration. None takes bfloat16 where the device multiplies it in
            hardware, float32 elsewhere, and float64 for float64 input.
        rates: What products cost. None takes what is known of the kind of device, so that a
            machine's neighbours choose alike; `Rates.measured(device, dtype)` measures once.

    Accuracy: as `NewtonSchulz(schedule, normalisation=Schatten8())`. No singular value exceeds
    1.027 in exact arithmetic; an adversarial search (`docs/accuracy.md`) finds at most 1.028 in
    float32, 1.032 in float16, and in bfloat16 1.042 in the plain and 1.066 in the Gram form. On
    momentum of a real run (`python -m benchmarks.aurora_solvers`) the orthogonality error is in
    `docs/accuracy.md`.
    Every choice has that accuracy; they differ by rounding. Zero maps to zero, NaN or Inf makes
    that matrix NaN and no other; entries below 1e-38 count as zero.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions.
    """

    schedule: Schedule = QUICK
    dtype: torch.dtype | None = None
    rates: Rates | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_object("schedule", self.schedule)

    def __call__(self, M: Tensor) -> Tensor:
        """Returns the polar factor of M; see the class."""
        check_matrix(M)
        return self.engine(M.shape[-2], M.shape[-1], M.dtype, M.device)(M)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """The same on a part of the rows, by the engine that the whole tall matrix gets."""
        engine = self.engine(rows.count(X), X.shape[-1], X.dtype, X.device)
        return engine.on_rows(X, rows)

    def call_prescaled(self, X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """The same of an X of ordinary size that may be written to; see `MatrixMap`."""
        return self.engine(rows.count(X), X.shape[-1], X.dtype, X.device).call_prescaled(X, rows)

    def engine(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Engine:
        """What an m x n matrix of this dtype gets on this device."""
        return self._choice(m, n, dtype, device)[0]

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Bfloat16 where it iterates in that."""
        return read_as(dtype, self.dtype or iteration_dtype(dtype, device))

    def flops(self, m: int, n: int) -> float:
        """Those of the form that an m x n matrix gets in bfloat16."""
        bf16 = torch.bfloat16
        return _cheapest(m, n, self.schedule, bf16, self.rates or Rates(), "cpu")[0].flops(m, n)

    def describe(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """The choice and its reason, in words."""
        engine, reason = self._choice(m, n, dtype, device)
        return f"{engine} ({reason})"

    def _choice(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Engine, str]:
        iteration = self.dtype or iteration_dtype(dtype, device)
        rates = self.rates or assumed_rates(device.type)
        return _cheapest(m, n, self.schedule, iteration, rates, device.type)

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROTATIONS

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the engine."""
        return self.engine(m, n, dtype, device).iteration_dtype(m, n, dtype, device)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return polar_invariants(self.schedule)

    def __str__(self) -> str:
        return f"cheapest form of {self.schedule.name}"


@remembered
def _cheapest(
    m: int, n: int, schedule: Schedule, dtype: torch.dtype, rates: Rates, device: str
) -> tuple[Engine, str]:
    """The engine of least cost, and why."""
    name = str(dtype).removeprefix("torch.")
    plain = NewtonSchulz(schedule, dtype, Schatten8())
    least = _plain_cost(plain, m, n, rates)
    best: Engine = plain
    if min(m, n) < rates.gram_from:
        return plain, f"{name}, plain: a short side below {rates.gram_from} is bound by launches"
    first = least
    for restarts in _restarts(schedule, dtype):
        gram = GramNewtonSchulz(schedule, dtype, Schatten8(), restarts, tile=1)
        cost = _gram_cost(gram, m, n, rates, dtype)
        if cost < least:
            best, least = gram, cost
    if best is plain:
        return plain, f"{name}, plain: {first / 1e9:.3g} GF, no Gram form is cheaper"
    return best, f"{name}, Gram: {least / 1e9:.3g} GF, plain {first / 1e9:.3g}"


def _restarts(schedule: Schedule, dtype: torch.dtype) -> Iterator[tuple[int, ...]]:
    """Restart positions to be weighed: the coarser the dtype, the shorter the segments.

    A Gram form by itself is as exact as the plain one (`restart_positions`); here float32
    and float64 may lose some of that, as singular values are only brought near 1 anyway.
    Bfloat16 may not: two steps in the first segment mix the largest singular direction with
    the others ten times as much as the plain form does (`docs/accuracy.md`).
    """
    yield restart_positions(schedule, dtype)
    if dtype.itemsize > 2 and segment_growth(schedule.steps, dtype) <= NEGLIGIBLE:
        yield ()


def _plain_cost(engine: NewtonSchulz, m: int, n: int, rates: Rates) -> float:
    """Flops, symmetric ones at their discount."""
    k, long = min(m, n), max(m, n)
    s = rates.symmetric(k)
    products = sum(1 + bool(c) * k / long for _, _, c in engine.schedule.steps)
    return 2.0 * long * k * k * (len(engine.schedule.steps) + s * products)


def _gram_cost(engine: GramNewtonSchulz, m: int, n: int, rates: Rates, dtype: torch.dtype) -> float:
    """Flops, symmetric ones at their discount."""
    k, long = min(m, n), max(m, n)
    s, segments = rates.symmetric(k), engine.segments(dtype)
    small = sum(bool(c) for _, _, c in engine.schedule.steps)
    small += 3 * sum(len(segment) - 1 for segment in segments)
    return 2.0 * long * k * k * len(segments) * (1 + s) + 2.0 * s * small * float(k) ** 3
