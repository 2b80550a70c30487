"""The Lanczos process, with full reorthogonalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.basis import KrylovBasis
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
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
        Off-diagonal of ``T``, followed by the last residual norm ``beta_m``; that one is 0 when the Krylov space is
        invariant, and ``T`` then holds exact eigenvalues.
    vectors : KrylovBasis, optional
        The Lanczos vectors, wherever they lie; None where they are no longer needed.
    remainder : float
        What is known of the last residual norm where ``beta_m`` is 0 because rounding hides it: it is no larger. 0
        where the vectors span the whole space.
    """

    alphas: Floats
    betas: Floats
    vectors: KrylovBasis | None
    remainder: float

    @cached_property
    def _eigh(self) -> tuple[Floats, Floats]:
        theta, vectors = scipy.linalg.eigh_tridiagonal(self.alphas, self.betas[:-1])
        return np.asarray(theta, np.float64), np.asarray(vectors, np.float64)

    def eigh(self) -> tuple[Floats, Floats]:
        """Ritz values, ascending (m,), and the eigenvectors of ``T`` in columns (m, m)."""
        return self._eigh

    @property
    def ritz_residuals(self) -> Floats:
        """``||A y - theta y||`` of each Ritz pair by the recurrence, ``beta_m |s_m|``, shape (m,)."""
        return self.betas[-1] * np.abs(self._eigh[1][-1])

    def combine(self, coefficients: Floats) -> Tensor:
        """Linear combinations ``V C`` for ``C`` of shape (m, k), in columns (n, k) and the basis' dtype."""
        return self._kept.combine(torch.from_numpy(np.ascontiguousarray(coefficients)))

    @property
    def basis(self) -> Tensor:
        """The Lanczos vectors, one a row, shape (m, n), in memory."""
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
    """The Lanczos process step by step, to be extended until what is wanted of it has converged.

    After the three-term recurrence each new vector is orthogonalised against all earlier ones (Parlett 1998, section
    6.9), so that no copies of converged eigenvalues ("ghosts") appear, and once more where that took so much of it that
    rounding matters (Daniel, Gragg, Kaufman and Stewart 1976). Vectors are stored in the operator's dtype, coefficients
    in float64. The process ends early where the Krylov space is invariant: where the residual is below ``100 eps``
    times the largest product so far, rounding is all that is left of it.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    v0 : Tensor, shape (n,)
        Start vector; it is normalised.
    against : Tensor, shape (n, k), optional
        Orthonormal columns to stay orthogonal to: the process then runs on the operator compressed to their
        complement, ``(I - U U^T) A (I - U U^T)``.
    memory_budget : int, optional
        Bytes the vectors may take in memory, see :class:`KrylovBasis`; results do not depend on it.

    Attributes
    ----------
    num_steps : int
        Steps taken.
    exhausted : bool
        No further step can be taken: the Krylov space is invariant.
    vectors : KrylovBasis
    residual : Tensor, shape (n,)
        The next Lanczos vector, not normalised.

    Raises
    ------
    InputError
        ``v0`` is zero or not finite, or ``against`` leaves nothing.
    OutOfMemoryError
        The vectors fit neither in memory nor on the disk.
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
        """Take up to ``num_steps`` further steps, one product each; ``first`` takes the first of these products."""
        num_steps = min(num_steps, self._room - self.num_steps)
        if self.exhausted:
            return
        for _ in range(num_steps):
            previous, self._row = self._row, self.vectors.append(self.residual, self._norm)
            w, first = (self._op @ self._row if first is None else first(self._row)), None
            # before anything is projected out of it: beyond what is left there is only its rounding
            self._scale = max(self._scale, self._space.norm(w))
            alpha = self._space.inner(w, self._row)
            w = torch.add(w, self._row, alpha=-alpha, out=self.residual)  # what the operator returned is its own
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
        """What the steps so far have given."""
        remainder = self._remainder if self.exhausted else self._betas[-1]
        return Tridiagonal(np.array(self._alphas), np.array(self._betas), self.vectors, remainder)

    def _orthogonalise(self, w: Tensor) -> float:
        """Remove from ``w``, in place, what lies along the earlier vectors; the norm of what is left."""
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
    """Run up to ``num_steps`` Lanczos steps from ``v0``; see :class:`LanczosProcess` for the rest.

    Raises
    ------
    InputError
        ``num_steps`` is below 1, ``v0`` zero or not finite, or ``against`` leaves nothing.
    """
    require_operator(op)
    if num_steps < 1:
        raise InputError(f"num_steps must be at least 1, got {num_steps}")
    process = LanczosProcess(op, v0, against=against, memory_budget=memory_budget)
    process.extend(num_steps)
    return process.tridiagonal()
