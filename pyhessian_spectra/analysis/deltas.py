"""Papyan's extended gradients of single examples, as combinations of the rows of a Gram matrix, and their levels.

For softmax cross-entropy, ``delta_ic' = sqrt(p_ic') J_i^T (e_c' - p_i)`` is, up to its scale, the gradient that example
``i`` would have if its class were ``c'``; ``G = sum_i w_i sum_c' delta_ic' delta_ic'^T``, with ``w_i`` the example's
share in the loss (Papyan 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pyhessian_spectra.curvature.examples import Examples
from pyhessian_spectra.curvature.gram import GGNGram
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats

#: The four levels, ``G0`` to ``G3``, see :class:`ClassStructure`.
LEVELS = ("own", "between", "cross", "within")

Weighting = Literal["examples", "probabilities"]

_TINY = np.finfo(np.float64).tiny

# Second derivatives of a loss may be off by so many times C eps: sums over the classes, and a softmax rounded twice.
_ROUNDING = 100


@dataclass(frozen=True)
class Deltas:
    """Extended gradients of the examples that have one, in the eigenbasis of ``G``.

    Parameters
    ----------
    vectors : ndarray, shape (N, C, m), float64
        ``sqrt(w_i) delta_ic'``: their outer products add up to ``diag(eigenvalues)``.
    eigenvalues : ndarray, shape (m,), float64
        Those of ``K``, ascending.
    labels : ndarray, shape (N,), int64
        The examples' own classes.
    weights : ndarray, shape (N,), float64
        ``w_i``, all positive.
    probabilities : ndarray, shape (N, C), float64
    spread : float
        Bound on the spectral norm of what is wrong with all ``sqrt(w_i) delta_ic'`` together, as columns.
    trace_spread : float
        The same in the Frobenius norm.
    """

    vectors: Floats
    eigenvalues: Floats
    labels: NDArray[np.int64]
    weights: Floats
    probabilities: Floats
    spread: float
    trace_spread: float


def extended_gradients(examples: Examples, gram: GGNGram) -> Deltas:
    """The extended gradients; raises InputError where the loss is not softmax cross-entropy over classes."""
    labels = examples.labels
    if labels is None:
        raise InputError(
            "class structure needs one tensor of logits (N, C) as the outputs and one integer class as the target of "
            "each example; regressions, soft labels and several targets in an example have none"
        )
    weights = examples.terms if gram.weights is None else gram.weights
    logits = np.concatenate(examples.outputs)
    factors = np.concatenate(gram.factors)
    p = _softmax(logits)
    roots = np.sqrt(weights)[:, None, None] * np.sqrt(p)[:, :, None] * (np.eye(p.shape[1]) - p[:, None, :])
    tolerance = _ROUNDING * p.shape[1] * torch.finfo(gram.point.dtype).eps
    values, u = np.linalg.eigh(gram.matrix)
    values = values.clip(0.0)
    coordinates = u * np.sqrt(values)
    counted = np.flatnonzero(weights > 0)
    vectors, missed = np.zeros((len(counted), p.shape[1], len(values))), 0.0
    for place, i in enumerate(counted):
        rows = np.flatnonzero(gram.examples == i)
        _check(factors[rows], roots[i], weights[i], tolerance)
        isometry, residue = _match(factors[rows], roots[i])
        vectors[place] = isometry @ coordinates[rows]
        missed += float(np.sum((residue @ coordinates[rows]) ** 2))
    # what the factors leave out adds up to a matrix of norm ``rounding`` at most; rows are off by less than its root
    off, trace_off = gram.rounding**0.5, gram.trace().rounding ** 0.5
    return Deltas(
        vectors,
        values,
        labels[counted],
        weights[counted],
        p[counted],
        off + missed**0.5,
        trace_off + missed**0.5,
    )


def levels_of(deltas: Deltas, weighting: Weighting) -> dict[str, Floats]:
    """Columns (k, m) whose outer products add up to each level, in the eigenbasis of ``G``.

    Squares are those of the mean and of the deviations from it, twice: over a class' examples, and over its ``C - 1``
    other classes.
    """
    own, between, cross, within = [], [], [], []
    for c in np.unique(deltas.labels):
        roots, rest, sums, shares = _of_class(deltas, weighting, c)
        # a class that nothing resembles to the last digit has no mean, and no part in any
        means = np.divide(sums, shares[:, None], out=np.zeros_like(sums), where=shares[:, None] > 0)
        between.append(_mean(sums, shares))
        cross.append(np.sqrt(shares)[:, None] * (means - between[-1] / max(float(shares.sum()), _TINY) ** 0.5))
        within.append((rest - roots[:, :, None] * means).reshape(-1, means.shape[1]))
        own.append(deltas.vectors[deltas.labels == c, c])
    parts = own, between, cross, within
    return {name: np.concatenate(part) for name, part in zip(LEVELS, parts, strict=True)}


def class_means(deltas: Deltas, weighting: Weighting) -> Floats:
    """The columns (K, m) of the level ``between`` alone."""
    found = (_of_class(deltas, weighting, c) for c in np.unique(deltas.labels))
    return np.concatenate([_mean(sums, shares) for _, _, sums, shares in found])


def _of_class(deltas: Deltas, weighting: Weighting, c: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Roots of the weights (N_c, C - 1) of a class' other classes; their columns, weighted sums and shares."""
    mine = deltas.labels == c
    p = np.delete(deltas.probabilities[mine], c, axis=1)
    weights = deltas.weights[mine, None] * (p if weighting == "probabilities" else np.ones_like(p))
    rest, roots = np.delete(deltas.vectors[mine], c, axis=1), np.sqrt(weights)
    return roots, rest, np.einsum("ij,ijm->jm", roots, rest), weights.sum(axis=0)


def _mean(sums: Floats, shares: Floats) -> Floats:
    """The class mean times the root of the class' share (1, m)."""
    return sums.sum(axis=0, keepdims=True) / max(float(shares.sum()), _TINY) ** 0.5


def _check(factors: Floats, root: Floats, weight: float, tolerance: float) -> None:
    """Raise InputError unless ``S^T S = w (diag p - p p^T)``, which only softmax cross-entropy has."""
    off = float(np.abs(factors.T @ factors - root.T @ root).max()) / weight
    if not off <= tolerance:
        raise InputError(
            "the loss' second derivative in the outputs is not that of softmax cross-entropy, diag(p) - p p^T times "
            f"the example's weight, but off by {off:.1e}; class structure is defined for this loss of logits only "
            "(not of probabilities, nor with class weights and label smoothing at once)"
        )


def _match(factors: Floats, root: Floats) -> tuple[Floats, Floats]:
    """The isometry (C, r) that takes an example's factors to ``root`` (C, C), and by how much ``root`` misses it.

    An isometry, even where factors are rounded, so that the extended gradients add up to the Gauss-Newton matrix.
    """
    found = root @ np.linalg.pinv(factors)
    u, _, vt = np.linalg.svd(found, full_matrices=False)
    return u @ vt, found - u @ vt


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
