"""Eigenpairs: dense, and by ARPACK through scipy's LinearOperator."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from scipy.sparse.linalg import ArpackNoConvergence

from pyhessian_spectra.errors import ConvergenceError, InputError
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Eigenpairs, Floats
from pyhessian_spectra.spectra.slq import fresh_generator

WHICH = ("LA", "SA", "BE", "LM")

# A product in floating point is off by a modest multiple of eps times the norm; 100 covers the sums of
# the networks tested (the measured factor is 2 to 30) without calling a wrong pair converged.
_ROUNDING = 100


def eigh(op: LinearOperator) -> Eigenpairs:
    """All eigenpairs, from the dense matrix in float64.

    Residuals are those of the dense matrix, so they hold the error of the eigensolver and of the matrix's
    asymmetry; ``n`` products and ``8 n^2`` bytes for each of the matrix and the eigenvectors.
    """
    matrix = op.to_dense().double().cpu().numpy()
    eigenvalues, eigenvectors = scipy.linalg.eigh((matrix + matrix.T) / 2, driver="evr")
    residuals = np.linalg.norm(matrix @ eigenvectors - eigenvectors * eigenvalues, axis=0)
    return _pairs(op, eigenvalues, eigenvectors, residuals, tol=0.0, num_matvecs=op.shape[0])


def eigsh(
    op: LinearOperator,
    k: int,
    *,
    which: str = "LA",
    tol: float = 0.0,
    max_products: int | None = None,
    v0: np.ndarray | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """``k`` eigenpairs at the edges of the spectrum, by ARPACK's implicitly restarted Lanczos method.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    k : int
        Number of pairs, 1 <= k < n.
    which : {"LA", "SA", "BE", "LM"}
        Largest or smallest algebraic, both ends (the odd one at the top), or largest in magnitude.
    tol : float
        Relative accuracy ``||A v - theta v|| <= tol |theta|`` asked of ARPACK; what the dtype of the
        products allows is asked where that is more.
    max_products : int, optional
        Give up after about this many products, by default ``max(20 k, 10 n, 1000)``.
    v0 : ndarray, shape (n,), optional
        Start vector, for example a sum of approximate eigenvectors; default random.
    generator : torch.Generator, optional
        Source of the start vector; None draws a fresh random seed.

    Returns
    -------
    Eigenpairs
        Ascending, residuals recomputed with ``k`` fresh products. ``converged`` tells where the residual is
        within ``max(tol, 100 eps)`` of the largest eigenvalue in magnitude.

    Raises
    ------
    InputError
        ``k`` or ``which`` out of range.
    ConvergenceError
        Fewer than ``k`` pairs converged; ``partial`` carries those that did.
    """
    n = op.shape[0]
    if which not in WHICH:
        raise InputError(f"which must be one of {', '.join(WHICH)}, got {which!r}")
    if not 1 <= k < n:
        raise InputError(f"k must be at least 1 and below n = {n}, got {k}; for all {n} eigenpairs use eigh")
    if v0 is None:
        v0 = torch.randn(n, generator=generator or fresh_generator(), dtype=torch.float64).numpy()
    eps = float(torch.finfo(op.dtype).eps)
    before = op.num_matvecs
    ncv = min(n, max(2 * k + 1, 20))
    restarts = (max_products or max(20 * k, 10 * n, 1000)) // max(1, ncv - k)
    message = ""
    try:
        eigenvalues, eigenvectors = scipy.sparse.linalg.eigsh(
            # float64 around the products: ARPACK's single precision loses digits of its own
            op.to_scipy(np.float64), k, which=which, tol=max(tol, eps), v0=v0, ncv=ncv, maxiter=max(1, restarts)
        )
    except ArpackNoConvergence as error:
        eigenvalues, eigenvectors = error.eigenvalues, error.eigenvectors
        message = (
            f"ARPACK found {len(eigenvalues)} of {k} eigenpairs ({which}) in {op.num_matvecs - before} products; "
            "raise max_products, or ask for fewer pairs"
        )
    order = np.argsort(eigenvalues)
    eigenvalues, eigenvectors = eigenvalues[order], eigenvectors[:, order]
    residuals = fresh_residuals(op, eigenvalues, eigenvectors)
    pairs = _pairs(op, eigenvalues, eigenvectors, residuals, tol=tol, num_matvecs=op.num_matvecs - before)
    if message:
        raise ConvergenceError(message, pairs)
    return pairs


def fresh_residuals(op: LinearOperator, eigenvalues: Floats, eigenvectors: np.ndarray) -> Floats:
    """``||A v - theta v||`` of unit columns (n, k), by ``k`` new products, reduced in float64."""
    residuals = np.empty(len(eigenvalues))
    for i, theta in enumerate(eigenvalues):
        v = torch.from_numpy(np.ascontiguousarray(eigenvectors[:, i])).to(op.device)
        product = op @ v.to(op.dtype)
        residuals[i] = float(torch.linalg.vector_norm(product.double() - theta * v.double()))
    return residuals


def _pairs(
    op: LinearOperator,
    eigenvalues: Floats,
    eigenvectors: np.ndarray,
    residuals: Floats,
    *,
    tol: float,
    num_matvecs: int,
) -> Eigenpairs:
    scale = float(np.abs(eigenvalues).max(initial=0.0))
    bound = max(tol, _ROUNDING * float(torch.finfo(op.dtype).eps)) * scale
    return Eigenpairs(eigenvalues, residuals, residuals <= bound, eigenvectors, num_matvecs)
