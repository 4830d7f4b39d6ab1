"""Migration from another library: learning rates and optimizer state, with their units."""

from polarlight.migration.carried import Carried, from_file, to_file
from polarlight.migration.carrying import Line, Report, carry_over, load_carried
from polarlight.migration.conventions import (
    CONVENTIONS,
    Convention,
    UpdateSize,
    convention_of,
    lr_for_rms,
    momentum_factor,
    translate_lr,
    update_rms,
)
from polarlight.migration.sources import SOURCES, Source, read_momenta, read_state_dict
from polarlight.migration.width import operator_step, transfer_lr

__all__ = [
    "CONVENTIONS",
    "SOURCES",
    "Carried",
    "Convention",
    "Line",
    "Report",
    "Source",
    "UpdateSize",
    "carry_over",
    "convention_of",
    "from_file",
    "load_carried",
    "lr_for_rms",
    "momentum_factor",
    "operator_step",
    "read_momenta",
    "read_state_dict",
    "to_file",
    "transfer_lr",
    "translate_lr",
    "update_rms",
]
