"""Eigenpairs: dense, and by ARPACK through scipy's LinearOperator."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence

from pyhessian_spectra.errors import ConvergenceError, InputError
from pyhessian_spectra.spectra.lanczos import Tridiagonal, fresh_generator, lanczos, random_vector
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Eigenpairs, Floats

WHICH = ("LA", "SA", "BE", "LM")

# A product in floating point is off by a modest multiple of eps times the norm; 100 covers the sums of
# the networks tested (the measured factor is 2 to 30) without calling a wrong pair converged.
ROUNDING = 100


def eigh(op: LinearOperator) -> Eigenpairs:
    """All eigenpairs, from the dense matrix in float64.

    Residuals are those of the dense matrix, so they hold the error of the eigensolver and of the matrix's
    asymmetry; ``n`` products and ``8 n^2`` bytes for each of the matrix and the eigenvectors.
    """
    require_operator(op)
    matrix = op.to_dense().double().cpu().numpy()
    eigenvalues, eigenvectors = scipy.linalg.eigh((matrix + matrix.T) / 2, driver="evr")
    residuals = np.linalg.norm(matrix @ eigenvectors - eigenvectors * eigenvalues, axis=0)
    norm = float(np.abs(eigenvalues).max())
    return _pairs(op, eigenvalues, eigenvectors, residuals, norm=norm, tol=0.0, spent=op.shape[0])


def eigsh(
    op: LinearOperator,
    k: int,
    *,
    which: str = "LA",
    tol: float = 0.0,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """``k`` eigenpairs at the edges of the spectrum, by ARPACK's implicitly restarted Lanczos method.

    ARPACK runs on ``(A - c) / s``, with the middle ``c`` and half the width ``s`` of the spectrum from a short Lanczos
    run that also starts it: its tolerance is relative to each eigenvalue, which near zero cannot be met, and its
    thresholds are absolute. Further short runs in the complement of what was found look for copies of multiple
    eigenvalues, which a single Krylov space cannot see, and add them.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    k : int
        Number of pairs, 1 <= k < n.
    which : {"LA", "SA", "BE", "LM"}
        Largest or smallest algebraic, both ends (the odd one at the top), or largest in magnitude.
    tol : float
        Accuracy ``||A v - theta v||`` asked for, relative to half the width of the spectrum (``"LM"``: to its largest
        magnitude); what the dtype of the products allows is asked where that is more.
    max_products : int, optional
        Give up after about this many products, by default ``max(20 k, 10 n, 1000)``.
    generator : torch.Generator, optional
        Source of the start vectors; None draws a fresh random seed.

    Returns
    -------
    Eigenpairs
        Ascending, residuals recomputed with ``k`` fresh products. ``converged`` tells where the residual is
        within ``max(tol, 100 eps)`` times the operator's norm.

    Raises
    ------
    InputError
        ``k`` or ``which`` out of range.
    ConvergenceError
        Fewer than ``k`` pairs converged; ``partial`` carries those that did.
    """
    require_operator(op)
    n = op.shape[0]
    if which not in WHICH:
        raise InputError(f"which must be one of {', '.join(WHICH)}, got {which!r}")
    if not 1 <= k < n:
        raise InputError(f"k must be at least 1 and below n = {n}, got {k}; for all {n} eigenpairs use eigh")
    before = op.num_matvecs
    budget = before + (max_products or max(20 * k, 10 * n, 1000))
    generator = generator or fresh_generator()
    tol = max(tol, float(torch.finfo(op.dtype).eps))

    scout = lanczos(op, random_vector(n, generator), max(2 * k + 1, 20))
    ritz, _ = scout.eigh()
    centre = 0.0 if which == "LM" else (ritz[0] + ritz[-1]) / 2
    scale = np.abs(ritz - centre).max()
    values, vectors = np.empty(0), np.empty((n, 0))
    if scale > tol * np.abs(ritz).max():  # else a multiple of the identity, as far as one vector can see
        values, vectors = _arpack(op, k, which, centre, scale, scout, tol, budget)
    values, vectors = add_missing_copies(op, values, vectors, k, which, tol * scale, budget, generator)

    residuals, norm = fresh_residuals(op, values, vectors), np.abs(ritz).max()
    pairs = _pairs(op, values, vectors, residuals, norm=norm, tol=tol, spent=op.num_matvecs - before)
    if len(pairs) < k:
        raise ConvergenceError(
            f"found {len(pairs)} of {k} eigenpairs ({which}) in {pairs.num_matvecs} products; raise max_products, or "
            "ask for fewer pairs",
            pairs,
        )
    return pairs


def _arpack(
    op: LinearOperator, k: int, which: str, centre: float, scale: float, scout: Tridiagonal, tol: float, budget: int
) -> tuple[Floats, Floats]:
    """What ARPACK finds of the wanted pairs of ``(op - centre) / scale``, started from the scout's Ritz vectors."""
    n = op.shape[0]
    ritz, coefficients = scout.eigh()
    start = scout.combine(coefficients[:, edges_of(ritz, min(k, len(ritz)), which)]).sum(dim=1)
    plain = op.to_scipy(np.float64)  # float64 around the products: ARPACK's single precision loses digits of its own
    framed = scipy.sparse.linalg.LinearOperator(
        plain.shape, matvec=lambda x: (plain.matvec(x) - centre * x) / scale, dtype=np.float64
    )
    ncv = min(n, max(2 * k + 1, 20))
    restarts = max(1, (budget - op.num_matvecs) // max(1, ncv - k))
    try:
        values, vectors = scipy.sparse.linalg.eigsh(
            framed, k, which=which, tol=tol, v0=start.double().cpu().numpy(), ncv=ncv, maxiter=restarts
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(values)
    return centre + scale * values[order], vectors[:, order]


def add_missing_copies(
    op: LinearOperator,
    values: Floats,
    vectors: Floats,
    k: int,
    which: str,
    tol: float,
    budget: int,
    generator: torch.Generator,
) -> tuple[Floats, Floats]:
    """Add copies of multiple eigenvalues, which one Krylov space cannot see, until the complement holds none.

    A Lanczos run from a random vector in the complement of what was found approaches the best eigenvalue that is
    left there; where that is better than the worst one found, it belongs among the ``k``.
    """
    n, steps = op.shape[0], 20
    while op.num_matvecs < budget and len(values) < n:
        against = torch.from_numpy(vectors).to(op.device, op.dtype)
        probe = lanczos(op, random_vector(n, generator), steps, against=against)
        ritz, coefficients = probe.eigh()
        better = _beyond(ritz, values, k, which, ROUNDING * tol)
        if not better.any():
            break
        better &= probe.ritz_residuals <= tol
        if not better.any():
            steps *= 2
            continue
        found = probe.combine(coefficients[:, better]).double().cpu().numpy()
        values, vectors = np.append(values, ritz[better]), np.hstack([vectors, found])
        kept = edges_of(values, min(k, len(values)), which)
        values, vectors = values[kept], vectors[:, kept]
    return values, vectors


def _beyond(ritz: Floats, values: Floats, k: int, which: str, margin: float) -> NDArray[np.bool_]:
    """Which Ritz values lie beyond the worst of the ``k`` kept by more than a margin; all while there are fewer."""
    if len(values) < k:
        return np.ones(len(ritz), dtype=bool)
    if which == "LM":
        return np.abs(ritz) > np.abs(values).min() + margin
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    below = ritz < values[low - 1] - margin if low else np.zeros(len(ritz), dtype=bool)
    above = ritz > values[low] + margin if low < k else np.zeros(len(ritz), dtype=bool)
    return below | above


def edges_of(values: Floats, k: int, which: str) -> NDArray[np.intp]:
    """Indices of the ``k`` wanted among ``values``, by ascending value."""
    order = np.argsort(values, kind="stable")
    if which == "LM":
        chosen = order[np.argsort(np.abs(values[order]), kind="stable")[len(values) - k :]]
        return chosen[np.argsort(values[chosen], kind="stable")]
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return np.r_[order[:low], order[len(order) - (k - low) :]]


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
    eigenvectors: Floats,
    residuals: Floats,
    *,
    norm: float,
    tol: float,
    spent: int,
) -> Eigenpairs:
    bound = max(tol, ROUNDING * float(torch.finfo(op.dtype).eps)) * norm
    return Eigenpairs(eigenvalues, residuals, residuals <= bound, eigenvectors, spent)
