"""Moving over from another library: learning rates and optimizer state, with their units."""

from polarlight.migration.carried import Carried, from_file, to_file
from polarlight.migration.carrying import Line, Report, carry_over, load_carried
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
from polarlight.migration.sources import SOURCES, Source, read_momenta, read_state_dict

__all__ = [
    "CONVENTIONS",
    "SOURCES",
    "Carried",
    "Convention",
    "Line",
    "Report",
    "Size",
    "Source",
    "carry_over",
    "convention_of",
    "from_file",
    "load_carried",
    "lr_for_rms",
    "momentum_factor",
    "read_momenta",
    "read_state_dict",
    "to_file",
    "translate_lr",
    "update_rms",
]
