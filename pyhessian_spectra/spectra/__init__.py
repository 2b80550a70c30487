"""How eigenvalues are found. Knows operators only: never a model, a loss or a dataset."""

from pyhessian_spectra.spectra.eigen import eigh, eigsh
from pyhessian_spectra.spectra.lanczos import Tridiagonal, lanczos
from pyhessian_spectra.spectra.operator import LinearOperator, MatrixOperator
from pyhessian_spectra.spectra.results import Eigenpairs, Spectrum, TraceEstimate
from pyhessian_spectra.spectra.slq import slq
from pyhessian_spectra.spectra.trace import frobenius_norm, trace

__all__ = [
    "Eigenpairs",
    "LinearOperator",
    "MatrixOperator",
    "Spectrum",
    "TraceEstimate",
    "Tridiagonal",
    "eigh",
    "eigsh",
    "frobenius_norm",
    "lanczos",
    "slq",
    "trace",
]
