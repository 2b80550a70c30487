"""How every experiment trains, and which of its runs count: one rule for blobs and images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from examples.singularity.common import LOSS, flat_loss
from pyhessian_spectra.ensembles import train_ensemble

#: A run has learned if its loss is below this part of ln C, which guessing among C classes costs.
LEARNED = 0.5

RULE = (
    f"A run counts if its parameters are finite, its gradient norm met the tolerance and its loss is below {LEARNED:g} "
    "ln C (C classes); every other run is set aside and counted as set aside."
)


@dataclass(frozen=True)
class Runs:
    """What training reached: a row or an entry for each start, in float64.

    ``steps`` are those of gradient descent, ``evaluations`` those of L-BFGS, which finishes a run that has not met the
    tolerance by then; ``errors`` are shares of training examples put into the wrong class.
    """

    parameters: Tensor
    losses: np.ndarray
    gradient_norms: np.ndarray
    errors: np.ndarray
    steps: np.ndarray
    evaluations: np.ndarray
    counted: np.ndarray

    def summary(self) -> dict[str, Any]:
        """How many runs there were, how many count, and how the others failed."""
        finite = np.isfinite(self.losses)
        return {
            "runs": len(self.losses),
            "counted": int(self.counted.sum()),
            "diverged": int((~finite).sum()),
            "finished_by_lbfgs": int((self.evaluations > 0).sum()),
            "largest_gradient_norm_counted": float(self.gradient_norms[self.counted].max(initial=0.0)),
        }


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    starts: Tensor,
    *,
    step: float,
    tolerance: float,
    max_steps: int,
    max_evaluations: int = 0,
) -> Runs:
    """Gradient descent with a constant step until the gradient's norm is small, then L-BFGS where it is not."""
    descended = train_ensemble(model, LOSS, data, starts, step=step, tolerance=tolerance, max_iterations=max_steps)
    x, y = data[0].double(), data[1]
    model, rows, evaluations = model.double(), descended.parameters.double(), np.zeros(len(starts), dtype=int)
    for member in np.flatnonzero(descended.finite & ~descended.converged) if max_evaluations else ():
        rows[member], evaluations[member] = finish(model, (x, y), rows[member], tolerance, max_evaluations)
    gradients, losses = vmap(grad_and_value(flat_loss(model)), (0, None, None), chunk_size=64)(rows, x, y)
    wrong = [float((_logits(model, row, x).argmax(dim=1) != y).double().mean()) for row in rows]
    norms, values = gradients.norm(dim=1).numpy(), losses.numpy()
    # what converged in float32 may exceed the tolerance in float64 by rounding
    counted = (norms <= 1.01 * tolerance) & (values < LEARNED * math.log(int(y.max()) + 1))
    model.float()
    return Runs(rows, values, norms, np.array(wrong), descended.iterations, evaluations, counted)


def finish(
    model: nn.Module, data: tuple[Tensor, Tensor], flat: Tensor, tolerance: float, max_evaluations: int
) -> tuple[Tensor, int]:
    """L-BFGS from ``flat`` (n,) until the gradient's norm meets the tolerance; the parameters and the evaluations made.

    Its last step may overshoot by far, and eigenvalues follow the gradient: the point returned is where, on that step,
    the norm equals the tolerance.
    """
    differentiated, theta, made = grad_and_value(flat_loss(model)), flat.clone().requires_grad_(), 0
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=1, history_size=50, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        nonlocal made
        made += 1
        theta.grad, value = differentiated(theta.detach(), *data)
        return value

    def small(point: Tensor) -> bool:
        return bool(differentiated(point, *data)[0].norm() <= tolerance)

    while made < max_evaluations:
        before = theta.detach().clone()
        optimizer.step(closure)
        if small(after := theta.detach()):
            for _ in range(20):
                middle = (before + after) / 2
                before, after = (before, middle) if small(middle) else (middle, after)
            return after, made
    return theta.detach(), made


def _logits(model: nn.Module, flat: Tensor, x: Tensor) -> Tensor:
    nn.utils.vector_to_parameters(flat, model.parameters())
    return model(x).detach()
