"""How much of the gradient lies in the space of the largest eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pyhessian_spectra.analysis.block import BlockAnalysis
from pyhessian_spectra.analysis.eigenspaces import inner_products, space_error
from pyhessian_spectra.analysis.sampling import jackknife
from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.basis import free_bytes
from pyhessian_spectra.spectra.results import Floats

# Gradients of all batches are held at once if they fit the memory budget, or this share of the free memory.
_SHARE = 0.25


@dataclass(frozen=True)
class GradientShares:
    """The gradient beside the largest eigenvectors.

    Parameters
    ----------
    norm : float
        ``||g||``.
    shares : ndarray, shape (k,)
        ``(v_i^T g)^2 / ||g||^2``, in descending order of the eigenvalues.
    errors : ndarray, shape (k,)
        How far the sum of the first ``i + 1`` shares may be off, by the angle of their space to the true one; 1 where
        that is not bounded.
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


def gradient_shares(risk: EmpiricalRisk, block: BlockAnalysis) -> GradientShares | None:
    """The shares of the risk's gradient in the largest eigenvectors of ``block``, at the model's current parameters.

    It takes one gradient of each batch. None if the gradient is zero or no eigenvectors were kept.
    """
    vectors = block.largest.eigenvectors
    if vectors is None or not vectors.shape[1]:
        return None
    batches = risk.num_batches
    room = _SHARE * free_bytes(torch.device("cpu")) if risk.memory_budget is None else risk.memory_budget
    held = not risk.sample.processes and batches > 1 and batches * risk.n * risk.dtype.itemsize <= room
    if held:
        shares_of, rows = zip(*((weight, g.cpu()) for weight, g in risk.batch_gradients()), strict=True)
        weights, gradients = np.array(shares_of), torch.stack(rows)
    else:
        weights, gradients = np.ones(1), risk.gradient().cpu()[None]
    columns = gradients.numpy().T
    along, gram = inner_products(columns, vectors[:, ::-1]), inner_products(columns, columns)

    def cumulative(w: Floats) -> Floats:
        squared = float(w @ gram @ w)
        return np.cumsum((w @ along) ** 2) / (squared or 1.0)

    norm = max(float(weights @ gram @ weights), 0.0) ** 0.5
    if not norm:
        return None
    sums = cumulative(weights)
    errors = np.array([space_error(block, k) for k in range(1, len(sums) + 1)])
    return GradientShares(
        norm, np.diff(sums, prepend=0.0), errors, jackknife(weights, cumulative) if len(weights) > 1 else None
    )
