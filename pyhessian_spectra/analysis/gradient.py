"""How much of the gradient lies in the space of the largest eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.block import BlockAnalysis
from pyhessian_spectra.analysis.eigenspaces import inner_products, space_error
from pyhessian_spectra.analysis.sampling import jackknife
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator, Point, RelativeHessianOperator
from pyhessian_spectra.curvature.risk_operator import leaves_of
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import LinearOperator
from pyhessian_spectra.spectra.basis import free_bytes
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.rounding import SAFETY

# Gradients of all batches are held at once if they fit the memory budget, or this share of the free memory.
_SHARE = 0.25


@dataclass(frozen=True, repr=False)
class GradientShares(Shown):
    """The gradient beside the largest eigenvectors.

    Parameters
    ----------
    norm : float
        ``||g||``.
    shares : ndarray, shape (k,)
        ``(v_i^T g)^2 / ||g||^2``, in descending order of the eigenvalues.
    errors : ndarray, shape (k,)
        How far the sum of the first ``i + 1`` shares may be off, by the angles of their space and of the gradient to
        the true ones; 1 where these are not bounded.
    data_stderr : ndarray, shape (k,), or None
        Standard errors of these sums due to the data being a sample, with the eigenvectors as they are.
    """

    norm: float
    shares: Floats
    errors: Floats
    data_stderr: Floats | None = None

    def in_top(self, k: int) -> tuple[float, float]:
        """``||V V^T g||^2 / ||g||^2`` of the ``k`` largest eigenvalues (Gur-Ari, Roberts and Dyer 2018), and its error.

        Raises InputError unless ``1 <= k <= len(shares)``.
        """
        if not 1 <= k <= len(self.shares):
            raise InputError(f"k must be between 1 and the {len(self.shares)} eigenvectors, got {k}")
        return float(self.shares[:k].sum()), float(self.errors[k - 1])


def gradient_shares(
    risk: EmpiricalRisk,
    block: BlockAnalysis,
    *,
    op: LinearOperator | None = None,
) -> GradientShares | None:
    """The shares of the risk's gradient in the largest eigenvectors of ``block``, at the model's current parameters.

    The gradient is in the coordinates of ``op``, of which ``block`` is the analysis: by default of the parameters.
    It takes two gradients of each batch, in float64: the second at parameters that differ by their rounding, which
    measures how far the first is off. Of a model that does not compute in float64 that is not known, and errors are 1.
    None if the gradient is zero or no eigenvectors were kept.
    """
    vectors = block.largest.eigenvectors
    if vectors is None or not vectors.shape[1]:
        return None
    leaves = [] if op is None else leaves_of(op)
    scaled = [leaf for leaf in leaves if isinstance(leaf, RelativeHessianOperator)]
    risk, point, beside = in_float64(HessianOperator(risk))
    batches = risk.num_batches
    room = _SHARE * free_bytes(torch.device("cpu")) if risk.memory_budget is None else risk.memory_budget
    held = not risk.sample.processes and batches > 1 and batches * risk.n * risk.dtype.itemsize <= room
    if held:
        scale = _scale(scaled, point)
        shares_of, rows = zip(*((weight, (scale * g).cpu()) for weight, g in risk.batch_gradients(point)), strict=True)
        weights, gradients = np.array(shares_of), torch.stack(rows).numpy()
    else:
        weights, gradients = np.ones(1), _gradient(risk, scaled, point)[None]
    # added before it is multiplied: the batches' gradients may be far longer than their mean
    whole, top = weights @ gradients, vectors[:, ::-1]
    norm = float(np.linalg.norm(whole))
    if not norm:
        return None
    off = 1.0 if beside is None else SAFETY * float(np.linalg.norm(_gradient(risk, scaled, beside) - whole)) / norm
    shares = inner_products(whole[:, None] / norm, top)[0] ** 2
    errors = np.array([min(1.0, space_error(block, k) + off) for k in range(1, len(shares) + 1)])
    if len(weights) == 1:
        return GradientShares(norm, shares, errors)
    columns = gradients.T
    along, gram = inner_products(columns, top), inner_products(columns, columns)

    def cumulative(w: Floats) -> Floats:
        return np.cumsum((w @ along) ** 2) / (float(w @ gram @ w) or 1.0)

    return GradientShares(norm, shares, errors, jackknife(weights, cumulative))


def in_float64(hessian: HessianOperator) -> tuple[EmpiricalRisk, Point, Point | None]:
    """The risk and the point in float64, and a point that differs by its rounding: gradients there tell how far off.

    Of a model that does not compute in float64 these are its own, and there is no other point.
    """
    risk, point, precise = hessian.risk, hessian.point, torch.float64
    if not hessian.computes_in(precise):
        return risk, point, None
    risk, point = risk.replace(dtype=precise), point.cast(risk.model, precise)
    other = HessianOperator(risk, point=point).reference()
    return risk, point, None if other is None else other.point


def _scale(scaled: Sequence[RelativeHessianOperator], point: Point) -> Tensor | float:
    """What the gradient is multiplied by: by nothing where the coordinates are the parameters."""
    return scaled[0].scales(point) if scaled else 1.0


def _gradient(risk: EmpiricalRisk, scaled: Sequence[RelativeHessianOperator], point: Point) -> Floats:
    return (_scale(scaled, point) * risk.gradient(point)).cpu().numpy()
