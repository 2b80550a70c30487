"""Empirical risks, their parameters and their curvature operators. Only this package calls autograd."""

from pyhessian_spectra.curvature.decomposition import Decomposition
from pyhessian_spectra.curvature.gram import GGNGram, fisher_gram, ggn_gram
from pyhessian_spectra.curvature.operators import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    ResidualOperator,
)
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.partition import Partition
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.relative import (
    LogHessianOperator,
    RelativeHessianOperator,
    each_weight,
    filter_norms,
    tensor_norms,
)
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import Linearised, RiskOperator

__all__ = [
    "Decomposition",
    "EmpiricalFisherOperator",
    "EmpiricalRisk",
    "GGNGram",
    "GGNOperator",
    "HessianOperator",
    "Linearised",
    "LogHessianOperator",
    "ParameterLayout",
    "Partition",
    "Point",
    "RelativeHessianOperator",
    "ResidualOperator",
    "RiskOperator",
    "each_weight",
    "filter_norms",
    "fisher_gram",
    "ggn_gram",
    "tensor_norms",
]
