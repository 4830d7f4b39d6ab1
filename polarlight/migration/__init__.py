"""Moving over from another library: learning rates and optimizer state, with their units."""

from polarlight.migration.conventions import (
    CONVENTIONS,
    Convention,
    Size,
    convention_of,
    lr_for_rms,
    momentum_factor,
    translate_lr,
    update_rms,
)

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Size",
    "convention_of",
    "lr_for_rms",
    "momentum_factor",
    "translate_lr",
    "update_rms",
]
