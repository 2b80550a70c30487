"""What may be passed to the optimisers as an option: how damping adapts, how far to go, what to precondition with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError

# Sufficient decrease, as a share of the slope's, and the most halvings (Nocedal and Wright 2006, section 3.1).
_DECREASE, _HALVINGS = 1e-2, 30


def levenberg_marquardt(damping: float, ratio: float) -> float:
    """The next damping, from the ratio of the loss' actual reduction to the predicted one (Martens 2010, section 4.1).

    ``3/2`` of it below a ratio of 1/4, ``2/3`` of it above 3/4; for ``HessianFree(..., adapt_damping=...)``.
    """
    return damping * (1.5 if not ratio >= 0.25 else 2 / 3 if ratio > 0.75 else 1.0)


def backtracking(loss_at: Callable[[float], float], loss: float, slope: float) -> float:
    """The largest of the factors 1, 1/2, 1/4, ... with a sufficient decrease (Armijo), or 0 if there is none.

    For ``line_search=``. ``loss_at`` maps a factor of the step to the minibatch's loss there, ``loss`` is the one
    before the step, and ``slope`` the step's inner product with the gradient. A step that goes uphill has the factor 0.
    """
    factor = 1.0
    for _ in range(_HALVINGS):
        if loss_at(factor) <= loss + _DECREASE * factor * slope and slope < 0:
            return factor
        factor /= 2
    return 0.0


def squared_gradients(risk: EmpiricalRisk, point: Point, damping: Tensor, *, exponent: float = 0.75) -> Tensor:
    """The inverse of Martens' preconditioner, ``(sum_i g_i^2 + damping)^-exponent`` entry by entry, shape (n,).

    For ``HessianFree(..., preconditioner=...)``. ``g_i`` are the gradients of the examples' own losses on the
    curvature's batch (Martens 2010, section 4.7), taken one by one: as many backward passes as there are examples,
    whose sum is divided by their number, as the curvature is a mean. Raises InputError for a closure, which does not
    tell examples apart.
    """
    total, weights = torch.zeros_like(damping), 0.0
    for weight, batch in risk.sample.read():
        if callable(batch.inputs):
            raise InputError("squared_gradients needs single examples; pass step an EmpiricalRisk instead of a closure")
        for example in (batch.rows(i, i + 1) for i in range(batch.num_examples)):
            share = risk.weight_of(example) if risk.weights_guessed else weight / batch.num_examples
            if share:
                total += share * autodiff.gradient(risk.objective, point, example) ** 2
        weights += weight
    if risk.sample.processes:
        total, _ = risk.sample.processes.sum(total, total.new_zeros(0, dtype=torch.float64), None)
        weights = sum(risk.sample.survey.weights)
    return (total / weights + damping) ** -exponent
