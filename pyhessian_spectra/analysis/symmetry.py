"""Symmetries of a network that force eigenvalues to be zero, checked on its curvature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.operators import GGNOperator, HessianOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.eigen import eigh, eigsh
from pyhessian_spectra.spectra.results import Floats


@dataclass(frozen=True, repr=False)
class SymmetryCheck(Shown):
    """How well the Hessian obeys an identity along the directions a symmetry gives.

    Parameters
    ----------
    directions : Tensor, shape (n, k)
        Unit columns.
    residuals : ndarray, shape (k,), float64
        Norm of the difference between the two sides of the identity, for each direction.
    scale : float
        Largest eigenvalue in magnitude of the Hessian, to which the residuals compare.
    """

    directions: Tensor
    residuals: Floats
    scale: float

    @property
    def worst(self) -> float:
        """Largest residual relative to the largest eigenvalue; rounding leaves a modest multiple of ``eps``."""
        largest = float(self.residuals.max(initial=0.0))
        return largest / self.scale if self.scale > 0 else largest


@dataclass(frozen=True)
class RankCheck:
    """The rank of the Gauss-Newton matrix against its bound.

    Parameters
    ----------
    bound : int
        ``N (C - 1)``, or ``n`` where that is smaller.
    rank : int
        Eigenvalues above ``n eps`` times the largest.
    residual : float
        Largest magnitude beyond the first ``bound`` eigenvalues, relative to the largest; 0 if there are none.
    """

    bound: int
    rank: int
    residual: float


def check_softmax_shift(op: HessianOperator, *, output: str) -> SymmetryCheck:
    """``H d = 0`` for the directions that add one function of the input to all logits.

    A softmax does not see what is added to all its inputs. Adding a constant to one column of the last weight, or to
    all of the last bias, is such a shift: a network whose last layer has ``h`` inputs and a bias has at least
    ``h + 1`` exactly null directions, anywhere.

    Parameters
    ----------
    op : HessianOperator
        Of a loss that depends on the logits through their softmax only.
    output : str
        Name of the last linear layer.

    Raises
    ------
    InputError
        No such layer, or its weight is not among the coordinates.
    """
    inputs = torch.arange(_shape(op, f"{output}.weight")[1])
    biased = f"{output}.bias" in op.risk.layout.shapes
    directions, parts = _rows(op, len(inputs) + biased)
    parts[f"{output}.weight"][inputs, :, inputs] = 1
    if biased:
        parts[f"{output}.bias"][-1] = 1
    return _check(op, directions, torch.zeros_like(directions))


def check_relu_rescaling(op: HessianOperator, *, incoming: str, outgoing: str) -> SymmetryCheck:
    """``H A_j w = -A_j g`` for every hidden unit ``j`` between two linear layers with a ReLU between them.

    Scaling what enters a unit by ``exp(t)`` and what leaves it by ``exp(-t)`` changes nothing; ``A_j`` is the generator
    of that: +1 on incoming weights and the bias, -1 on outgoing weights. Differentiating ``g^T A_j w = 0`` gives
    the identity: where the gradient ``g`` vanishes, ``A_j w`` is a null direction.

    Parameters
    ----------
    op : HessianOperator
    incoming, outgoing : str
        Names of the layers before and after the units.

    Raises
    ------
    InputError
        No such layers, or they do not meet in the same units.
    """
    entering, leaving = _shape(op, f"{incoming}.weight"), _shape(op, f"{outgoing}.weight")
    if leaving[1] != entering[0]:
        told = f"{incoming} has {entering[0]} units and {outgoing} takes {leaving[1]} inputs"
        raise InputError(f"{told}; name two layers that follow each other")
    units = torch.arange(entering[0])
    generators, parts = _rows(op, len(units))
    for name in (f"{incoming}.weight", f"{incoming}.bias"):
        if name in parts:
            parts[name][units, units] = 1
    parts[f"{outgoing}.weight"][units, :, units] = -1
    return _check(op, generators * op.point.flat(), -generators * op.risk.gradient(op.point))


def check_ggn_rank(op: GGNOperator, *, num_outputs: int) -> RankCheck:
    """``rank G <= N (C - 1)``: each example adds the curvature of a softmax over ``C`` outputs, of rank ``C - 1``.

    Parameters
    ----------
    op : GGNOperator
        Small enough for a dense eigendecomposition.
    num_outputs : int
        Number ``C`` of outputs.
    """
    if num_outputs < 1:
        raise InputError(f"num_outputs must be at least 1, got {num_outputs}")
    magnitudes = np.sort(np.abs(eigh(op).eigenvalues))[::-1]
    bound = min(op.n, op.risk.num_examples * (num_outputs - 1))
    largest = float(magnitudes[0])
    beyond = float(magnitudes[bound:].max(initial=0.0))
    rank = int((magnitudes > op.n * torch.finfo(op.dtype).eps * largest).sum())
    return RankCheck(bound, rank, beyond / largest if largest > 0 else beyond)


def _shape(op: HessianOperator, name: str) -> torch.Size:
    shapes = op.risk.layout.shapes
    if name not in shapes:
        raise InputError(f"{name!r} is not among the coordinates; there are {', '.join(shapes)}")
    return shapes[name]


def _rows(op: HessianOperator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Zeros (count, n), and views of them by parameter, (count, *shape)."""
    layout, rows = op.risk.layout, torch.zeros(count, op.n, dtype=op.dtype, device=op.device)
    return rows, dict(zip(layout.names, layout.unflatten(rows), strict=True))


def _check(op: HessianOperator, directions: Tensor, expected: Tensor) -> SymmetryCheck:
    """Compare ``H d`` with what is expected, relative to the norm of ``d``, for each row ``d`` of ``directions``."""
    # a unit that is switched off has no direction; 0 = 0 is then checked
    norms = directions.norm(dim=1, keepdim=True).clamp_min(torch.finfo(op.dtype).tiny)
    columns = (directions / norms).T
    residuals = ((op @ columns) - (expected / norms).T).norm(dim=0)
    top = eigsh(op, 1, which="LM", tol=1e-3, generator=torch.Generator().manual_seed(0))
    return SymmetryCheck(columns, residuals.double().cpu().numpy(), float(np.abs(top.eigenvalues[0])))
