"""Thousands of small networks at once: the same objective at stacked points."""

from pyhessian_spectra.ensembles.hessians import EnsembleSpectra as EnsembleSpectra
from pyhessian_spectra.ensembles.hessians import ensemble_eigenvalues as ensemble_eigenvalues
from pyhessian_spectra.ensembles.hessians import ensemble_hessians as ensemble_hessians
from pyhessian_spectra.ensembles.train import TrainedEnsemble as TrainedEnsemble
from pyhessian_spectra.ensembles.train import sphere_starts as sphere_starts
from pyhessian_spectra.ensembles.train import train_ensemble as train_ensemble
