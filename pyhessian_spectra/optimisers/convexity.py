"""Whether a loss is convex in the outputs, without which its Gauss-Newton matrix is not semidefinite."""

from __future__ import annotations

import itertools
import math

import torch

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError, NonFiniteError, SpectraError
from pyhessian_spectra.spectra.lanczos import lanczos
from pyhessian_spectra.spectra.results import Floats

_STEPS = 20


def require_convex_loss(risk: EmpiricalRisk, point: Point) -> None:
    """Raise InputError if the loss of a rank's first batch has negative curvature in the outputs, as Lanczos sees."""
    failure = None
    try:
        for _, batch in itertools.islice(risk.sample.read(), 1):
            _require_convex(risk, point, batch)
    except SpectraError as error:
        failure = error
    risk.sample.processes.agree(failure)


def _require_convex(risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
    def ritz_values() -> Floats:
        outputs, value = risk.objective.evaluate(batch)
        if not math.isfinite(float(value.detach())):
            raise NonFiniteError("the loss of the curvature's batch is NaN or infinite; look at its inputs")
        op = HessianOperator.from_loss(value, risk.objective.selected(outputs))
        return lanczos(op, op.space.sphere(torch.Generator().manual_seed(0)), min(_STEPS, op.n)).eigh()[0]

    found = risk.objective.run(point, batch, ritz_values)
    if found[0] < -abs(found).max() * torch.finfo(risk.dtype).eps ** 0.5:
        raise InputError(
            f"the loss has curvature {found[0]:.3g} in the outputs, so that its Gauss-Newton matrix is not positive "
            "semidefinite; use a loss that is convex in them, or curvature=HessianOperator"
        )
