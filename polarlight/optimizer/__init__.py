"""`SpectralOptimizer`: param groups, state, the guard against non-finite gradients, the step."""

from polarlight.optimizer.apply import with_stochastic_rounding
from polarlight.optimizer.clipping import clip_grad_norm_
from polarlight.optimizer.gradient_guard import NonFinite
from polarlight.optimizer.probe import Observation, Probe
from polarlight.optimizer.spectral import SpectralOptimizer

__all__ = [
    "NonFinite",
    "Observation",
    "Probe",
    "SpectralOptimizer",
    "clip_grad_norm_",
    "with_stochastic_rounding",
]
