"""Momentum in host memory: each batch of a step copies it to the device and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polarlight.registry import registered
from polarlight.rule import MOMENTUM, Momentum
from polarlight.stages.momentum import EMA


@registered("OnHost", stateful=True)
@dataclass(frozen=True, slots=True)
class OnHost(Momentum):
    """Another momentum with its buffer in host memory; the rest of the step runs on the device.

    `dataclasses.replace(rule, momentum=OnHost(EMA()))` is all it takes. In every batch of a step
    the buffers are copied to the gradients' device, updated there and copied back: values are
    those of `average`, to the bit. Beside an accelerator the buffers are pinned. On a CPU nothing
    is copied.

    Args:
        average: The momentum, one with a buffer and no other state.

    State: `momentum_buffer` in the parameter's shape and dtype, on the CPU. The device holds the
    buffers of one batch at a time, at most 256 MB or one parameter, in place of all. A step moves
    twice their bytes over the bus. The copy back waits for the device, once per batch, so that a
    buffer can be read and saved at any time. Speed on a GPU was not measured.

    Shards: DTensors of torch lie on the device of their mesh. Use it for plain parameters, and for
    shards on a CPU mesh.

    Raises:
        ValueError: If `average` has no buffer, or more state than that.

    Examples:
        >>> from dataclasses import replace
        >>> import torch, polarlight
        >>> rule = polarlight.rules.muon()
        >>> rule = replace(rule, momentum=polarlight.stages.OnHost(polarlight.stages.EMA()))
        >>> weight = torch.nn.Parameter(torch.ones(8, 4))
        >>> optimizer = polarlight.SpectralOptimizer([weight], rule=rule, lr=0.02)
        >>> weight.grad = torch.randn(8, 4)
        >>> optimizer.step()
        >>> optimizer.state[weight]["momentum_buffer"].device.type
        'cpu'
    """

    average: Momentum = EMA()

    def __post_init__(self) -> None:
        if not self.average.buffered or self.average.extra_state:
            raise ValueError(
                f"{self.average} cannot be kept on the host; expected a momentum whose only state "
                "is its buffer: EMA() or HeavyBall()"
            )

    @property
    def is_ema(self) -> bool:
        """Return that of the momentum that is kept."""
        return self.average.is_ema

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return a zero buffer on the CPU, pinned beside a CUDA device."""
        buffer = torch.zeros_like(parameter, device="cpu", memory_format=torch.preserve_format)
        pinned = parameter.device.type == "cuda" and torch.cuda.is_available()
        return {MOMENTUM: buffer.pin_memory() if pinned else buffer}

    def shard_error(self, shape: torch.Size, shard: torch.Size) -> str:
        """Return nothing: any shard can be kept."""
        return ""

    def loaded(self, buffers: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the buffers on the devices of the gradients."""
        pairs = zip(buffers, gradients, strict=True)
        return [b.to(g.device, non_blocking=True) for b, g in pairs]

    def __call__(
        self, gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float | Tensor
    ) -> list[Tensor]:
        """Update the loaded buffers in place; return what `average` makes."""
        return self.average(gradients, buffers, beta)
