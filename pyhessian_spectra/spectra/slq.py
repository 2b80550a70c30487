"""Stochastic Lanczos quadrature: the whole spectrum from a few Krylov spaces."""

from __future__ import annotations

import numpy as np
import torch

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.lanczos import fresh_generator, lanczos, random_vector
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Eigenpairs, Spectrum


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
    rest = (n - len(atoms)) / n

    nodes, weights, steps, orthogonality = [], [], [], 0.0
    for _ in range(num_probes if rest else 0):
        probe = random_vector(n, generator)
        tridiagonal = lanczos(op, probe, num_steps, against=against)
        theta, vectors = tridiagonal.eigh()
        nodes.append(theta)
        weights.append(rest * vectors[0] ** 2)
        steps.append(len(theta))
        orthogonality = max(orthogonality, tridiagonal.orthogonality)
    width = max(steps, default=0)
    all_nodes = np.empty((num_probes, len(atoms) + width))
    all_weights = np.zeros_like(all_nodes)
    all_nodes[:, : len(atoms)], all_weights[:, : len(atoms)] = atoms, 1 / n
    for row, (theta, weight) in enumerate(zip(nodes, weights, strict=True)):
        stop = len(atoms) + len(theta)
        all_nodes[row, len(atoms) : stop], all_weights[row, len(atoms) : stop] = theta, weight
        all_nodes[row, stop:] = theta[-1]
    metadata = {
        "steps": max(steps, default=0),
        "atoms": len(atoms),
        "num_matvecs": sum(steps),
        "orthogonality": orthogonality,
    }
    return Spectrum(all_nodes, all_weights, n, exact=not rest, metadata=metadata)
