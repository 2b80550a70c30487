"""Whether a loss is convex in the outputs, without which its Gauss-Newton matrix is not semidefinite."""

from __future__ import annotations

import torch

from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.lanczos import lanczos

_STEPS = 20


def require_convex_loss(risk: EmpiricalRisk, point: Point) -> None:
    """Raise InputError if the loss of the first batch has negative curvature in the outputs, as Lanczos sees it."""
    for _, batch in risk.sample.read():

        def least() -> tuple[float, float]:
            outputs, value = risk.objective.evaluate(batch)  # noqa: B023 - called at once
            op = HessianOperator.from_loss(value, risk.objective.selected(outputs))
            start = op.space.randn(torch.Generator().manual_seed(0))
            ritz = lanczos(op, start / op.space.norm(start), min(_STEPS, op.n)).eigh()[0]
            return float(ritz[0]), max(float(abs(ritz).max()), 1e-300) * op.space.eps**0.5

        low, rounding = risk.objective.run(point, batch, least)
        if low < -rounding:
            raise InputError(
                f"the loss has curvature {low:.3g} in the outputs, so that its Gauss-Newton matrix is not positive "
                "semidefinite; use a loss that is convex in them, or curvature=HessianOperator"
            )
        return
