"""The factor on the update that makes one learning rate fit every shape.

Each is called with (fan_out, fan_in), whatever the storage order. `docs/names.md` lists what other
libraries call them; "spectral" alone means two different ones and is not used here.
"""

from dataclasses import dataclass
from math import sqrt

from polarlight.registry import registered


@registered("Original")
@dataclass(frozen=True, slots=True)
class Original:
    """sqrt(max(1, fan_out / fan_in)): Jordan's Muon, NorMuon, the Aurora release."""

    def __call__(self, fan_out: int, fan_in: int) -> float:
        """The factor; 1 for an empty matrix."""
        return sqrt(max(1.0, fan_out / fan_in)) if fan_in else 1.0


@registered("MatchRmsAdamW")
@dataclass(frozen=True, slots=True)
class MatchRmsAdamW:
    """rms * sqrt(max(fan_out, fan_in)): entries of a polar factor get the RMS of an AdamW update.

    Source: Liu et al., "Muon is scalable" (Moonlight, 2025), arXiv 2502.16982; MuonEq.
    """

    rms: float = 0.2

    def __post_init__(self) -> None:
        if not self.rms > 0:
            raise ValueError(f"rms must be > 0, got {self.rms}")

    def __call__(self, fan_out: int, fan_in: int) -> float:
        """The factor."""
        return self.rms * sqrt(max(fan_out, fan_in))


@registered("RmsToRms")
@dataclass(frozen=True, slots=True)
class RmsToRms:
    """sqrt(fan_out / fan_in): unit RMS-to-RMS operator norm, for transfer across widths.

    Source: Bernstein and Newhouse (2024), arXiv 2410.21265; dion calls it `spectral_norm`.
    """

    def __call__(self, fan_out: int, fan_in: int) -> float:
        """The factor; 1 for an empty matrix."""
        return sqrt(fan_out / fan_in) if fan_in else 1.0


@registered("Unscaled")
@dataclass(frozen=True, slots=True)
class Unscaled:
    """1: the update keeps the size that the slots before gave it."""

    def __call__(self, fan_out: int, fan_in: int) -> float:
        """The factor."""
        return 1.0
