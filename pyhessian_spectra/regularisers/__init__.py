"""Curvature used while a network trains: what is penalised, and what is reset."""

from pyhessian_spectra.regularisers.reinitialise import CurvatureReinitializer, Reinitialisation
from pyhessian_spectra.regularisers.scores import curvature_scores

__all__ = ["CurvatureReinitializer", "Reinitialisation", "curvature_scores"]
