"""Probes that record what an optimizer does to a network, and the statistics they compute."""

from polarlight.diagnostics.activations import ActivationMonitor
from polarlight.diagnostics.clipping import ClippingCheck, ClippingWarning
from polarlight.diagnostics.descent import DescentPotential, descent
from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.diagnostics.rule_check import ParameterCheck, RuleCheck
from polarlight.diagnostics.sharding import Difference, assert_same_sharded, check_sharding
from polarlight.diagnostics.spectra import (
    gram_leverages,
    leverages,
    orthogonality_error,
    row_shares,
    singular_values,
    spectrum,
    spread,
    starved,
)

__all__ = [
    "ActivationMonitor",
    "ClippingCheck",
    "ClippingWarning",
    "DescentPotential",
    "Difference",
    "NeuronMonitor",
    "ParameterCheck",
    "RuleCheck",
    "assert_same_sharded",
    "check_sharding",
    "descent",
    "gram_leverages",
    "leverages",
    "orthogonality_error",
    "row_shares",
    "singular_values",
    "spectrum",
    "spread",
    "starved",
]
