"""Both edges of a spectrum from one Lanczos process, restarted where that is too short."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.lanczos import LanczosProcess
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Floats

WHICH = ("LA", "SA", "BE", "LM")

# A product in floating point is off by a modest multiple of eps times the norm; 100 covers the sums of the networks
# tested (the measured factor is 2 to 30) without calling a wrong pair converged.
ROUNDING = 100

# A cycle between two restarts has at least this many products, however short the first process was.
_SHORTEST_CYCLE = 10


@dataclass(frozen=True)
class Edges:
    """Ritz pairs at both edges.

    Parameters
    ----------
    values : ndarray, shape (k,), float64, ascending
        Fewer where the Krylov space is invariant before.
    vectors : Tensor, shape (n, k)
        Orthonormal columns.
    good : ndarray, shape (k,), bool
        Residual, by the recurrence, within what was asked.
    scale : float
        Largest magnitude of a Ritz value.
    steps, restarts : int
        Products taken, and how often the process was restarted.
    orthogonality : float
        ``max |V^T V - I|`` of the last basis.
    ends : (float, float)
        The extreme Ritz values.
    place : str
        Where the largest basis lay, for people.
    partial : (ndarray, Tensor), optional
        Pairs that an eigensolver has found although not all converged; their ranks are not known.
    """

    values: Floats
    vectors: Tensor
    good: NDArray[np.bool_]
    scale: float
    steps: int
    restarts: int
    orthogonality: float
    ends: tuple[float, float]
    place: str
    partial: tuple[Floats, Tensor] | None = None


def find_edges(
    op: LinearOperator,
    start: Tensor,
    k: int,
    which: str,
    *,
    tol: float,
    atol: float,
    min_steps: int,
    max_steps: int,
    max_products: int,
    memory_budget: int | None = None,
) -> Edges:
    """Extend a Lanczos process until both edges have converged; restart it where that takes too many steps.

    At a restart the Ritz vectors wanted of each edge stay, and half as many again at one that has not converged; the
    process goes on from the vector at which it stopped, orthogonal to them. This is the thick-restart Lanczos method
    (Wu and Simon 2000): nothing that has been found is lost, and no product is repeated.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    start : Tensor, shape (n,)
    k, which : int, str
        Pairs wanted, at most ``n``, and where; see :func:`wanted`.
    tol, atol : float
        See :func:`threshold`.
    min_steps, max_steps : int
        Lanczos vectors of the first process, at least and at most; fewer than ``max_steps`` where neither memory nor
        disk has room. The same number of vectors, kept ones included, is held between restarts.
    max_products : int
        Most products, restarts included. What has not converged by then is given as it is.
    memory_budget : int, optional
        Bytes the Lanczos vectors may take in memory, see :class:`KrylovBasis`.
    """
    search = _Search(op, start, k, which, tol, atol, memory_budget)
    search.extend(max(min_steps, k))
    while not search.done and search.size < max_steps and search.has_room:
        search.extend(min(max(5, search.size // 8), max_steps - search.size))
    size = search.size
    while not search.done and search.products < max_products:
        search.restart()
        size = max(size, search.size + _SHORTEST_CYCLE)
        while not search.done and search.size < size and search.products < max_products:
            search.extend(min(max(5, search.size // 8), size - search.size, max_products - search.products))
    return search.edges()


def require_which(which: str) -> None:
    """Raise where an edge of that name is not known."""
    if which not in WHICH:
        raise InputError(f"which must be one of {', '.join(WHICH)}, got {which!r}")


def wanted(values: Floats, k: int, which: str) -> NDArray[np.intp]:
    """Indices of ``k`` eigenvalues, by ascending value.

    ``which`` is ``"LA"`` or ``"SA"`` for the largest or smallest, ``"BE"`` for half of them at each end (the odd one at
    the top), ``"LM"`` for those of largest magnitude.
    """
    order = np.argsort(values, kind="stable")
    if which == "LM":
        chosen = order[np.argsort(np.abs(values[order]), kind="stable")[len(values) - k :]]
        return chosen[np.argsort(values[chosen], kind="stable")]
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return np.r_[order[:low], order[len(order) - (k - low) :]]


def threshold(op: LinearOperator, values: Floats, tol: float, atol: float, scale: float) -> Floats:
    """Largest residual at which a pair counts as converged.

    ``tol`` relative to its value, or ``atol`` relative to the scale, or what rounding in the products leaves.
    """
    return np.maximum(tol * np.abs(values), max(atol, ROUNDING * op.space.eps) * scale)


class _Search:
    """Ritz vectors that were kept, and the Lanczos process that goes on from them: together one orthonormal basis.

    With the kept vectors ``U``, of values ``D``, first, the operator's projection is ``[[D, b e_1^T], [e_1 b^T, T]]``;
    ``b`` holds the components along ``U`` of the product with the first Lanczos vector.
    """

    def __init__(
        self,
        op: LinearOperator,
        start: Tensor,
        k: int,
        which: str,
        tol: float,
        atol: float,
        memory_budget: int | None,
    ) -> None:
        self._op, self._k, self._which = op, k, which
        self._tol, self._atol, self._budget = tol, atol, memory_budget
        self._process = LanczosProcess(op, start, memory_budget=memory_budget)
        self._kept = torch.empty(op.space.local_n, 0, dtype=op.dtype, device=op.device)
        self._kept_values, self._couplings = np.empty(0), np.empty(0)
        self._place, self._largest = "", 0
        self.products = self.restarts = 0

    @property
    def size(self) -> int:
        """Vectors of the basis."""
        return len(self._kept_values) + self._process.num_steps

    @property
    def has_room(self) -> bool:
        return self._process.vectors.room > 0

    @property
    def done(self) -> bool:
        # with as many values as are wanted, or fewer, there may be others between them
        return self._process.exhausted or (len(self._theta) > self._k and bool(self._good.all()))

    def extend(self, steps: int) -> None:
        """Take up to ``steps`` products, and solve the projected problem."""
        before = self._process.num_steps
        self._process.extend(steps)
        self.products += self._process.num_steps - before
        tridiagonal, p = self._process.tridiagonal(), len(self._kept_values)
        if p == 0:
            self._theta, self._coefficients = tridiagonal.eigh()
        else:
            projected = np.diag(np.r_[self._kept_values, tridiagonal.alphas])
            i = np.arange(p, len(projected) - 1)
            projected[i + 1, i] = tridiagonal.betas[:-1]
            projected[p, :p] = self._couplings  # the lower triangle is what eigh reads
            self._theta, self._coefficients = scipy.linalg.eigh(projected)
        self._scale = float(np.abs(self._theta).max())
        self._last = tridiagonal.betas[-1] * self._coefficients[-1]
        self._chosen = wanted(self._theta, min(self._k, len(self._theta)), self._which)
        goal = threshold(self._op, self._theta[self._chosen], self._tol, self._atol, self._scale)
        self._good = np.abs(self._last[self._chosen]) <= goal

    def restart(self) -> None:
        """Begin again from the Ritz vectors at the edges; the others are forgotten."""
        self._note_place()
        below = int((self._chosen == np.arange(self._k)).sum())  # the lower edge's, which come first
        counts = (below, self._k - below)
        spare = min((max(counts) + 1) // 2, (self.size - self._k) // 4)
        converged = (self._good[:below].all(), self._good[below:].all())
        low, high = (count + (0 if done else spare) for count, done in zip(counts, converged, strict=True))
        index = np.r_[:low, len(self._theta) - high : len(self._theta)]
        self._kept = self._combined(index)
        self._kept_values, self._couplings = self._theta[index], self._last[index]
        budget = self._budget
        if budget is not None:
            budget = max(0, budget - self._kept.numel() * self._kept.element_size())
        # the old basis goes with the old process
        self._process = LanczosProcess(self._op, self._process.residual, against=self._kept, memory_budget=budget)
        self.restarts += 1

    def edges(self) -> Edges:
        self._note_place()
        return Edges(
            self._theta[self._chosen],
            self._combined(self._chosen),
            self._good,
            self._scale,
            self.products,
            self.restarts,
            max(self._process.vectors.deviation(self._kept), self._op.space.deviation(self._kept)),
            (float(self._theta[0]), float(self._theta[-1])),
            self._place,
        )

    def _combined(self, index: NDArray[np.intp]) -> Tensor:
        """Ritz vectors, in columns (n, len(index))."""
        coefficients, p = self._coefficients[:, index], len(self._kept_values)
        vectors = self._process.vectors.combine(torch.from_numpy(coefficients[p:]))
        return vectors.addmm_(self._kept, torch.from_numpy(coefficients[:p]).to(vectors))

    def _note_place(self) -> None:
        vectors = self._process.vectors
        if len(vectors) > self._largest:
            self._place, self._largest = vectors.place, len(vectors)
