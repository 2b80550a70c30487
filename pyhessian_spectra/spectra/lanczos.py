"""The Lanczos process, with full reorthogonalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Floats

# A residual below this many eps of the scale is rounding: 10 to 80 were measured where the space is invariant. Too
# small is harmless: one more vector, of weight eps^2. Too large would cut off a narrow bulk beside large outliers, so
# it does not grow with n.
_BREAKDOWN = 100


@dataclass(frozen=True)
class Tridiagonal:
    """``A V = V T + beta_m v_{m+1} e_m^T`` with orthonormal ``V`` and tridiagonal ``T``.

    Parameters
    ----------
    alphas : ndarray, shape (m,), float64
        Diagonal of ``T``.
    betas : ndarray, shape (m,), float64
        Off-diagonal of ``T``, followed by the last residual norm ``beta_m``; that one is 0 when the
        Krylov space is invariant, and ``T`` then holds exact eigenvalues.
    basis : Tensor, shape (m, n)
        The Lanczos vectors, one a row.
    orthogonality : float
        ``max |V^T V - I|``: how far rounding has moved the basis from orthonormal.
    """

    alphas: Floats
    betas: Floats
    basis: Tensor
    orthogonality: float

    def eigh(self) -> tuple[Floats, Floats]:
        """Ritz values, ascending (m,), and the eigenvectors of ``T`` in columns (m, m)."""
        theta, vectors = scipy.linalg.eigh_tridiagonal(self.alphas, self.betas[:-1])
        return np.asarray(theta, np.float64), np.asarray(vectors, np.float64)


def lanczos(op: LinearOperator, v0: Tensor, num_steps: int, *, against: Tensor | None = None) -> Tridiagonal:
    """Run ``num_steps`` Lanczos steps from ``v0``.

    Each new vector is orthogonalised twice against all earlier ones (Parlett 1998, section 6.9), so that no
    copies of converged eigenvalues ("ghosts") appear. Coefficients are accumulated in float64 whatever the
    dtype of the products. The process stops early where the Krylov space is invariant: where the residual is
    below ``100 eps`` times the largest coefficient so far, rounding is all that is left of it.

    Parameters
    ----------
    op : LinearOperator
    v0 : Tensor, shape (n,)
        Start vector; it is normalised.
    num_steps : int
        Largest number ``m`` of steps; capped at ``n`` less the columns of ``against``.
    against : Tensor, shape (n, k), optional
        Orthonormal columns to stay orthogonal to: the process then runs on the operator compressed to
        their complement, ``(I - U U^T) A (I - U U^T)``.

    Raises
    ------
    InputError
        ``num_steps`` below 1, or ``v0`` zero or not finite.
    """
    n = op.shape[0]
    locked = 0 if against is None else against.shape[1]
    if num_steps < 1:
        raise InputError(f"num_steps must be at least 1, got {num_steps}")
    if locked >= n:
        raise InputError(f"nothing is left to explore: {locked} locked vectors fill all {n} dimensions")
    num_steps = min(num_steps, n - locked)

    def orthogonalise(w: Tensor, count: int) -> Tensor:
        for _ in range(2):
            if against is not None:
                w = w - against @ (against.T @ w)
            if count:
                w = w - basis[:count].T @ (basis[:count] @ w)
        return w

    basis = torch.empty(num_steps, n, dtype=op.dtype, device=op.device)
    v = orthogonalise(v0.to(op.device, op.dtype), 0)
    norm = float(torch.linalg.vector_norm(v, dtype=torch.float64))
    if not (np.isfinite(norm) and norm > 0):
        raise InputError(f"the start vector must be finite and not zero, its norm is {norm}")
    alphas, betas, scale = np.zeros(num_steps), np.zeros(num_steps), 0.0
    threshold = _BREAKDOWN * torch.finfo(op.dtype).eps
    for step in range(num_steps):
        basis[step] = v / norm
        w = op @ basis[step]
        alphas[step] = float(torch.dot(w.double(), basis[step].double()))
        v = orthogonalise(w, step + 1)
        norm = float(torch.linalg.vector_norm(v, dtype=torch.float64))
        scale = max(scale, abs(alphas[step]), norm)
        if norm <= threshold * scale:
            step_count = step + 1
            break
        betas[step] = norm
    else:
        step_count = num_steps
        if num_steps == n - locked:  # the whole space: what is left is rounding
            betas[-1] = 0.0
    kept = basis[:step_count]
    gram = kept @ kept.T
    gram.diagonal().sub_(1)
    return Tridiagonal(alphas[:step_count], betas[:step_count], kept, float(gram.abs().max()))


def random_vector(n: int, generator: torch.Generator) -> Tensor:
    """A standard normal vector (n,) in float64 on the CPU: the same whatever the device and dtype of the operator."""
    return torch.randn(n, generator=generator, dtype=torch.float64)


def fresh_generator() -> torch.Generator:
    """A CPU generator with a seed that differs from call to call."""
    generator = torch.Generator()
    generator.seed()
    return generator
