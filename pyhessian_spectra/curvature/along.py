"""What a risk does along directions, batch by batch, so that differences of it have the errors of differences."""

from __future__ import annotations

from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk


def batch_losses(risk: EmpiricalRisk, point: Point) -> Tensor:
    """The loss of each batch of all ranks, shape (b,), float64; their mean by ``risk.sample.shares`` is the risk.

    Where that is a sum, each is divided by its share. Values may be NaN or infinite.
    """
    return risk.sample.unchecked().observed_mean(
        lambda batch: autodiff.loss(risk.objective, point, batch).to(point.dtype)[None],
        (1,),
        lambda value: value.double().clone(),  # the sum grows in the first of the terms
        1,
        over=risk.batches(point),
    )[1][:, 0]


def batch_slopes(risk: EmpiricalRisk, point: Point, directions: Tensor) -> Tensor:
    """The derivatives of each batch's loss along columns (n, d), shape (b, d), float64, as for the losses."""
    return risk.sample.observed_mean(
        lambda batch: autodiff.gradient(risk.objective, point, batch),
        (risk.n,),
        lambda gradient: gradient.double() @ directions.double(),
        directions.shape[1],
        over=risk.batches(point),
    )[1]
