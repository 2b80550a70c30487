"""The Lanczos process, with full reorthogonalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.basis import KrylovBasis
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Floats

# A residual norm below this many eps of the scale counts as rounding: 10 to 80 were measured in invariant Krylov
# spaces. A smaller factor would be harmless: it adds one vector, of weight eps^2. A larger one would cut off a narrow
# bulk beside large outliers; for the same reason the factor does not grow with n.
_BREAKDOWN = 100


@dataclass(frozen=True, repr=False)
class Tridiagonal(Shown):
    """Lanczos relation ``A V = V T + beta_m v_{m+1} e_m^T`` with orthonormal ``V`` (n, m), tridiagonal ``T`` (m, m).

    Parameters
    ----------
    alphas : ndarray, shape (m,), float64
        Diagonal of ``T``.
    betas : ndarray, shape (m,), float64
        Off-diagonal of ``T``, followed by the last residual norm ``beta_m``. ``beta_m`` is 0 if the Krylov space is
        invariant; the eigenvalues of ``T`` are then eigenvalues of ``A``.
    vectors : KrylovBasis, optional
        The Lanczos vectors, in memory or on disk; None if they were dropped. ``combine``, ``basis`` and
        ``orthogonality`` then raise InputError.
    remainder : float
        Upper bound on the last residual norm, also where ``beta_m`` is 0 because the residual is not larger than
        rounding; 0 if the vectors span the whole space.
    residual : Tensor, shape (n,), optional
        ``beta_m v_{m+1}``.
    """

    alphas: Floats
    betas: Floats
    vectors: KrylovBasis | None
    remainder: float
    residual: Tensor | None = None

    @cached_property
    def _eigh(self) -> tuple[Floats, Floats]:
        import scipy.linalg

        theta, vectors = scipy.linalg.eigh_tridiagonal(self.alphas, self.betas[:-1])
        return np.asarray(theta, np.float64), np.asarray(vectors, np.float64)

    def eigh(self) -> tuple[Floats, Floats]:
        """Ritz values, ascending (m,), and the eigenvectors of ``T`` in columns (m, m); both float64."""
        return self._eigh

    @property
    def ritz_residuals(self) -> Floats:
        """``||A y - theta y||`` of each Ritz pair, computed as ``beta_m |s_m|``; shape (m,)."""
        return self.betas[-1] * np.abs(self._eigh[1][-1])

    def combine(self, coefficients: Floats) -> Tensor:
        """Linear combinations ``V C`` for ``C`` of shape (m, k); columns (n, k) in the basis' dtype."""
        return self._kept.combine(torch.from_numpy(np.ascontiguousarray(coefficients)))

    @property
    def basis(self) -> Tensor:
        """The Lanczos vectors in memory, one per row, shape (m, n)."""
        return self._kept.rows(len(self.alphas))

    @cached_property
    def orthogonality(self) -> float:
        """``max |V^T V - I|``: how far rounding has moved the basis from orthonormal."""
        return self._kept.deviation()

    @property
    def _kept(self) -> KrylovBasis:
        if self.vectors is None:
            raise InputError("the Lanczos vectors of this result were not kept; run lanczos for a result that has them")
        return self.vectors


