"""Momentum in int8: blocks of one row share a scale; codes are spaced by a power of their rank.

    value of code c in a block of scale s:    sign(c) (|c| / 127)^power s,    |c| <= 127

With power 1 codes are evenly spaced. Larger powers put more of them near zero: small entries keep
their relative accuracy, and with them the small singular directions that a polar factor lengthens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from polarlight.linalg import foreach
from polarlight.linalg.matrices import at_least_float32
from polarlight.registry import registered
from polarlight.rule import MOMENTUM, Averaging, Momentum
from polarlight.stages.momentum import EMA, ROUNDING_COUNTER
from polarlight.stages.rounding import uniform_bits

SCALES = "momentum_scales"
"""State key: largest absolute entry of each block, float32."""

_MOST = 127


@registered("InInt8", stateful=True)
@dataclass(frozen=True, slots=True)
class InInt8(Momentum):
    """Another momentum with its buffer kept in int8: about a quarter of the bytes of float32.

    `dataclasses.replace(rule, momentum=InInt8(EMA()))` is all it takes. The new momentum is formed
    in float32 and mapped as it is; only what is kept for the next step is rounded.

    Args:
        average: The momentum, a buffered one.
        block: Entries that share a scale, along a row; at least 1. Kernels of convolutions, four
            dimensions and more, are flattened per output channel first.
        power: Spacing of the codes, see the module; at least 1.
        stochastic: Round to one of the two neighbouring codes at random and right on average, which
            keeps small steady gradients at decay rates above about 0.98. Otherwise to the nearer
            code, which disturbs the polar factor less at 0.95.

    State: `momentum_buffer`, int8 in the parameter's shape; `momentum_scales`, float32 [..., blocks
    per row]; where rounding is stochastic `momentum_draws`, int32 [], the steps taken. Random bits
    are a hash as for `InBfloat16`. Bytes per entry: 1 + 4 / block, against 4 in float32. Extra
    memory during the step: a few float32 copies of the batch's momenta.

    The defaults of `power` and `stochastic` disturbed the polar factor least of those measured
    (`python -m benchmarks.narrow_momentum`, `docs/log.md`).

    Accuracy: an entry x in a block of scale s is off by at most power r^(power - 1) s / 127, where
    r = (|x| / s)^(1 / power) + 1 / 127. Loss of Muon and Aurora at 0.6 million parameters: equal to
    that with float32 within 0.01 nats/byte (`python -m benchmarks.narrow_momentum_loss`).

    Shards: a block lies on one process. Columns may be sharded if every process holds a multiple of
    `block`; a shard that cuts a block is refused when the state is made.

    Source: blockwise quantization of optimizer state is Dettmers et al. 2021, arXiv 2110.02861;
    powers in place of their dynamic tree are ours.

    Raises:
        ValueError: If `average` has no buffer, or `block` or `power` is below 1.

    Examples:
        >>> from dataclasses import replace
        >>> import torch, polarlight
        >>> rule = polarlight.rules.muon()
        >>> rule = replace(rule, momentum=polarlight.stages.InInt8(polarlight.stages.EMA()))
        >>> weight = torch.nn.Parameter(torch.ones(256, 128))
        >>> optimizer = polarlight.SpectralOptimizer([weight], rule=rule, lr=0.02)
        >>> weight.grad = torch.randn(256, 128)
        >>> optimizer.step()
        >>> optimizer.state[weight]["momentum_buffer"].dtype
        torch.int8
        >>> optimizer.state[weight]["momentum_scales"].shape
        torch.Size([256, 1])
    """

    average: Momentum = EMA()
    block: int = 128
    power: float = 1.5
    stochastic: bool = False

    def __post_init__(self) -> None:
        if not self.average.buffered:
            raise ValueError(f"{self.average} keeps no momentum that could be stored in int8")
        if not self.block >= 1:
            raise ValueError(f"block must be at least 1, got {self.block}; 128 or 256 is usual")
        if not self.power >= 1:
            raise ValueError(f"power must be at least 1, got {self.power}")

    @property
    def is_ema(self) -> bool:
        """False: a block is scaled and rounded anew in every step."""
        return False

    @property
    def extra_state(self) -> tuple[str, ...]:
        """The scales, and the counter where rounding needs it."""
        return (SCALES, ROUNDING_COUNTER) if self.stochastic else (SCALES,)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return zero codes and scales, and the counter where rounding needs it."""
        device = parameter.device
        codes = torch.zeros_like(parameter, dtype=torch.int8, memory_format=torch.preserve_format)
        scales = torch.zeros(self._scales_shape(parameter.shape), device=device)
        counter = torch.zeros((), dtype=torch.int32, device=device)
        state = {MOMENTUM: codes, SCALES: scales}
        return state | ({ROUNDING_COUNTER: counter} if self.stochastic else {})

    def bind_state(self, states: Sequence[Mapping[str, Tensor]]) -> Averaging:
        """Return the momentum with scales and counters of these parameters."""
        scales = [state[SCALES] for state in states]
        draws = (
            [state[ROUNDING_COUNTER] for state in states]
            if self.stochastic
            else [None] * len(scales)
        )
        return partial(self, scales=scales, draws=draws)

    def __call__(
        self,
        gradients: Sequence[Tensor],
        buffers: Sequence[Tensor],
        beta: float | Tensor,
        scales: Sequence[Tensor] = (),
        draws: Sequence[Tensor | None] = (),
    ) -> list[Tensor]:
        """Round the new momentum into codes and scales; return what `average` makes."""
        wide = [
            self.dequantize(codes, scale).to(at_least_float32(g).dtype)
            for codes, scale, g in zip(buffers, scales, gradients, strict=True)
        ]
        mapped = self.average(gradients, wide, beta)
        if self.stochastic:
            foreach.add_([draw for draw in draws if draw is not None], 1)
        for codes, scale, draw, new in zip(buffers, scales, draws, wide, strict=True):
            self.quantize_(codes, scale, new.float(), draw)
        return mapped

    def shard_error(self, shape: torch.Size, shard: torch.Size) -> str:
        """Return why a shard cannot keep its state: it cuts rows elsewhere than between blocks."""
        row, held = self._row(shape), self._row(shard) if len(shard) == len(shape) else 0
        if held == row or held % self.block == 0:
            return ""
        return (
            f"a shard of {held} of {row} columns would cut a block of {self.block}; "
            f"choose InInt8(block=...) that divides {held}, or shard rows"
        )

    def store(self, state: Mapping[str, Tensor], M: Tensor) -> tuple[str, ...]:
        """Write a floating-point momentum as codes and scales, to nearest; return their keys."""
        self.quantize_(state[MOMENTUM], state[SCALES], M.float(), None)
        return MOMENTUM, SCALES

    def dequantize(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the float32 values of codes, in their shape."""
        ranks = self._blocks(codes.float() / _MOST)  # [rows, blocks, block], in [-1, 1]
        sizes = scales.view(*ranks.shape[:2], 1)
        return self._unblocked(ranks.abs().pow_(self.power).copysign_(ranks) * sizes, codes.shape)

    def quantize_(self, codes: Tensor, scales: Tensor, X: Tensor, draw: Tensor | None) -> None:
        """Write the codes and scales of X, float32 in the shape of `codes`."""
        blocks = self._blocks(X)  # [rows, blocks, block]
        largest = blocks.abs().amax(dim=-1, keepdim=True)
        scales.copy_(largest.view(scales.shape))
        sizes = blocks.abs() / torch.where(largest > 0, largest, 1)  # in [0, 1]
        ranks = sizes.pow(1 / self.power) * _MOST
        if draw is None:
            chosen = ranks.round()
        else:
            low = ranks.floor().clamp_(max=_MOST - 1)
            below, above = ((rank / _MOST).pow(self.power) for rank in (low, low + 1))
            share = (sizes - below) / (above - below)  # the probability of the larger code
            chosen = low + (self._blocks(uniform_bits(X, draw)) < share * 2.0**16)
        signed = chosen.copysign_(blocks)
        codes.copy_(self._unblocked(signed, codes.shape))

    def _row(self, shape: Sequence[int]) -> int:
        """Return the number of entries that are cut into blocks: a row, or an output channel."""
        return prod(shape[1:]) if len(shape) > 3 else shape[-1]

    def _scales_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Return the shape of the scales of a parameter: its own with blocks for entries."""
        blocks = -(-self._row(shape) // self.block)
        return (shape[0], blocks) if len(shape) > 3 else (*shape[:-1], blocks)

    def _blocks(self, X: Tensor) -> Tensor:
        """Return X as [rows, blocks, block], the last block filled with zeros."""
        row = self._row(X.shape)
        rows = X.reshape(X.numel() // row if row else 0, row)
        missing = -row % self.block
        padded: Tensor = pad(rows, (0, missing)) if missing else rows
        blocks: Tensor = padded.unflatten(1, (-1, self.block))
        return blocks

    def _unblocked(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        """Return the inverse of `_blocks`."""
        return blocks.flatten(1)[:, : self._row(shape)].reshape(shape)
