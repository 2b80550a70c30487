"""What matrix: the risk, its parameters and its curvature operators. The only home of autograd."""

from pyhessian_spectra.curvature.decomposition import Decomposition
from pyhessian_spectra.curvature.operators import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    ResidualOperator,
)
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.risk import EmpiricalRisk

__all__ = [
    "Decomposition",
    "EmpiricalFisherOperator",
    "EmpiricalRisk",
    "GGNOperator",
    "HessianOperator",
    "ParameterLayout",
    "ResidualOperator",
]
