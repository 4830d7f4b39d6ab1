"""`SpectralOptimizer`: param groups, state, the guard against non-finite gradients, the step."""

from polarlight.optimizer.apply import with_stochastic_rounding
from polarlight.optimizer.gradient_guard import NonFinite
from polarlight.optimizer.probe import Observation, Probe
from polarlight.optimizer.spectral import SpectralOptimizer

__all__ = ["NonFinite", "Observation", "Probe", "SpectralOptimizer", "with_stochastic_rounding"]
