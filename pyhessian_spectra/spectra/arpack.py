"""The edges of a spectrum by ARPACK, which scipy's ``eigsh`` calls with a scipy ``LinearOperator``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.spectra.edges import Edges, find_edges, threshold
from pyhessian_spectra.spectra.meter import Meter

# Residuals, relative to the norm, that ARPACK's implicit restarts attain in float64: 1e-12 was the worst measured.
ATTAINABLE = 2e-12


def find_edges_by_arpack(
    op: Meter,
    start: Tensor,
    k: int,
    which: str,
    *,
    tol: float,
    atol: float,
    max_products: int,
    min_steps: int | None = None,
    max_steps: int | None = None,
    memory_budget: int | None = None,
) -> Edges:
    """As :func:`find_edges`, by the implicitly restarted Lanczos method (Lehoucq, Sorensen and Yang 1998).

    A short Lanczos process from ``start`` comes first. If it has not found the wanted pairs, ARPACK starts from the sum
    of its Ritz vectors and runs on ``(A - c) / s`` with the middle ``c`` (0 for ``"LM"``) and half the width ``s`` of
    the spectrum, since its tolerance is relative to each eigenvalue, which cannot be met near zero, and its other
    thresholds are absolute. After about ``max_products`` it gives up: the result then holds the short process' pairs,
    and ``partial`` those that have converged in ARPACK. It keeps ``max(2 k + 1, 20)`` Lanczos vectors, in float64 and
    in memory, so ``min_steps``, ``max_steps`` and ``memory_budget`` concern the short process alone.
    """
    n, before = op.n, op.num_products
    num_vectors = min(n, max(2 * k + 1, 20))
    scout = find_edges(
        op,
        start,
        k,
        which,
        tol=tol,
        atol=atol,
        min_steps=min_steps or k + 1,
        max_steps=min(max_steps or num_vectors, num_vectors),
        max_products=num_vectors,
        memory_budget=memory_budget,
    )
    if scout.good.all() or len(scout.values) < k:  # an invariant Krylov space holds no more pairs
        return scout
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    ritz, centre = scout.ends, 0.0 if which == "LM" else sum(scout.ends) / 2
    frame = max(abs(ritz[0] - centre), abs(ritz[1] - centre))
    plain = op.to_scipy(np.float64)  # float64, since ARPACK in single precision would lose further digits
    framed = ScipyOperator(plain.shape, matvec=lambda x: (plain.matvec(x) - centre * x) / frame, dtype=np.float64)
    # ARPACK's tolerance is relative to eigenvalues, which are about 1 here; half of it leaves room for its rounding
    goal = max(float(threshold(op, scout.values, tol, atol, scout.scale).min()) / (2 * frame), ATTAINABLE / 2)
    left = max_products - (op.num_products - before)
    try:
        values, vectors = eigsh(
            framed,
            k,
            which="LA" if (which, k) == ("BE", 1) else which,  # ARPACK refuses "BE" with k = 1
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