class LanczosProcess:
    """The Lanczos process, extended step by step until the quantities wanted from it have converged.

    After the three-term recurrence each new vector is orthogonalised against all earlier ones (Parlett 1998, section
    6.9), so that no copies of converged eigenvalues ("ghosts") appear. This is repeated if it shortened the vector so
    much that rounding matters (Daniel, Gragg, Kaufman and Stewart 1976). Vectors are stored in the operator's dtype,
    coefficients in float64. With orthonormal columns ``against`` (n, k) the process runs on the compression of the
    operator to their complement, ``(I - U U^T) A (I - U U^T)``.

    ``exhausted`` is true once the Krylov space is invariant: it fills the complement, or the residual norm is at most
    ``100 eps`` times the largest norm of a product so far and hence only rounding. ``residual`` is the next Lanczos
    vector, not normalised.
    """

    def __init__(
        self, op: LinearOperator, v0: Tensor, *, against: Tensor | None = None, memory_budget: int | None = None
    ) -> None:
        self._op, self._space, self._against = op, op.space, against
        self._room = op.n - (0 if against is None else against.shape[1])
        if self._room < 1:
            raise InputError(f"nothing is left to explore: locked vectors fill all {op.n} dimensions")
        self.num_steps, self.exhausted = 0, False
        self.vectors = KrylovBasis(op.space, memory_budget=memory_budget)
        self._alphas: list[float] = []
        self._betas: list[float] = []
        self._scale = self._remainder = 0.0
        self._row: Tensor | None = None
        self.residual = v0.to(op.device, op.dtype, copy=True)
        self._norm = self._orthogonalise(self.residual)
        if not (np.isfinite(self._norm) and self._norm > 0):
            raise InputError(f"the start vector must be finite and not zero, its norm is {self._norm}")

    def extend(self, num_steps: int, *, first: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take up to ``num_steps`` more steps, one product each; ``first``, if given, computes the first product."""
        num_steps = min(num_steps, self._room - self.num_steps)
        if self.exhausted:
            return
        for _ in range(num_steps):
            previous, self._row = self._row, self.vectors.append(self.residual, self._norm)
            w, first = (self._op @ self._row if first is None else first(self._row)), None
            # the norm before projection, since the rounding that projection leaves is relative to it
            self._scale = max(self._scale, self._space.norm(w))
            alpha = self._space.inner(w, self._row)
            w = torch.add(w, self._row, alpha=-alpha, out=self.residual)  # not in place: the operator may keep `w`
            if previous is not None:
                w.sub_(previous, alpha=self._norm)
            self._norm = self._orthogonalise(w)
            self.num_steps += 1
            rounding = _BREAKDOWN * self._space.eps * self._scale
            full = self.num_steps == self._room
            self.exhausted = self._norm <= rounding or full
            self._remainder = 0.0 if full else max(self._norm, rounding)
            self._alphas.append(alpha)
            self._betas.append(0.0 if self.exhausted else self._norm)
            if self.exhausted:
                return

    def tridiagonal(self) -> Tridiagonal:
        """The coefficients and the vectors of the steps so far."""
        remainder = self._remainder if self.exhausted else self._betas[-1]
        return Tridiagonal(np.array(self._alphas), np.array(self._betas), self.vectors, remainder, self.residual)

    def _orthogonalise(self, w: Tensor) -> float:
        """Subtract from ``w``, in place, its components along the earlier vectors; return the norm of the rest."""
        before, norm = np.inf, self._space.norm(w)
        for _ in range(2):
            if norm > before / 2**0.5:
                break
            before = norm
            if self._against is not None:
                w.addmv_(self._against, self._space.gram(self._against.T, w[:, None])[:, 0].to(w), alpha=-1)
            self.vectors.remove_from(w)
            norm = self._space.norm(w)
        return norm


def lanczos(
    op: LinearOperator,
    v0: Tensor,
    num_steps: int,
    *,
    against: Tensor | None = None,
    memory_budget: int | None = None,
) -> Tridiagonal:
    """Run up to ``num_steps`` Lanczos steps from ``v0`` (n,) with full reorthogonalisation, one product each.

    With orthonormal columns ``against`` = ``U`` (n, k) the operator is ``(I - U U^T) A (I - U U^T)``. The steps end
    early if the Krylov space becomes invariant. ``memory_budget`` is the number of bytes of memory for Lanczos vectors,
    by default half of what is free; further vectors go to disk.

    Returns
    -------
    Tridiagonal

    Raises
    ------
    InputError
        ``num_steps`` is below 1, ``v0`` is zero or not finite, or ``against`` spans the whole space.
    """
    require_operator(op)
    if num_steps < 1:
        raise InputError(f"num_steps must be at least 1, got {num_steps}")
    process = LanczosProcess(op, v0, against=against, memory_budget=memory_budget)
    process.extend(num_steps)
    return process.tridiagonal()
