"""Optimisers that learn with curvature: Newton's method and (block-diagonal) Hessian-free."""

from pyhessian_spectra.optimisers.hessian_free import HessianFree
from pyhessian_spectra.optimisers.newton import Newton
from pyhessian_spectra.optimisers.options import backtracking, levenberg_marquardt, squared_gradients
from pyhessian_spectra.optimisers.records import SolveRecord, StepRecord

__all__ = [
    "HessianFree",
    "Newton",
    "SolveRecord",
    "StepRecord",
    "backtracking",
    "levenberg_marquardt",
    "squared_gradients",
]
