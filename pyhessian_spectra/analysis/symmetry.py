"""Symmetries of a network that force eigenvalues to be zero, checked on its curvature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.operators import GGNOperator, HessianOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.eigen import eigh, eigsh
from pyhessian_spectra.spectra.results import Floats


@dataclass(frozen=True)
class SymmetryCheck:
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
    weight = _tensor(op, f"{output}.weight")
    columns = []
    for unit in range(weight.shape[1]):
        part = torch.zeros_like(weight)
        part[:, unit] = 1
        columns.append(_embed(op, {f"{output}.weight": part}))
    if f"{output}.bias" in op.risk.layout.slices:
        columns.append(_embed(op, {f"{output}.bias": torch.ones_like(_tensor(op, f"{output}.bias"))}))
    directions = torch.stack(columns, dim=1)
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
    entering, leaving = _tensor(op, f"{incoming}.weight"), _tensor(op, f"{outgoing}.weight")
    if leaving.shape[1] != entering.shape[0]:
        raise InputError(
            f"{incoming} has {entering.shape[0]} units and {outgoing} takes {leaving.shape[1]} inputs; name two layers "
            "that follow each other"
        )
    gradient = op.risk.gradient()
    biased = f"{incoming}.bias" in op.risk.layout.slices
    columns, expected = [], []
    for unit in range(len(entering)):
        signs_in, signs_out = torch.zeros_like(entering), torch.zeros_like(leaving)
        signs_in[unit], signs_out[:, unit] = 1, -1
        signs = {f"{incoming}.weight": signs_in, f"{outgoing}.weight": signs_out}
        if biased:
            signs[f"{incoming}.bias"] = torch.nn.functional.one_hot(
                torch.tensor(unit, device=op.device), len(entering)
            ).to(op.dtype)
        generator = _embed(op, signs)
        columns.append(generator * _parameters(op))
        expected.append(-generator * gradient)
    return _check(op, torch.stack(columns, dim=1), torch.stack(expected, dim=1))


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
    n = op.n
    magnitudes = np.sort(np.abs(eigh(op).eigenvalues))[::-1]
    bound = min(n, op.risk.num_examples * (num_outputs - 1))
    largest = float(magnitudes[0])
    beyond = float(magnitudes[bound:].max(initial=0.0))
    rank = int((magnitudes > n * torch.finfo(op.dtype).eps * largest).sum())
    return RankCheck(bound, rank, beyond / largest if largest > 0 else beyond)


def _check(op: HessianOperator, directions: Tensor, expected: Tensor) -> SymmetryCheck:
    """Residuals of ``H d = expected`` for each column, both divided by the norm of ``d``."""
    # a unit that is switched off has no direction; 0 = 0 is then checked
    norms = directions.norm(dim=0).clamp_min(torch.finfo(op.dtype).tiny)
    residuals = ((op @ (directions / norms)) - expected / norms).norm(dim=0)
    top = eigsh(op, 1, which="LM", tol=1e-3, generator=torch.Generator().manual_seed(0))
    scale = float(np.abs(top.eigenvalues[0]))
    return SymmetryCheck(directions / norms, residuals.double().cpu().numpy(), scale)


def _tensor(op: HessianOperator, name: str) -> Tensor:
    if name not in op.risk.layout.slices:
        raise InputError(f"{name!r} is not among the coordinates; there are {', '.join(op.risk.layout.names)}")
    return op.risk.model.get_parameter(name).detach()


def _parameters(op: HessianOperator) -> Tensor:
    return op.risk.layout.flatten([_tensor(op, name) for name in op.risk.layout.names])


def _embed(op: HessianOperator, parts: dict[str, Tensor]) -> Tensor:
    """The flat vector (n,) with these parameters and zeros elsewhere."""
    flat = torch.zeros(op.n, dtype=op.dtype, device=op.device)
    for name, part in parts.items():
        flat[op.risk.layout.slices[name]] = part.reshape(-1)
    return flat
