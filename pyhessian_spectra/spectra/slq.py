"""Stochastic Lanczos quadrature: the whole spectrum from a few Krylov spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.lanczos import fresh_generator, lanczos, random_vector
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, Spectrum


def slq(
    op: LinearOperator,
    *,
    num_probes: int = 10,
    num_steps: int = 100,
    deflate: Eigenpairs | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Estimate the eigenvalue distribution by stochastic Lanczos quadrature.

    Each probe, uniform on the sphere, gives the Gauss quadrature of the distribution it sees: nodes are Ritz
    values, weights the squared first components of the eigenvectors of ``T`` (Golub and Meurant 2010; Chen,
    Trogdon and Ubaru 2021). A Krylov space that is exhausted gives that probe's measure exactly.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    num_probes, num_steps : int
        Probes ``r`` and Lanczos steps ``m`` each; ``r * m`` products.
    deflate : Eigenpairs, optional
        Converged pairs with eigenvectors. They enter as exact atoms of weight ``1 / n`` and the quadrature
        runs on their orthogonal complement, which resolves a bulk far narrower than the whole range.
    generator : torch.Generator, optional
        Source of the probes, on the CPU; None draws a fresh random seed.

    Returns
    -------
    Spectrum
        ``num_probes`` rows of atoms followed by quadrature nodes.
    """
    require_operator(op)
    n = op.shape[0]
    if num_probes < 1:
        raise InputError(f"num_probes must be at least 1, got {num_probes}")
    atoms, against = np.empty(0), None
    if deflate is not None and len(deflate):
        if deflate.eigenvectors is None:
            raise InputError("deflate needs eigenvectors; compute the pairs with eigsh and keep them")
        atoms = deflate.eigenvalues
        against = torch.as_tensor(deflate.eigenvectors).to(op.device, op.dtype)
    generator = generator or fresh_generator()
    before, rows, orthogonality = op.num_matvecs, [], 0.0
    for _ in range(num_probes if len(atoms) < n else 0):
        probe = random_vector(n, generator)
        tridiagonal = lanczos(op, probe, num_steps, against=against)
        theta, vectors = tridiagonal.eigh()
        rows.append((theta, vectors[0] ** 2))
        orthogonality = max(orthogonality, tridiagonal.orthogonality)
    facts = {"steps": max(map(len, (row[0] for row in rows)), default=0), "orthogonality": orthogonality}
    return stack_rows(atoms, rows, n, {**facts, "num_matvecs": op.num_matvecs - before})


def stack_rows(atoms: Floats, rows: list[tuple[Floats, Floats]], n: int, facts: dict[str, Any]) -> Spectrum:
    """A Spectrum of atoms of weight ``1 / n`` and, a row a probe, the quadrature of the rest of the space.

    ``rows`` hold nodes, and weights that sum to 1; without rows the atoms must be the whole spectrum.
    """
    width = max((len(nodes) for nodes, _ in rows), default=0)
    nodes = np.empty((max(1, len(rows)), len(atoms) + width))
    weights = np.zeros_like(nodes)
    nodes[:, : len(atoms)], weights[:, : len(atoms)] = atoms, 1 / n
    for i, (theta, weight) in enumerate(rows):
        stop = len(atoms) + len(theta)
        nodes[i, len(atoms) : stop], weights[i, len(atoms) : stop] = theta, (n - len(atoms)) / n * weight
        nodes[i, stop:] = theta[-1]
    return Spectrum(nodes, weights, n, exact=not rows, metadata={"atoms": len(atoms), **facts})
