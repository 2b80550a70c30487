"""The losses of single examples, from the outputs of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.outputs import taken_apart


def example_losses(
    objective: Objective, outputs: Any, batch: Batch, num_terms: Callable[[Any], float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (p,) of the examples that have terms, their shares in all terms, and which examples these are (N,)."""
    terms = torch.tensor([num_terms(target[None]) for target in batch.targets], dtype=torch.float64)
    counted = terms > 0
    tensors, rebuild = taken_apart(outputs)
    one = torch.func.vmap(lambda y, *z: objective.loss_fn(rebuild([t[None] for t in z]), y[None]))
    with objective.around_loss():
        losses = one(batch.targets[counted], *(t[counted] for t in tensors))
    return losses, (terms[counted] / terms.sum()).to(losses), counted
