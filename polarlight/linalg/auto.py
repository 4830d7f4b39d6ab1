"""The default engine: the cheapest form of a short schedule, by the operations of each form.

Momentum matrices of language models have one or a few singular values far above the rest. Divided
by its Schatten-8 norm, which the first step's own products give, such a matrix starts with its
largest singular value near 1 whatever its width, and four quintic steps from a lower bound of 8e-3
leave it closer to orthonormal than Jordan's five do (`docs/accuracy.md`, recorded momentum).

The form is chosen here and nowhere else. A step costs 4 m n k + 2 k^3 flops on the matrix itself,
and 8 k^3 on its Gram matrix beside 4 m n k for every segment: the longer the matrix, the more the
Gram form saves. Operations are counted (`cost.py`); symmetric products are priced at what they cost
on the device (`rates.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from polarlight.linalg.band import Band
from polarlight.linalg.coefficients import Schedule
from polarlight.linalg.cost import iteration_count
from polarlight.linalg.gram import GramNewtonSchulz, restart_positions, segment_growth
from polarlight.linalg.lru_cache_eager import (
    assume_constant,
    constant_size,
    lru_cache_eager,
)
from polarlight.linalg.matrices import check_matrix
from polarlight.linalg.newton_schulz import NewtonSchulz
from polarlight.linalg.normalisation import Schatten8
from polarlight.linalg.polar_express import polar_express
from polarlight.linalg.precision import iteration_dtype, read_as
from polarlight.linalg.properties import ROTATIONS, Invariants, Symmetries, polar_invariants
from polarlight.linalg.rates import Rates, assumed_rates
from polarlight.linalg.row_sums import ALL_ROWS, Rows
from polarlight.linalg.slot import PolarMap, Transposable
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
class AutoPolar(Transposable, PolarMap):
    """Approximate polar factor by whichever form of the schedule costs least for the shape.

    Shapes: [..., m, n] -> [..., m, n] in the dtype of M; leading dimensions are independent.
    Cost: in bfloat16 62 n^3 flops at 4:1, against 90 for five plain steps; 24 n^3 for a square,
    against 30. In float32 42 n^3 at 4:1, for its Gram matrices bear all four steps.

    Args:
        schedule: The polynomials, for singular values over the Schatten-8 norm.
        dtype: Dtype of the iteration. None takes bfloat16 where the device multiplies it in
            hardware, float32 elsewhere, and float64 for float64 input.
        rates: What products cost. None takes what is known of the kind of device, so that a
            machine's neighbours choose alike; `Rates.measured(device, dtype)` measures once.

    Accuracy: as `NewtonSchulz(schedule, normalisation=Schatten8())`. No singular value exceeds
    1.027 in exact arithmetic; searches (`docs/accuracy.md`) found at most 1.028 in float32, 1.032
    in float16, and in bfloat16 1.042 in the plain and 1.066 in the Gram form. Singular values of
    at least 0.01 of the norm, and half an epsilon more, come out at 0.966 in float32, 0.962 in
    float16 and 0.937 in bfloat16 or more, as far as searches found; `band` is what is promised. On
    momentum of a real run (`python -m benchmarks.aurora_solvers`) the orthogonality error is in
    `docs/accuracy.md`.
    Every choice has that accuracy; they differ by rounding. Zero maps to zero, NaN or Inf makes
    that matrix NaN and no other; entries below 1e-38 count as zero.

    Raises:
        TypeError: If M is not a real floating-point tensor.
        ValueError: If M has fewer than two dimensions.

    Examples:
        >>> import torch
        >>> from polarlight.linalg import AutoPolar
        >>> M = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> engine = AutoPolar(dtype=torch.float32)
        >>> bool(torch.linalg.matrix_norm(engine(M), 2) < 1.03)
        True
        >>> engine.describe(3072, 768, M.dtype, M.device).partition(" (")[2]
        'float32, Gram: 14.7 GF, plain 27.5)'
    """

    schedule: Schedule = QUICK
    dtype: torch.dtype | None = None
    rates: Rates | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_object("schedule", self.schedule)

    def __call__(self, M: Tensor) -> Tensor:
        """Return the polar factor of M; see the class."""
        check_matrix(M)
        return self.engine(M.shape[-2], M.shape[-1], M.dtype, M.device)(M)

    def _on_rows(self, X: Tensor, rows: Rows) -> Tensor:
        """Return those rows of the factor, by the engine that the whole tall matrix gets."""
        engine = self.engine(rows.count(X), X.shape[-1], X.dtype, X.device)
        return engine.on_rows(X, rows)

    def call_prescaled(self, X: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """Return the factor of an X of ordinary size that may be overwritten; see `MatrixMap`."""
        return self.engine(rows.count(X), X.shape[-1], X.dtype, X.device).call_prescaled(X, rows)

    def engine(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Engine:
        """Return what an m x n matrix of this dtype gets on this device."""
        own = self.dtype or iteration_dtype(dtype, device)
        sizes = constant_size(m), constant_size(n)
        return _form(*sizes, self.schedule, own, self.rates, device.type)

    def input_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Return bfloat16 where it iterates in that."""
        return read_as(dtype, self.dtype or iteration_dtype(dtype, device))

    def describe(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> str:
        """Return the choice and its reason, in words."""
        own = self.dtype or iteration_dtype(dtype, device)
        reason = _weighed(m, n, self.schedule, own, self.rates, device.type)[1]
        return f"{self.engine(m, n, dtype, device)} ({reason})"

    def symmetries(self, m: int, n: int) -> Symmetries:
        """Return the declared symmetries."""
        return ROTATIONS

    def iteration_dtype(
        self, m: int, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.dtype:
        """Return the dtype of the engine."""
        return self.engine(m, n, dtype, device).iteration_dtype(m, n, dtype, device)

    def band(self, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Band:
        """Return the band of the form that is chosen."""
        return self.engine(m, n, dtype, device).band(m, n, dtype, device)

    def invariants(self, m: int, n: int) -> Invariants:
        """Return the declared invariants."""
        return polar_invariants(self.schedule)

    def __str__(self) -> str:
        return f"cheapest form of {self.schedule.name}"


@lru_cache_eager
def _form(
    m: int, n: int, schedule: Schedule, dtype: torch.dtype, rates: Rates | None, device_type: str
) -> Engine:
    """Return the engine of least cost."""
    restarts = _chosen_restarts(m, n, schedule, dtype, rates, device_type)
    if restarts is None:
        return NewtonSchulz(schedule, dtype, Schatten8())
    return GramNewtonSchulz(schedule, dtype, Schatten8(), restarts)


@assume_constant
def _chosen_restarts(
    m: int, n: int, schedule: Schedule, dtype: torch.dtype, rates: Rates | None, device_type: str
) -> tuple[int, ...] | None:
    """Return the restarts of the cheapest Gram form; None where the plain form is cheaper."""
    return _weighed(m, n, schedule, dtype, rates, device_type)[0]


@lru_cache_eager
def _weighed(
    m: int, n: int, schedule: Schedule, dtype: torch.dtype, rates: Rates | None, device_type: str
) -> tuple[tuple[int, ...] | None, str]:
    """Return `_chosen_restarts` and the reason in words; no rates are the assumed ones."""
    rates = rates or assumed_rates(device_type)
    name = str(dtype).removeprefix("torch.")
    if min(m, n) < rates.gram_from:
        return None, f"{name}, plain: a short side below {rates.gram_from} is bound by launches"
    plain = priced(NewtonSchulz(schedule, dtype, Schatten8()), m, n, rates)
    gram = cheapest_gram(m, n, schedule, dtype, rates)
    cost = priced(gram, m, n, rates)
    if cost >= plain:
        return None, f"{name}, plain: {plain / 1e9:.3g} GF, no Gram form is cheaper"
    return gram.restarts, f"{name}, Gram: {cost / 1e9:.3g} GF, plain {plain / 1e9:.3g}"


def cheapest_gram(
    m: int, n: int, schedule: Schedule, dtype: torch.dtype, rates: Rates
) -> GramNewtonSchulz:
    """Return the Gram form of least cost among the restarts that its accuracy allows."""
    forms = [
        GramNewtonSchulz(schedule, dtype, Schatten8(), restarts)
        for restarts in _restarts(schedule, dtype)
    ]
    return min(forms, key=lambda form: priced(form, m, n, rates))


def priced(engine: Engine, m: int, n: int, rates: Rates) -> float:
    """Return the flops of a form, symmetric products at their discount; any dtype has the same."""
    count = iteration_count(replace(engine, dtype=torch.float32), m, n)
    return rates.priced(count, min(m, n))


def _restarts(schedule: Schedule, dtype: torch.dtype) -> Iterator[tuple[int, ...]]:
    """Return the restart positions to weigh: the coarser the dtype, the shorter the segments.

    A Gram form by itself is as exact as the plain one (`restart_positions`). Float32 and float64
    may lose some of that here, as singular values are only brought near 1 anyway. Bfloat16 may not:
    two steps in the first segment mix the largest singular direction with the others ten times as
    much as the plain form does (`docs/accuracy.md`).
    """
    yield restart_positions(schedule, dtype)
    if dtype.itemsize > 2 and segment_growth(schedule.steps, dtype) <= NEGLIGIBLE:
        yield ()
