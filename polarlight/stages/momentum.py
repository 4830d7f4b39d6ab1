"""Momentum: the matrix that a rule maps, from gradients.

The two conventions have the same polar factor and a nuclear norm that differs by 1 / (1 - beta), so
the convention belongs to the rule. Gradients are read; only the buffers are written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from polarlight.linalg import foreach
from polarlight.linalg.matrices import at_least_float32
from polarlight.registry import registered
from polarlight.rule import MOMENTUM, Averaging, Momentum
from polarlight.stages.rounding import round_stochastically

ROUNDING_COUNTER = "momentum_draws"


@registered("EMA", stateful=True, may_differ=("nesterov",))
@dataclass(frozen=True, slots=True)
class EMA(Momentum):
    """M <- beta M + (1 - beta) G; with Nesterov the result is beta M + (1 - beta) G.

    Source: the official NorMuon and Aurora code, `torch.optim.Muon`.
    """

    nesterov: bool = True

    @property
    def is_ema(self) -> bool:
        """True."""
        return True

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float | Tensor
    ) -> list[Tensor]:
        """Update the buffers in place and returns what the rule maps."""
        gradients, buffers = _in_dtype_of(buffers, gradients), list(buffers)
        if isinstance(beta, Tensor):
            return self._with_tensor(gradients, buffers, beta)
        foreach.lerp_(buffers, gradients, 1 - beta)
        _drop_stuck(buffers, gradients, beta)
        ahead = foreach.lerp(gradients, buffers, beta) if self.nesterov else buffers
        return list(ahead)

    def _with_tensor(
        self, gradients: list[Tensor], buffers: list[Tensor], beta: Tensor
    ) -> list[Tensor]:
        for buffer, gradient in zip(buffers, gradients, strict=True):
            buffer.copy_(_lerp(buffer, gradient, 1 - beta))
        _drop_stuck(buffers, gradients, beta)
        pairs = zip(gradients, buffers, strict=True)
        return [_lerp(g, b, beta) for g, b in pairs] if self.nesterov else buffers


@registered("HeavyBall", stateful=True, may_differ=("nesterov",))
@dataclass(frozen=True, slots=True)
class HeavyBall(Momentum):
    """M <- beta M + G; with Nesterov the result is G + beta M.

    The sum is up to 1 / (1 - beta) gradients. In float16, where that can pass the largest number
    (65,504), entries stop there instead of turning infinite; a gradient that is not finite itself
    passes as it is.

    Source: KellerJordan/Muon, the MuonEq code.
    """

    nesterov: bool = True

    @property
    def is_ema(self) -> bool:
        """False: a gradient is added to the buffer."""
        return False

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float | Tensor
    ) -> list[Tensor]:
        """Update the buffers in place and returns what the rule maps."""
        gradients, buffers = _in_dtype_of(buffers, gradients), list(buffers)
        if isinstance(beta, Tensor):
            return self._with_tensor(gradients, buffers, beta)
        foreach.mul_(buffers, beta)
        foreach.add_(buffers, gradients)
        _limit_float16(buffers, gradients)
        _drop_stuck(buffers, gradients, beta)
        if not self.nesterov:
            return buffers
        ahead = list(foreach.add(gradients, buffers, alpha=beta))
        _limit_float16(ahead, gradients)
        return ahead

    def _with_tensor(
        self, gradients: list[Tensor], buffers: list[Tensor], beta: Tensor
    ) -> list[Tensor]:
        for buffer, gradient in zip(buffers, gradients, strict=True):
            buffer.copy_(_scaled_sum(gradient, buffer, beta))
        _limit_float16(buffers, gradients)
        _drop_stuck(buffers, gradients, beta)
        if not self.nesterov:
            return buffers
        pairs = zip(gradients, buffers, strict=True)
        ahead = [_scaled_sum(g, b, beta) for g, b in pairs]
        _limit_float16(ahead, gradients)
        return ahead


@registered("RawGradient")
@dataclass(frozen=True, slots=True)
class RawGradient(Momentum):
    """The gradient itself, for rules whose stages keep moments of their own; beta is not used."""

    @property
    def buffered(self) -> bool:
        """False."""
        return False

    @property
    def is_ema(self) -> bool:
        """False."""
        return False

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float | Tensor
    ) -> list[Tensor]:
        """The gradients."""
        return list(gradients)


@registered("InBfloat16", stateful=True)
@dataclass(frozen=True, slots=True)
class InBfloat16(Momentum):
    """Another momentum with its buffer kept in bfloat16: half the bytes of a float32 one.

    `dataclasses.replace(rule, momentum=InBfloat16(EMA()))` is all it takes. The new momentum is
    formed in float32 and mapped as it is, so that a step sees no rounding of its own gradient;
    only what is kept for the next step is rounded.

    Args:
        average: The momentum, a buffered one.
        stochastic: Round up or down at random and right on average. Otherwise round to nearest,
            and whatever changes the buffer by less than 2^-9 of its entry is lost: at beta 0.999 an
            average comes to rest far from the mean gradient.

    State: `momentum_buffer`, bfloat16 in the parameter's shape, and where rounding is stochastic
    `momentum_draws`, int32 [], the steps taken. The random bits are a hash of that counter, the
    entry's place and its value (`stages/rounding.py`): copies of an optimizer and runs resumed from
    a state dict go on bit for bit, no generator is used, nothing waits for the device. A shard
    counts places from its own first entry, so that other shards round other entries up: equally
    right on average, not equal bit for bit. Extra memory during the step: one float32 copy of the
    group's momenta. Effect on the polar factor: `docs/log.md`.

    Raises:
        ValueError: If `average` has no buffer.
    """

    average: Momentum = EMA()
    stochastic: bool = True

    def __post_init__(self) -> None:
        if not self.average.buffered:
            raise ValueError(f"{self.average} keeps no momentum that could be stored in bfloat16")

    @property
    def is_ema(self) -> bool:
        """Return that of the momentum that is kept."""
        return self.average.is_ema

    @property
    def extra_state(self) -> tuple[str, ...]:
        """The counter, where rounding needs it."""
        return (ROUNDING_COUNTER,) if self.stochastic else ()

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Zero buffer, and the counter where rounding needs it."""
        buffer = torch.zeros_like(
            parameter, dtype=torch.bfloat16, memory_format=torch.preserve_format
        )
        counter = torch.zeros((), dtype=torch.int32, device=parameter.device)
        return {MOMENTUM: buffer} | ({ROUNDING_COUNTER: counter} if self.stochastic else {})

    def bind_state(self, states: Sequence[Mapping[str, Tensor]]) -> Averaging:
        """The momentum with the counters of these parameters in its hands."""
        return (
            partial(self, draws=[state[ROUNDING_COUNTER] for state in states])
            if self.stochastic
            else self
        )

    def __call__(
        self,
        gradients: Sequence[Tensor],
        buffers: Sequence[Tensor],
        beta: float | Tensor,
        draws: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Rounds the new momentum into the buffers; returns what `average` makes, in float32."""
        wide = [b.to(at_least_float32(g).dtype) for b, g in zip(buffers, gradients, strict=True)]
        mapped = self.average(gradients, wide, beta)
        if self.stochastic:
            foreach.add_(draws, 1)
            for buffer, new, draw in zip(buffers, wide, draws, strict=True):
                buffer.copy_(round_stochastically(new.float(), draw))
        else:
            foreach.copy_(buffers, wide)
        return mapped


def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Return start + weight (end - start), formed in float32 as by a number for a weight."""
    wide, weight = at_least_float32(start), weight.to(start.device)
    return wide.lerp(end.to(wide.dtype), weight.to(wide.dtype)).to(start.dtype)


def _scaled_sum(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """Return x + factor y, formed in float32."""
    wide, factor = at_least_float32(x), factor.to(x.device)
    return (wide + y.to(wide.dtype) * factor.to(wide.dtype)).to(x.dtype)


def _in_dtype_of(buffers: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(gradients, buffers, strict=True)
    return [g if g.dtype == b.dtype else g.to(b.dtype) for g, b in pairs]


def _limit_float16(sums: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Set entries of float16 sums that overflowed to +-65,504 where the gradient is finite."""
    for total, G in zip(sums, gradients, strict=True):
        if total.dtype == torch.float16:
            largest = torch.finfo(torch.float16).max
            total.copy_(torch.where(G.isfinite(), total.clamp(-largest, largest), total))


def _drop_stuck(
    buffers: Sequence[Tensor], gradients: Sequence[Tensor], beta: float | Tensor
) -> None:
    """Set entries of float16 momenta to zero that rounding keeps from shrinking to it.

    Denormals of float16 begin at 6e-5. One of a few units rounds back to itself when multiplied by
    beta: where gradients stay zero it would stay for ever, at a size that gradients have too.
    """
    for M, G in zip(buffers, gradients, strict=True):
        if M.dtype == torch.float16:
            M.mul_((G != 0) | (M * beta != M))
