"""Hessian spectra of neural networks, every number with its error."""

from pyhessian_spectra._version import __version__
from pyhessian_spectra.curvature import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    ParameterLayout,
)
from pyhessian_spectra.spectra import (
    Eigenpairs,
    LinearOperator,
    MatrixOperator,
    Spectrum,
    TraceEstimate,
    Tridiagonal,
    eigh,
    eigsh,
    frobenius_norm,
    lanczos,
    slq,
    trace,
)

__all__ = [
    "Eigenpairs",
    "EmpiricalFisherOperator",
    "EmpiricalRisk",
    "GGNOperator",
    "HessianOperator",
    "LinearOperator",
    "MatrixOperator",
    "ParameterLayout",
    "Spectrum",
    "TraceEstimate",
    "Tridiagonal",
    "__version__",
    "eigh",
    "eigsh",
    "frobenius_norm",
    "lanczos",
    "slq",
    "trace",
]
