"""The objective of an ensemble: one loss as a function of stacked points."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.batches import Batches
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.parameters import trainable_layout
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.errors import InputError


def flat_loss(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], data: tuple[Tensor, Any], parameters: Tensor
) -> Callable[[Tensor], Tensor]:
    """The loss as a function of one flat parameter vector (n,), in the dtype of ``parameters``."""
    layout, _, _ = trainable_layout(model)
    if parameters.dim() != 2 or parameters.shape[1] != layout.n or not len(parameters):
        raise InputError(
            f"parameters must have shape (members, {layout.n}) with at least one member, one row of flat parameters "
            f"each, got {tuple(parameters.shape)}"
        )
    if parameters.dtype not in (torch.float32, torch.float64):
        raise InputError(f"parameters must be float32 or float64, got {parameters.dtype}; convert them with .double()")
    if not (isinstance(data, tuple) and len(data) == 2):
        raise InputError("data must be one pair (x, y) holding all training examples; concatenate the batches")
    batch = next(
        Batches([data], unpack=None, weight=lambda _: 1.0, num_terms=len).read(parameters.dtype, parameters.device)
    )[1]
    objective = Objective(copy.deepcopy(model).to(parameters).requires_grad_(False), loss_fn)

    def loss(flat: Tensor) -> Tensor:
        coordinates = layout.unflatten(flat)
        point = Point(layout, coordinates, dict(zip(layout.names, coordinates, strict=True)))
        return objective.run(point, batch, lambda: objective.loss(objective.outputs(batch), batch))

    return loss
