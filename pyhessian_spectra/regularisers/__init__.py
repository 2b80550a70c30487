"""Curvature used while a network trains: what is penalised, and what is reset."""

from pyhessian_spectra.regularisers.penalty import TracePenalty, trace_penalty
from pyhessian_spectra.regularisers.reinitialise import CurvatureReinitializer, Reinitialisation
from pyhessian_spectra.regularisers.scores import curvature_scores

__all__ = ["CurvatureReinitializer", "Reinitialisation", "TracePenalty", "curvature_scores", "trace_penalty"]
