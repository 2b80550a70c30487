"""Eigenpairs: all of them from the dense matrix, or a few at the edges of the spectrum by ARPACK."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.errors import ConvergenceError, InputError
from pyhessian_spectra.spectra.arpack import ATTAINABLE, find_edges_by_arpack
from pyhessian_spectra.spectra.bounds import certify
from pyhessian_spectra.spectra.copies import add_missing_copies
from pyhessian_spectra.spectra.dense import entries
from pyhessian_spectra.spectra.edges import ROUNDING, require_which
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Eigenpairs
from pyhessian_spectra.spectra.rounding import Rounding
from pyhessian_spectra.spectra.space import fresh_generator

# Lanczos steps in the complement of the pairs found: as many as the edges took, within these limits.
_FEWEST_STEPS, _MOST_STEPS = 10, 40


def eigh(op: LinearOperator) -> Eigenpairs:
    """All ``n`` eigenpairs, ascending, from the dense matrix in float64.

    Residuals are those of the dense matrix before it is symmetrised, so they include its asymmetry as well as the error
    of the eigensolver; intervals also allow for the measured rounding of products. Takes ``n`` products, in float64
    where the operator has these, and a few more; and ``8 n^2`` bytes for each of the matrix and the eigenvectors.
    Raises InputError if ``op`` is not a LinearOperator.
    """
    import scipy.linalg

    require_operator(op)
    meter = Meter.of(op)
    before = meter.num_products
    dense, used, off = entries(meter)
    matrix = dense.numpy()
    eigenvalues, eigenvectors = scipy.linalg.eigh((matrix + matrix.T) / 2, driver="evr")
    residuals = np.linalg.norm(matrix @ eigenvectors - eigenvectors * eigenvalues, axis=0)
    rounding = ROUNDING * used.space.eps * float(np.abs(eigenvalues).max())
    reach = residuals + rounding + off.norm
    return Eigenpairs(
        eigenvalues,
        residuals,
        residuals <= rounding,
        eigenvectors,
        meter.num_products - before,
        eigenvalues - reach,
        eigenvalues + reach,
        rounding=off.norm,
    )


def eigsh(
    op: LinearOperator,
    k: int,
    *,
    which: str = "LA",
    tol: float = 0.0,
    v0: Tensor | Eigenpairs | None = None,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """``k`` eigenpairs at the edges of the spectrum, by ARPACK's implicitly restarted Lanczos method.

    A short Lanczos process comes first; if it meets the tolerance, ARPACK is not called. Another process, from a random
    vector in the complement of the pairs found, looks for copies of multiple eigenvalues, which a single Krylov space
    cannot contain, and bounds all other eigenvalues.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    k : int
        Number of pairs, 1 <= k < n.
    which : {"LA", "SA", "BE", "LM"}
        Largest or smallest algebraic, both ends (the odd one at the top), or largest in magnitude.
    tol : float
        Residual ``||A v - theta v||`` to reach, relative to the operator's norm. Values below what rounding allows, 100
        eps of the products' dtype or 2e-12, are raised to it.
    v0 : Tensor, shape (n,) or (n, p), or Eigenpairs, optional
        Where to begin: an approximate eigenvector, several, or eigenpairs of a nearby matrix. By default a random
        vector.
    max_products : int, optional
        Give up after about this many products, by default ``max(20 k, 10 n, 1000)``.
    generator : torch.Generator, optional
        Source of the random vectors; None draws a fresh random seed.

    Returns
    -------
    Eigenpairs
        Ascending, with certified intervals and residuals from ``k`` fresh products. ``converged`` says which residuals
        meet the tolerance.

    Raises
    ------
    InputError
        ``k``, ``which`` or ``v0`` is out of range.
    ConvergenceError
        Fewer than ``k`` pairs converged, or missed copies were not excluded; ``partial`` holds the pairs found.
    """
    require_operator(op)
    require_which(which)
    n = op.n
    if not 1 <= k < n:
        raise InputError(f"k must be at least 1 and below n = {n}, got {k}; for all {n} eigenpairs use eigh")
    meter, generator = Meter.of(op), generator or fresh_generator()
    before, most = meter.num_products, max_products or max(20 * k, 10 * n, 1000)
    atol = max(tol, op.space.eps, ATTAINABLE)
    rounding = Rounding(meter)
    start = op.space.randn(generator) if v0 is None else _start(op, v0)
    edges = find_edges_by_arpack(meter, start, k, which, tol=0.0, atol=atol, max_products=most)
    if edges.good.all():
        values, vectors, probe = add_missing_copies(
            meter,
            edges.values,
            edges.vectors,
            k,
            which,
            residual=atol * edges.scale,
            # residuals of the pairs found move what is left in their complement by as much
            margin=max(ROUNDING * op.space.eps, 2 * atol) * edges.scale,
            max_products=most - (meter.num_products - before),
            generator=generator,
            steps=min(max(edges.steps, _FEWEST_STEPS), _MOST_STEPS),
        )
        if probe:
            rounding.add_process(probe)
    else:
        (values, vectors), probe = edges.partial or (edges.values[:0], edges.vectors[:, :0]), None
    products = meter @ vectors
    # a Rayleigh-Ritz step, since after restarts eigenvalues are only as accurate as the vectors
    gram = op.space.gram(vectors.T, products)
    rotation = torch.linalg.eigh((gram + gram.T) / 2)
    values, turn = rotation.eigenvalues.cpu().numpy(), rotation.eigenvectors.to(vectors)
    pairs = certify(
        op,
        values,
        vectors @ turn,
        (products @ turn).unbind(1),
        [] if probe is None else [probe],
        np.ones(len(values), dtype=bool),
        tol=0.0,
        atol=atol,
        scale=edges.scale,
        rounding=rounding,
    )
    pairs = replace(pairs, num_products=meter.num_products - before)
    if probe is None or not pairs.converged.all():
        raise ConvergenceError(
            f"found {len(pairs)} eigenpairs in {pairs.num_products} products, not certain to be the {k} asked for "
            f"({which}); raise max_products or tol, or ask for fewer pairs",
            pairs,
        )
    return pairs


def _start(op: LinearOperator, v0: Tensor | Eigenpairs) -> Tensor:
    """One start vector (n,): the sum of all vectors given."""
    vectors = torch.as_tensor(v0.eigenvectors) if isinstance(v0, Eigenpairs) else v0
    if not isinstance(vectors, Tensor) or vectors.dim() not in (1, 2) or vectors.shape[0] != op.space.local_n:
        got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(v0).__name__
        raise InputError(
            f"v0 must be a tensor of shape ({op.n},) or ({op.n}, p), or Eigenpairs with vectors, got {got}"
        )
    vectors = vectors.to(op.device, op.dtype)
    return vectors if vectors.dim() == 1 else vectors.sum(dim=1)
