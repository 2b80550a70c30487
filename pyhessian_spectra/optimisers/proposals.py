"""What a step is to be: its direction, and what its quadratic model says of it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from pyhessian_spectra.optimisers.records import SolveRecord
from pyhessian_spectra.spectra.cg import CGResult
from pyhessian_spectra.spectra.operator import LinearOperator


@dataclass(frozen=True)
class Proposal:
    """A step: its direction ``d`` (n,), dampings, how it was found, and what its quadratic model is made of.

    That is ``g^T s`` and ``s^T A s`` for the step ``s``, which is ``lr d``, without damping.
    """

    direction: Tensor
    slope: float
    curvature: float
    damping: tuple[float, ...]
    solves: tuple[SolveRecord, ...]


def of_cg(found: CGResult, op: LinearOperator, g: Tensor, damping: float) -> tuple[Tensor, float]:
    """A direction ``d`` that solves ``(A + damping) d = -g``, and ``d^T A d``, which the solver's model has seen.

    It is ``-g`` if the first direction that conjugate gradients took has negative curvature.
    """
    d, space = found.x, op.space
    if found.status == "negative curvature" and not found.num_iterations:
        return -g, space.inner(g, op @ g)
    return d, 2 * (float(found.model[-1]) - space.inner(g, d)) - damping * space.inner(d, d)


def along_step(slope: float, curvature: float, lrs: Collection[float]) -> tuple[float, float]:
    """``g^T s`` and ``s^T A s`` from those of the direction; NaN if its parameters have steps of different lengths."""
    (lr,) = lrs if len(lrs) == 1 else (math.nan,)
    return lr * slope, lr * lr * curvature
