"""Curvature while a model trains: a tracker, what it measures, and the record that it leaves."""

from pyhessian_spectra.tracking.callbacks import lightning_callback, to_tensorboard, to_wandb, transformers_callback
from pyhessian_spectra.tracking.eigenvalues import BatchEigenvalues, Eigenvalues, PreconditionedEigenvalues
from pyhessian_spectra.tracking.gradients import BatchSharpness, CriticalSharpness, GradientShare, MidpointLoss
from pyhessian_spectra.tracking.traces import Traces
from pyhessian_spectra.tracking.track import Measured, Record, Track
from pyhessian_spectra.tracking.tracker import SpectrumTracker

__all__ = [
    "BatchEigenvalues",
    "BatchSharpness",
    "CriticalSharpness",
    "Eigenvalues",
    "GradientShare",
    "Measured",
    "MidpointLoss",
    "PreconditionedEigenvalues",
    "Record",
    "SpectrumTracker",
    "Traces",
    "Track",
    "lightning_callback",
    "to_tensorboard",
    "to_wandb",
    "transformers_callback",
]
