"""The dense path: a matrix built from products, all its eigenvalues, and the eigenvectors at both edges."""

from __future__ import annotations

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

_ROWS = 256  # that are averaged with their columns at a time

# Block steps of a pass at an edge before it starts again from what it found, passes, and the residual asked of vectors,
# relative to the norm; residuals of LAPACK's are as large.
_STEPS, _PASSES, _RESIDUAL = 12, 8, 1e-14


def entries(op: Meter) -> tuple[Tensor, Meter, Off]:
    """The matrix (n, n) in float64 on the CPU, the operator whose products gave it, and how far these are off.

    That operator is the float64 reference of ``op`` if there is one whose products do not fail, else ``op`` itself.
    """
    reference = op.reference()
    used = op if reference is None or op.dtype == reference.dtype else reference
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
    for start in range(0, len(matrix), _ROWS):  # the whole transpose takes its memory
        stop = start + _ROWS
        mean = (matrix[start:stop, start:] + matrix[start:, start:stop].T) / 2
        matrix[start:stop, start:], matrix[start:, start:stop] = mean, mean.T
    return MatrixOperator(matrix), used, off


def eigenvalues_and_edges(matrix: Tensor, k: int) -> tuple[Floats, Floats, Floats]:
    """All eigenvalues (n,), ascending, and the eigenvectors (n, k) of the ``k`` smallest and of the ``k`` largest.

    The vectors of an edge take one Cholesky factorisation; where that does not find them, or edges have an eigenvalue
    in common, all vectors are computed. The two edges share eigenvectors if ``2 k > n``.
    """
    n = len(matrix)
    if 2 * k < n:
        values = torch.linalg.eigvalsh(matrix)
        lowest, highest = _edge_vectors(matrix, values, k, 1), _edge_vectors(matrix, -values.flip(0), k, -1)
        if lowest is not None and highest is not None and (lowest.T @ highest).abs().max() < _ORTHOGONAL:
            return values.numpy(), lowest.numpy(), highest.flip(1).numpy()
    values, vectors = (found.numpy() for found in torch.linalg.eigh(matrix))
    return values, vectors[:, :k], vectors[:, n - k :]


def top_vectors(matrix: Tensor, k: int, values: Floats) -> Floats:
    """The eigenvectors (n, k) of the ``k`` largest eigenvalues, ascending, given all of these."""
    n = len(matrix)
    if 2 * k < n:
        highest = _edge_vectors(matrix, -torch.from_numpy(values).flip(0), k, -1)
        if highest is not None:
            return highest.flip(1).numpy()
    return torch.linalg.eigh(matrix)[1][:, n - k :].numpy()


def _edge_vectors(matrix: Tensor, values: Tensor, k: int, sign: int) -> Tensor | None:
    """Eigenvectors (n, k) of the ``k`` smallest ``values`` of ``sign`` times the matrix; None if they are not found.

    Restarted block Lanczos with the inverse, shifted to just below the smallest eigenvalue. Blocks are twice as wide as
    the edge, so that copies of multiple eigenvalues are seen.
    """
    n, width = len(matrix), min(2 * k, len(matrix))
    norm = float(values.abs().max())
    # next to the edge as its own eigenvalues measure it, and far enough that rounding leaves the difference definite
    margin = max(1e-2 * float(values[width - 1] - values[0]), 10 * n * torch.finfo(values.dtype).eps * norm)
    factor = (matrix * sign).mT  # whose columns are contiguous, as LAPACK has them
    factor.diagonal().add_(margin - values[0])
    failed = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if failed:
        return None
    block = torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    for _ in range(_PASSES):
        basis = images = block[:, :0]
        while basis.shape[1] < min(n, _STEPS * width):
            half = torch.linalg.solve_triangular(factor, block, upper=False)
            block = torch.linalg.solve_triangular(factor.mT, half, upper=True)
            for _ in range(3):  # twice is enough for a block that adds something; where it adds rounding alone, thrice
                block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
            block = block[:, : n - basis.shape[1]]
            basis, images = torch.cat([basis, block], dim=1), torch.cat([images, sign * (matrix @ block)], dim=1)
            theta, rotation = torch.linalg.eigh(basis.T @ images)
            ritz, coefficients = basis @ rotation[:, :width], rotation[:, :k]
            residuals = torch.linalg.vector_norm(images @ coefficients - theta[:k] * ritz[:, :k], dim=0)
            if max(residuals.max(), (theta[:k] - values[:k]).abs().max()) <= _RESIDUAL * norm:
                return ritz[:, :k]
        block = ritz
    return None
