"""Eigenpairs of a matrix that has moved a little, from those that it had before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.spectra.edges import ROUNDING
from pyhessian_spectra.spectra.forms import Forms
from pyhessian_spectra.spectra.operator import LinearOperator, observe, require_operator
from pyhessian_spectra.spectra.results import Eigenpairs, Floats

# A direction this much shorter than the residual that it was made from is rounding.
_DEPENDENT = 1e-3


@dataclass(frozen=True)
class Followed:
    """Eigenpairs at both edges, ascending, the space that they were found in, and each term's forms with them.

    ``pairs`` are the ``smallest`` lowest and the ``largest`` highest; ``start`` (n, p) are orthonormal columns to begin
    with where the matrix has moved on: the eigenvectors and, of each edge, one Ritz vector more. ``forms`` are those of
    the eigenvectors. ``scale`` is the largest norm that a product with a unit vector had.
    """

    pairs: Eigenpairs
    start: Tensor
    forms: Forms
    scale: float


def follow(
    op: LinearOperator, start: Tensor, *, largest: int, smallest: int = 0, tol: float = 1e-2, max_products: int = 30
) -> Followed:
    """Eigenpairs at the edges by Davidson's method from a space that nearly holds them, such as those of a step before.

    Rayleigh and Ritz in the space of ``start`` come first, for a product each. Then the space grows by the residual of
    the pair that is farthest from the tolerance, for one product each (Davidson 1975, without a preconditioner, where
    it is the Lanczos process from a block). All residuals are known without a further product.

    A residual says that there is an eigenvalue as near as that, not that none beyond was missed. One is found sooner if
    ``start`` has more columns than pairs are wanted: what enters an edge is then in the space before it is there.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    start : Tensor, shape (n, p)
        Linearly independent columns, at least one.
    largest, smallest : int
        Numbers of pairs at the edges.
    tol : float
        Residual to reach, relative to the magnitude of each eigenvalue.
    max_products : int
        At least ``p`` are taken. Pairs that have not converged then are returned as they are.

    Raises
    ------
    InputError
        There are fewer columns or coordinates than pairs wanted, or a product fails.
    NonFiniteError
        A product is NaN or infinite.
    """
    require_operator(op)
    count = largest + smallest
    if start.dim() != 2 or len(start) != op.space.local_n or not 1 <= count <= op.n:
        raise InputError(
            f"start must be columns ({op.n:,}, p), and between 1 and {op.n:,} pairs are to be wanted; got shape "
            f"{tuple(start.shape)} and {count}"
        )
    search = _Space(op)
    for column in start.unbind(1):
        search.add(column)
    while True:
        search.solve(largest, smallest)
        goal = np.maximum(tol * np.abs(search.values), ROUNDING * op.space.eps * search.scale)
        excess = search.residuals / goal
        enough = search.size >= min(op.n, count)
        if (enough and excess.max() <= 1) or search.size >= min(max(max_products, count), op.n):
            break
        if not search.add(search.residual(int(excess.argmax()))) and not search.add(search.unseen()):
            break
    return search.found(excess <= 1)


class _Space:
    """An orthonormal basis ``Q`` (n, m), its products ``A Q``, and each term's ``Q^T A_b Q``."""

    def __init__(self, op: LinearOperator) -> None:
        self._op, self._space = op, op.space
        self._basis: list[Tensor] = []
        self._products: list[Tensor] = []
        self._forms: list[Floats] = []  # of each basis vector with those before it and itself (b, j + 1)
        self._weights: Floats = np.ones(1)
        self._generator = torch.Generator().manual_seed(0)

    @property
    def size(self) -> int:
        return len(self._basis)

    def add(self, v: Tensor) -> bool:
        """Extend the basis by a direction; False if that lies in its span."""
        norm = self._space.norm(v)
        if not np.isfinite(norm):
            raise NonFiniteError("a vector to start from is NaN or infinite")
        if not norm:
            return False
        q = v / norm
        for _ in range(2):
            for other in self._basis:
                q = torch.add(q, other, alpha=-self._space.inner(other, q))
            norm = self._space.norm(q)
            if norm < _DEPENDENT:
                return False
            q = q / norm
        self._basis.append(q)
        rows = torch.stack(self._basis)
        product, weights, seen = observe(self._op, q, lambda term: self._space.gram(rows, term[:, None])[:, 0])
        if not bool(seen.isfinite().all()):
            raise NonFiniteError("a product with the operator is NaN or infinite")
        self._products.append(product)
        self._forms.append(seen.cpu().numpy())
        self._weights = weights.cpu().numpy()
        return True

    def unseen(self) -> Tensor:
        return self._space.randn(self._generator)

    def solve(self, largest: int, smallest: int) -> None:
        """Rayleigh and Ritz."""
        m, weights = self.size, self._weights
        self._terms = np.zeros((len(weights), m, m))
        for j, forms in enumerate(self._forms):
            self._terms[:, : j + 1, j] = self._terms[:, j, : j + 1] = forms
        theta, s = np.linalg.eigh(np.einsum("b,bij->ij", weights, self._terms))
        self.scale = float(np.abs(theta).max())
        low, high = min(smallest, m), min(largest, max(0, m - smallest))
        chosen = np.r_[:low, m - high : m]
        more = np.r_[: min(m, low + bool(smallest)), max(0, m - high - bool(largest)) : m]
        self._more = s[:, np.unique(more)]
        self.values, self._coefficients = theta[chosen], s[:, chosen]
        self._residuals = [self._residual(i) for i in range(len(chosen))]
        self.residuals = np.array([self._space.norm(r) for r in self._residuals])

    def residual(self, i: int) -> Tensor:
        """``A y - theta y`` (n,) of a pair."""
        return self._residuals[i]

    def found(self, converged: NDArray[np.bool_]) -> Followed:
        vectors = self._combined(self._basis, self._coefficients)
        pairs = Eigenpairs(self.values, self.residuals, converged, vectors.cpu().numpy(), self.size)
        crossed = np.einsum("ip,bij,jq->bpq", self._coefficients, self._terms, self._coefficients)
        forms = Forms.of_vectors(self._weights, crossed, self._op.n)
        scale = max(map(self._space.norm, self._products))
        return Followed(pairs, self._combined(self._basis, self._more), forms, scale)

    def _residual(self, i: int) -> Tensor:
        s = self._coefficients[:, i : i + 1]
        return (self._combined(self._products, s) - self.values[i] * self._combined(self._basis, s))[:, 0]

    def _combined(self, vectors: list[Tensor], coefficients: Floats) -> Tensor:
        """Columns (n, k) of linear combinations by the columns of (m, k)."""
        columns = []
        for column in coefficients.T:
            total = torch.zeros_like(vectors[0])
            for vector, factor in zip(vectors, column, strict=True):
                total.add_(vector, alpha=float(factor))
            columns.append(total)
        return torch.stack(columns, dim=1)
