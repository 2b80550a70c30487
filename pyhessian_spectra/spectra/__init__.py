"""Eigenvalue algorithms for symmetric linear operators. Nothing here knows of models, losses or datasets."""

from pyhessian_spectra.spectra.cg import CGResult, cg, relative_progress
from pyhessian_spectra.spectra.eigen import eigh, eigsh
from pyhessian_spectra.spectra.lanczos import Tridiagonal, lanczos
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.operator import LinearOperator, MatrixOperator
from pyhessian_spectra.spectra.results import Eigenpair, Eigenpairs, TraceEstimate
from pyhessian_spectra.spectra.settings import Settings
from pyhessian_spectra.spectra.slq import slq
from pyhessian_spectra.spectra.space import VectorSpace
from pyhessian_spectra.spectra.spectrum import Spectrum
from pyhessian_spectra.spectra.structured import (
    BlockDiagonalOperator,
    CongruenceOperator,
    DiagonalOperator,
    IdentityOperator,
    ShiftedOperator,
)
from pyhessian_spectra.spectra.trace import frobenius_norm, trace

__all__ = [
    "BlockDiagonalOperator",
    "CGResult",
    "CongruenceOperator",
    "DiagonalOperator",
    "Eigenpair",
    "Eigenpairs",
    "IdentityOperator",
    "LinearOperator",
    "MatrixOperator",
    "Meter",
    "Settings",
    "ShiftedOperator",
    "Spectrum",
    "TraceEstimate",
    "Tridiagonal",
    "VectorSpace",
    "cg",
    "eigh",
    "eigsh",
    "frobenius_norm",
    "lanczos",
    "relative_progress",
    "slq",
    "trace",
]
