"""Regularisers: what curvature adds to a training loop of the user's own."""

from pyhessian_spectra.regularisers.penalty import TracePenalty, trace_penalty

__all__ = ["TracePenalty", "trace_penalty"]
