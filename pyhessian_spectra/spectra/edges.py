"""Both edges of a spectrum from one Lanczos process, restarted when it gets too long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.lanczos import LanczosProcess
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Floats

WHICH = ("LA", "SA", "BE", "LM")

# The error of a floating-point product is a modest multiple of eps times the norm: 2 to 30 were measured for the
# networks tested. 100 covers these without calling a wrong pair converged.
ROUNDING = 100

# Fewest products between two restarts, however short the first process was.
_SHORTEST_CYCLE = 10


@dataclass(frozen=True)
class Edges:
    """Ritz pairs at the edges: ascending ``values`` (k,), ``vectors`` (n, k); fewer if the Krylov space is invariant.

    ``good`` (k,): whether the residual, by the recurrence, meets the threshold. ``scale``: largest magnitude of a Ritz
    value. ``steps``, ``restarts``: numbers of products and restarts. ``orthogonality``: ``max |V^T V - I|`` of the last
    basis. ``ends``: extreme Ritz values. ``place``: a phrase that says where the largest basis was kept. ``quadrature``
    (2, m): nodes and weights of the process before its first restart. ``partial``: pairs of an eigensolver that did not
    find all, so that their ranks are not known.
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
    quadrature: Floats | None = None
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
    """Extend a Lanczos process until the ``k`` wanted pairs have converged; restart it if that takes too many steps.

    A restart keeps the wanted Ritz vectors of each edge, and half as many again at an edge that has not converged; the
    process continues from its last residual vector, orthogonal to them. In this thick-restart Lanczos method (Wu and
    Simon 2000) no Ritz vector found is lost and no product is repeated. The basis is restarted at ``max_steps`` vectors
    (at least ``min_steps``), kept ones included, or earlier if neither memory nor disk has room. Pairs that have not
    converged after ``max_products`` are returned as they are. See :func:`wanted` and :func:`threshold`.
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
    """Raise InputError if ``which`` does not name an edge."""
    if which not in WHICH:
        raise InputError(f"which must be one of {', '.join(WHICH)}, got {which!r}")


def wanted(values: Floats, k: int, which: str) -> NDArray[np.intp]:
    """Indices of the ``k`` wanted eigenvalues, in ascending order of the eigenvalues.

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
    """Largest residual (k,) at which a pair converged, by ``tol`` of its value, ``atol`` of the scale or rounding."""
    return np.maximum(tol * np.abs(values), max(atol, ROUNDING * op.space.eps) * scale)


class _Search:
    """Ritz vectors kept at a restart and the Lanczos process that continues from them: together an orthonormal basis.

    With the kept vectors ``U`` first and their Ritz values ``D``, the projection of the operator on the basis is ``[[D,
    b e_1^T], [e_1 b^T, T]]``; ``b`` is ``U^T`` times the product with the first Lanczos vector.
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
        """Number of basis vectors."""
        return len(self._kept_values) + self._process.num_steps

    @property
    def has_room(self) -> bool:
        return self._process.vectors.room > 0

    @property
    def done(self) -> bool:
        # if there are no more Ritz values than wanted, eigenvalues between them may have been missed
        return self._process.exhausted or (len(self._theta) > self._k and bool(self._good.all()))

    def extend(self, steps: int) -> None:
        """Take up to ``steps`` products, and solve the projected eigenproblem."""
        import scipy.linalg

        before = self._process.num_steps
        self._process.extend(steps)
        self.products += self._process.num_steps - before
        tridiagonal, p = self._process.tridiagonal(), len(self._kept_values)
        if p == 0:
            self._theta, self._coefficients = tridiagonal.eigh()
            self._quadrature = np.stack([self._theta, self._coefficients[0] ** 2])
        else:
            projected = np.diag(np.r_[self._kept_values, tridiagonal.alphas])
            i = np.arange(p, len(projected) - 1)
            projected[i + 1, i] = tridiagonal.betas[:-1]
            projected[p, :p] = self._couplings  # eigh reads the lower triangle only
            self._theta, self._coefficients = scipy.linalg.eigh(projected)
        self._scale = float(np.abs(self._theta).max())
        self._last = tridiagonal.betas[-1] * self._coefficients[-1]
        self._chosen = wanted(self._theta, min(self._k, len(self._theta)), self._which)
        goal = threshold(self._op, self._theta[self._chosen], self._tol, self._atol, self._scale)
        self._good = np.abs(self._last[self._chosen]) <= goal

    def restart(self) -> None:
        """Begin again from the Ritz vectors at the edges, and drop all others."""
        self._note_place()
        below = int((self._chosen == np.arange(self._k)).sum())  # wanted pairs at the lower edge, which come first
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
        # this frees the old basis together with the old process
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
            self._quadrature,
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
