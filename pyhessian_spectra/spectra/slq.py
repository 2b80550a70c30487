"""Stochastic Lanczos quadrature: the whole eigenvalue distribution from a few Krylov spaces."""

from __future__ import annotations

import numpy as np
import torch

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.lanczos import lanczos
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Eigenpairs
from pyhessian_spectra.spectra.rounding import Rounding
from pyhessian_spectra.spectra.space import forked, fresh_generator
from pyhessian_spectra.spectra.spectrum import Spectrum


def slq(
    op: LinearOperator,
    *,
    num_probes: int = 10,
    num_steps: int = 100,
    deflate: Eigenpairs | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Estimate the eigenvalue distribution by stochastic Lanczos quadrature.

    Each probe, uniform on the sphere, gives a Gauss quadrature of its spectral measure: the nodes are Ritz values, the
    weights the squared first components of the eigenvectors of ``T`` (Golub and Meurant 2010; Chen, Trogdon and Ubaru
    2021). If the Krylov space is invariant, the quadrature is the probe's spectral measure itself.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    num_probes, num_steps : int
        Number ``r`` of probes and ``m`` of Lanczos steps for each; takes ``r m + 2`` products.
    deflate : Eigenpairs, optional
        Converged pairs with eigenvectors. They enter as exact atoms of weight ``1 / n``, and the quadrature runs on
        their orthogonal complement, which resolves a bulk that is far narrower than the whole range.
    generator : torch.Generator, optional
        Source of the probes, on the CPU; None draws a fresh random seed.

    Returns
    -------
    Spectrum
        ``num_probes`` rows, each of the atoms followed by quadrature nodes.

    Raises
    ------
    InputError
        ``num_probes`` or ``num_steps`` is below 1, or ``deflate`` has no eigenvectors.
    """
    require_operator(op)
    meter, generator = Meter.of(op), generator or fresh_generator()
    if num_probes < 1:
        raise InputError(f"num_probes must be at least 1, got {num_probes}")
    atoms, against, residual = np.empty(0), None, 0.0
    if deflate is not None and len(deflate):
        if deflate.eigenvectors is None:
            raise InputError("deflate needs eigenvectors; compute the pairs with eigsh and keep them")
        # vectors other than those that a generator of this seed gave `eigsh`, in whose complement they are not uniform
        generator = forked(generator)
        atoms, residual = deflate.eigenvalues, float(np.linalg.norm(deflate.residuals))
        against = torch.as_tensor(deflate.eigenvectors).to(op.device, op.dtype)
    rounding = Rounding(meter)
    before, rows, orthogonality = meter.num_products, [], 0.0
    for _ in range(num_probes if len(atoms) < op.n else 0):
        tridiagonal = lanczos(meter, op.space.randn(generator), num_steps, against=against)
        theta, vectors = tridiagonal.eigh()
        rows.append((theta, vectors[0] ** 2))
        orthogonality = max(orthogonality, tridiagonal.orthogonality)
        rounding.add_process(tridiagonal)
    # processes from random vectors are alike, so each has its share of the errors
    off = 2 * rounding.bound(against) / max(1, len(rows)) ** 0.5
    facts = {
        "steps": max((len(theta) for theta, _ in rows), default=0),
        "orthogonality": orthogonality,
        "num_products": meter.num_products - before,
    }
    dtype = str(op.dtype).removeprefix("torch.")
    return Spectrum.from_quadrature(atoms, rows, op.n, dtype=dtype, rounding=off, residual=residual, facts=facts)
