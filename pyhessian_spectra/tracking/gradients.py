"""What gradients and losses say of curvature while training."""

from __future__ import annotations

import math

import numpy as np

from pyhessian_spectra.analysis.eigenspaces import inner_products
from pyhessian_spectra.analysis.gradient import in_float64
from pyhessian_spectra.analysis.table import CERTIFIED, EXACT, UNKNOWN
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator, Point
from pyhessian_spectra.spectra import Meter
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.rounding import SAFETY
from pyhessian_spectra.tracking.checks import require_share
from pyhessian_spectra.tracking.moment import Moment, Stateless
from pyhessian_spectra.tracking.track import Measured

BRACKET = "half the bracket"
BATCHES = "standard error over batches"

# Doublings and halvings of a step before a loss that neither rises nor falls is given up.
_DOUBLINGS = 20


class GradientShare(Stateless):
    """The norm of the probe data's gradient, and its energy in the space of the largest eigenvalues.

    That is ``||V V^T g||^2 / ||g||^2`` (Gur-Ari, Roberts and Dyer 2018) with those that :class:`Eigenvalues` measured
    before it; without them it is left out. Its error is bounded by the angle of their space (Davis and Kahan 1970)
    where the tracker certifies, and unknown in between.
    """

    def measure(self, moment: Moment) -> list[Measured]:
        """The norm and the share now."""
        certified = moment.top is not None and moment.top.others is not None
        risk, point, beside = moment.risk, moment.point, None
        if certified:  # as exact as the eigenvectors
            risk, point, beside = in_float64(HessianOperator(risk, point=point))
        g = _gradient(risk, point)
        norm = float(np.linalg.norm(g))
        rows = [Measured("gradient norm", norm, None, UNKNOWN)]
        if moment.top is None or not norm:
            return rows
        share = float((inner_products(g[:, None] / norm, np.asarray(moment.top.eigenvectors)) ** 2).sum())
        quantity = f"share of the gradient in the top {len(moment.top)}"
        if moment.top.others is None or moment.top.lower is None:
            return [*rows, Measured(quantity, share, None, UNKNOWN)]
        gap = float(moment.top.lower[0]) - moment.top.others[1]
        size = float(np.linalg.norm(moment.top.residuals)) + moment.top.rounding
        angle = size / gap if gap > 0 else 1.0
        off = 1.0 if beside is None else SAFETY * float(np.linalg.norm(_gradient(risk, beside) - g)) / norm
        return [*rows, Measured(quantity, share, min(1.0, angle + off), CERTIFIED)]


def _gradient(risk: EmpiricalRisk, point: Point) -> Floats:
    """The gradient (n,) in float64."""
    return risk.gradient(point).double().cpu().numpy()


class MidpointLoss(Stateless):
    """The loss of the probe data before and after the last step, and half-way.

    Along an oscillation between the walls of a valley it is lower half-way (Xing, Arpit, Tsirigotis and Bengio 2018).
    """

    needs_previous = True

    def measure(self, moment: Moment) -> list[Measured]:
        """The three losses; none before the first step."""
        if moment.previous is None:
            return []
        now = moment.point.flat()
        points = {"before the step": moment.previous, "half-way": (moment.previous + now) / 2, "after the step": now}
        return [Measured(f"loss {name}", moment.loss_at(flat), 0.0, EXACT) for name, flat in points.items()]


class BatchSharpness(Stateless):
    """The mean over batches of ``g_b^T H_b g_b / ||g_b||^2``, each batch with its own gradient and Hessian.

    It is what settles at ``2 / lr`` where stochastic gradient descent is at its edge (Andreyev and Beneventano 2024).
    One product for each batch.
    """

    def measure(self, moment: Moment) -> list[Measured]:
        """The mean now, with its standard error over the batches."""
        values = []
        for risk in moment.batches:
            gradient = risk.gradient(moment.point)
            op = Meter(HessianOperator(risk, point=moment.point))
            size = op.space.inner(gradient, gradient)
            values.append(op.space.inner(gradient, op @ gradient) / size if size else math.nan)
            moment.products += op.num_products
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        return [Measured("batch sharpness", float(np.mean(values)), error, BATCHES if error is not None else UNKNOWN)]


class CriticalSharpness(Stateless):
    """``2 / (s lr)``, with the shortest multiple ``s`` of the last step that raises the loss: from losses alone.

    On a quadratic function and for gradient descent it is ``g^T H g / ||g||^2``, at most the largest eigenvalue (Kalra
    and Barkeshli 2024). The loss is that of the probe data.

    Parameters
    ----------
    rtol : float
        Bisection ends where the bracket of ``s`` is narrower than this share of it.
    """

    needs_previous = True

    def __init__(self, *, rtol: float = 0.02) -> None:
        self._rtol = require_share("rtol", rtol)

    def measure(self, moment: Moment) -> list[Measured]:
        """The critical sharpness of the last step; none before the first, or where groups have different ``lr``."""
        before = moment.previous
        if before is None or not moment.lr:
            return []
        start, name = moment.loss_at(before), "critical sharpness"
        step = moment.point.flat() - before

        def rises(factor: float) -> bool:
            return not moment.loss_at(before + factor * step) <= start

        low = high = 1.0
        up = rises(1.0)
        for _ in range(_DOUBLINGS):
            if up and rises(low / 2):
                low, high = low / 2, low / 2
            elif up:
                low, high = low / 2, low
                break
            elif rises(2 * high):
                low, high = high, 2 * high
                break
            else:
                low = high = 2 * high
        if low == high:  # no step that was tried raises the loss, or all do
            return [Measured(name, math.nan, None, BRACKET, converged=False)]
        while high - low > self._rtol * low:
            middle = (low + high) / 2
            low, high = (low, middle) if rises(middle) else (middle, high)
        most, least = 2 / (low * moment.lr), 2 / (high * moment.lr)
        return [Measured(name, (most + least) / 2, (most - least) / 2, BRACKET)]
