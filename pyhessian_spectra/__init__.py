"""Hessian spectra of neural networks, every number with its error."""

from pyhessian_spectra._version import __version__
from pyhessian_spectra.analysis.analyze import analyze
from pyhessian_spectra.analysis.bulk import BulkEdge, split_bulk
from pyhessian_spectra.analysis.fits import BulkFit, fit_marchenko_pastur, fit_semicircle
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis, load_analyses, save_analyses
from pyhessian_spectra.curvature import (
    Decomposition,
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    ParameterLayout,
    ResidualOperator,
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
    "BlockAnalysis",
    "BulkEdge",
    "BulkFit",
    "Decomposition",
    "Eigenpairs",
    "EmpiricalFisherOperator",
    "EmpiricalRisk",
    "GGNOperator",
    "HessianOperator",
    "LinearOperator",
    "MatrixOperator",
    "ParameterLayout",
    "ResidualOperator",
    "SpectralAnalysis",
    "Spectrum",
    "TraceEstimate",
    "Tridiagonal",
    "__version__",
    "analyze",
    "eigh",
    "eigsh",
    "fit_marchenko_pastur",
    "fit_semicircle",
    "frobenius_norm",
    "lanczos",
    "load_analyses",
    "save_analyses",
    "slq",
    "split_bulk",
    "trace",
]
