"""`SpectralOptimizer`: param groups, state, the guard against non-finite gradients, the step."""
