"""What matrix: the risk, its parameters and its curvature operators. The only home of autograd."""

from pyhessian_spectra.curvature.operators import EmpiricalFisherOperator, GGNOperator, HessianOperator
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.risk import EmpiricalRisk

__all__ = ["EmpiricalFisherOperator", "EmpiricalRisk", "GGNOperator", "HessianOperator", "ParameterLayout"]
