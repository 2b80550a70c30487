"""The dense path: a matrix built from products, all its eigenvalues, and the eigenvectors at both edges."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.linalg.lapack
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.operator import MatrixOperator
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.rounding import Off, Rounding

# If eigenvectors of the two edges are less orthogonal than this, they belong to one cluster of eigenvalues, and only a
# full eigendecomposition separates them.
_ORTHOGONAL = 1e-10


def entries(op: Meter) -> tuple[Tensor, Meter, Off]:
    """The matrix (n, n) in float64 on the CPU, the operator whose products gave it, and how far these are off.

    That operator is the float64 reference of ``op`` if there is one whose products do not fail, else ``op`` itself.
    """
    used = (op.reference() if op.dtype != torch.float64 else None) or op
    try:
        dense = used.to_dense()
    except OutOfMemoryError:
        raise
    except InputError:
        if used is op:
            raise
        used = op
        dense = op.to_dense()
    return dense.double().cpu(), used, Rounding(used).everywhere(2)


def build(op: Meter) -> tuple[MatrixOperator, Meter, Off]:
    """As :func:`entries`, with the matrix symmetrised, as an operator."""
    matrix, used, off = entries(op)
    return MatrixOperator(matrix.add_(matrix.T.clone()).div_(2)), used, off


def eigenvalues_and_edges(matrix: Floats, k: int) -> tuple[Floats, Floats, Floats]:
    """All eigenvalues (n,), ascending, and the eigenvectors (n, k) of the ``k`` smallest and of the ``k`` largest.

    One reduction to tridiagonal form, most of the cost, serves both edges; LAPACK's driver for selected eigenvectors
    would repeat it for each edge. The two edges share eigenvectors if ``2 k > n``.
    """
    n = len(matrix)
    if 2 * k < n:
        values, lowest, highest = _by_tridiagonal(matrix, k)
        if np.abs(lowest.T @ highest).max(initial=0.0) < _ORTHOGONAL:
            return values, lowest, highest
    values, vectors = scipy.linalg.eigh(matrix)
    return values, vectors[:, :k], vectors[:, n - k :]


def _by_tridiagonal(matrix: Floats, k: int) -> tuple[Floats, Floats, Floats]:
    n, lapack = len(matrix), scipy.linalg.lapack
    reduced, diagonal, off, reflectors, _ = lapack.dsytrd(
        np.asfortranarray(matrix), lower=1, lwork=int(lapack.dsytrd_lwork(n, lower=1)[0])
    )
    values = scipy.linalg.eigvalsh_tridiagonal(diagonal, off)
    both = [
        scipy.linalg.eigh_tridiagonal(diagonal, off, select="i", select_range=part)[1]
        for part in ((0, k - 1), (n - k, n - 1))
    ]
    vectors = np.asfortranarray(np.hstack(both))
    # the reduction's orthogonal matrix leaves the first coordinate alone and acts on the others as the Q of a QR would
    rest, _, _ = lapack.dormqr("L", "N", reduced[1:, : n - 1], reflectors, vectors[1:], lwork=128 * k)
    vectors[1:] = rest
    return values, vectors[:, :k], vectors[:, k:]
