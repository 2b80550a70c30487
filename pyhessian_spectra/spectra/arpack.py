"""The edges of a spectrum by ARPACK, through scipy's ``eigsh`` on a scipy ``LinearOperator``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse.linalg
import torch
from scipy.sparse.linalg import ArpackNoConvergence
from torch import Tensor

from pyhessian_spectra.spectra.edges import Edges, find_edges, threshold
from pyhessian_spectra.spectra.meter import Meter


def find_edges_by_arpack(
    op: Meter,
    start: Tensor,
    k: int,
    which: str,
    *,
    tol: float,
    atol: float,
    max_products: int,
    num_vectors: int | None = None,
) -> Edges:
    """As :func:`find_edges`, by the implicitly restarted Lanczos method (Lehoucq, Sorensen and Yang 1998).

    A short Lanczos process from ``start`` comes first. Where it has not found what is wanted, it gives ARPACK its start
    vector, and a frame: ARPACK runs on ``(A - c) / s`` with the middle ``c`` and half the width ``s`` of the spectrum,
    since its tolerance is relative to each eigenvalue, which near zero cannot be met, and its thresholds are absolute.

    Parameters
    ----------
    op : Meter, shape (n, n)
    start : Tensor, shape (n,)
    k, which
        ``k < n``; see :func:`wanted`.
    tol, atol : float
        See :func:`threshold`.
    max_products : int
        Give up after about so many. The short process' pairs are given then, and ``partial`` holds those of ARPACK that
        have converged.
    num_vectors : int, optional
        Lanczos vectors between restarts, by default ``max(2 k + 1, 20)``.
    """
    n, before = op.n, op.num_products
    num_vectors = min(n, num_vectors or max(2 * k + 1, 20))
    scout = find_edges(
        op, start, k, which, tol=tol, atol=atol, min_steps=k + 1, max_steps=num_vectors, max_products=num_vectors
    )
    if scout.good.all() or len(scout.values) < k:  # a Krylov space that is invariant holds no more
        return scout
    ritz, centre = scout.ends, 0.0 if which == "LM" else sum(scout.ends) / 2
    frame = max(abs(ritz[0] - centre), abs(ritz[1] - centre))
    plain = op.to_scipy(np.float64)  # float64 around the products: ARPACK's single precision loses digits of its own
    framed = scipy.sparse.linalg.LinearOperator(
        plain.shape, matvec=lambda x: (plain.matvec(x) - centre * x) / frame, dtype=np.float64
    )
    # its tolerance is relative to values that are 1 at the edges of the frame
    goal = max(float(threshold(op, scout.values, tol, atol, scout.scale).min()) / (10 * frame), 2 * np.finfo(float).eps)
    left = max_products - (op.num_products - before)
    try:
        values, vectors = scipy.sparse.linalg.eigsh(
            framed,
            k,
            which=which,
            tol=goal,
            v0=scout.vectors.sum(dim=1).double().cpu().numpy(),
            ncv=num_vectors,
            maxiter=max(1, left // max(1, num_vectors - k)),
        )
        converged = True
    except ArpackNoConvergence as error:
        values, vectors, converged = error.eigenvalues, error.eigenvectors, False
    values = centre + frame * values
    order = np.argsort(values, kind="stable")
    found = torch.from_numpy(np.ascontiguousarray(vectors[:, order])).to(op.device, op.dtype)
    steps, orthogonality = op.num_products - before, op.space.deviation(found)
    if not converged:
        return replace(scout, steps=steps, partial=(values[order], found))
    good = np.ones(k, dtype=bool)
    return replace(scout, values=values[order], vectors=found, good=good, steps=steps, orthogonality=orthogonality)
