"""Whether a penalty on curvature has derivatives: where it has none, training would go on as if it were not there."""

from __future__ import annotations

import torch
from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.inspection import refuse_once_differentiable
from pyhessian_spectra.curvature.operators import GGNOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import SecondDerivativeError


def require_derivatives(op: RiskOperator, value: Tensor, whole: EmpiricalRisk) -> None:
    """Raise SecondDerivativeError if the penalty ``value`` cannot change the parameters, or not as it should."""
    if not value.requires_grad or _vanishes(op, whole):
        raise SecondDerivativeError(
            f"the trace of this {op.kind} does not depend on the parameters: the loss has no second derivative there "
            "(it is piecewise linear, such as L1), or no third one (a squared error of a linear model); use a smooth "
            "loss, or train without the penalty"
        )
    refuse_once_differentiable(value)
    ((_, batch),) = op.risk.sample.read()
    op.risk.objective.backward(
        op.point, batch, lambda: autodiff.gradients(value, op.point.coordinates, retain_graph=True)
    )


def _vanishes(op: RiskOperator, whole: EmpiricalRisk) -> bool:
    """Whether the block of each parameter is zero on a vector, and so is the Gauss-Newton matrix of all parameters.

    The Hessian of a loss that is piecewise linear in the outputs may still have blocks of two layers, which are noise
    around a trace of zero. A chosen block alone may be zero by chance, as below a head of zeros.
    """
    for part in op.risk.layout.slices.values():
        v = torch.zeros(op.n, dtype=op.dtype, device=op.device)
        v[part] = _no_shift(part.stop - part.start).to(v)
        if op.product(v)[part].any():
            return False
    ggn = GGNOperator(whole, point=whole.live())
    return not ggn.product(_no_shift(ggn.n).to(ggn.device, ggn.dtype)).any()


def _no_shift(n: int) -> Tensor:
    """A vector (n,) without zeros that is not constant: a softmax does not see one constant added to all its inputs."""
    return 1 + torch.arange(n) % 3
