"""Thousands of small networks at once: the same objective at stacked points."""

from pyhessian_spectra.ensembles.hessians import ensemble_eigenvalues, ensemble_hessians
from pyhessian_spectra.ensembles.results import EnsembleSpectra, TrainedEnsemble
from pyhessian_spectra.ensembles.train import sphere_starts, train_ensemble

__all__ = [
    "EnsembleSpectra",
    "TrainedEnsemble",
    "ensemble_eigenvalues",
    "ensemble_hessians",
    "sphere_starts",
    "train_ensemble",
]
