"""The dense path: a matrix built from its products, all its eigenvalues, and its eigenvectors at both edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Floats

# Products taken to look for parallel rows.
PROBES = 4

# Rows count as parallel where they are within this many eps of each other. Rounding moves them by 1 to 10 eps; at 16
# to 256 eps the same ones are found on images whose pixels at the border are constant.
_PARALLEL = 32

# Columns built at a time, and block steps of one pass at an edge before it starts again from what it found.
_COLUMNS, _STEPS, _PASSES = 64, 12, 8


@dataclass(frozen=True)
class Folding:
    """Which rows of a symmetric matrix are multiples of one another: ``A = Q C Q^T`` with ``Q`` as described here.

    Each row of ``Q``, shape (n, m), has one entry and its columns are orthonormal. Pixels that are constant over all
    images, units that are off and embeddings that are not used give such rows, zero rows among them; what is orthogonal
    to ``Q`` is null, so that only ``C``, shape (m, m), needs products and an eigensolver.

    Parameters
    ----------
    labels : Tensor, shape (n,), int64
        The column of each row's entry.
    coefficients : Tensor, shape (n,), float64
        The entry.
    size : int
        Number ``m`` of columns.
    """

    labels: Tensor
    coefficients: Tensor
    size: int

    @classmethod
    def none(cls, n: int) -> Folding:
        """Of a matrix with no two rows parallel: ``Q`` is the identity."""
        return cls(torch.arange(n), torch.ones(n, dtype=torch.float64), n)

    @classmethod
    def of(cls, op: LinearOperator) -> Folding:
        """Found with four products: rows are parallel where their products with random vectors are.

        Rows that are not parallel pass for it with a probability of the order of ``eps^3``; :meth:`DenseMatrix.of`
        checks what was found against the columns it builds.
        """
        n = op.shape[0]
        generator = torch.Generator().manual_seed(0)
        probes = torch.randn(n, PROBES, generator=generator, dtype=torch.float64).to(op.device, op.dtype)
        # one by one: an operator that measures how many columns it takes at once should do so on wider blocks
        products = torch.stack([op @ probe for probe in probes.unbind(1)], dim=1).double().cpu()
        norms = torch.linalg.vector_norm(products, dim=1)
        signed = torch.where(products[:, 0] < 0, -norms, torch.where(norms > 0, norms, 1.0))
        directions = products / signed[:, None]  # 0 for zero rows, which are parallel to one another
        order = torch.argsort(directions @ torch.randn(PROBES, generator=generator, dtype=torch.float64), stable=True)
        steps = torch.linalg.vector_norm(directions[order].diff(dim=0), dim=1)
        groups = torch.zeros(n, dtype=torch.int64)
        groups[order[1:]] = torch.cumsum(steps > _PARALLEL * torch.finfo(op.dtype).eps, 0)
        size = int(groups.max()) + 1
        return cls(_by_first_member(groups), signed, size).normalised() if size < n else cls.none(n)

    def normalised(self) -> Folding:
        """With columns of length 1."""
        return Folding(self.labels, self.coefficients / self.lengths()[self.labels], self.size)

    def lengths(self) -> Tensor:
        """Lengths of the columns, shape (m,)."""
        return torch.zeros(self.size, dtype=torch.float64).index_add_(0, self.labels, self.coefficients**2).sqrt()

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns ``start`` to ``stop`` of ``Q``, shape (n, stop - start), float64."""
        rows = torch.nonzero((self.labels >= start) & (self.labels < stop))[:, 0]
        part = torch.zeros(len(self.labels), stop - start, dtype=torch.float64)
        part[rows, self.labels[rows] - start] = self.coefficients[rows]
        return part

    def shared(self) -> Tensor:
        """Rows that share their column with others; on the rest ``Q Q^T`` is the identity."""
        return torch.nonzero(torch.bincount(self.labels)[self.labels] > 1)[:, 0]

    def fold(self, v: Tensor) -> Tensor:
        """``Q^T v`` for ``v`` of shape (n, k), float64."""
        folded = torch.zeros(self.size, v.shape[1], dtype=torch.float64)
        return folded.index_add_(0, self.labels, self.coefficients[:, None] * v)

    def unfold(self, u: Tensor) -> Tensor:
        """``Q u`` for ``u`` of shape (m, k), float64."""
        return self.coefficients[:, None] * u[self.labels]


class DenseMatrix(LinearOperator):
    """A symmetric matrix ``Q C Q^T`` in float64 on the CPU.

    Attributes
    ----------
    core : Tensor, shape (m, m), float64
        ``C``.
    folding : Folding
        ``Q``.
    """

    def __init__(self, core: Tensor, folding: Folding) -> None:
        super().__init__(len(folding.labels), dtype=torch.float64)
        self.core, self.folding = core, folding

    @classmethod
    def of(cls, op: LinearOperator, folding: Folding) -> DenseMatrix:
        """Build ``op`` by ``m`` products; by ``n``, where its columns contradict the folding."""
        core = torch.empty(folding.size, folding.size, dtype=torch.float64)
        rows = folding.shared()
        shared = Folding(folding.labels[rows], folding.coefficients[rows], folding.size)
        outside = 0.0
        for start in range(0, folding.size, _COLUMNS):
            stop = min(start + _COLUMNS, folding.size)
            columns = (op @ folding.columns(start, stop).to(op.device, op.dtype)).double().cpu()
            folded = folding.fold(columns)
            core[start:stop] = folded.T
            outside += float((columns[rows] - shared.unfold(folded)).square().sum())
        if outside**0.5 > _PARALLEL * torch.finfo(op.dtype).eps * float(torch.linalg.matrix_norm(core)):
            return cls.of(op, Folding.none(op.shape[0]))
        return cls(_symmetrised(core), folding)

    def block(self, indices: Tensor) -> DenseMatrix:
        """The diagonal block of the coordinates ``indices``, shape (p,)."""
        kept, labels = torch.unique(self.folding.labels[indices], return_inverse=True)
        part = Folding(labels, self.folding.coefficients[indices], len(kept))
        lengths = part.lengths()
        return DenseMatrix(self.core[kept][:, kept].mul_(lengths).mul_(lengths[:, None]), part.normalised())

    def diagonal(self) -> Tensor:
        """Shape (n,), float64."""
        return self.folding.coefficients**2 * self.core.diagonal()[self.folding.labels]

    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.core.diagonal().sum())

    def frobenius(self) -> float:
        """Root of the sum of the squared eigenvalues."""
        return float(torch.linalg.matrix_norm(self.core))

    def to_dense(self) -> Tensor:
        """The matrix, shape (n, n), float64; no product is taken."""
        labels, coefficients = self.folding.labels, self.folding.coefficients
        return self.core[labels][:, labels].mul_(coefficients).mul_(coefficients[:, None])

    def _matmat(self, v: Tensor) -> Tensor:
        return self.folding.unfold(self.core @ self.folding.fold(v))

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def edges(self, k: int, *, tol: float = 1e-14) -> tuple[Floats, Floats, Floats]:
        """All eigenvalues, and the eigenvectors of the ``k`` smallest and of the ``k`` largest.

        The eigenvalues are those of ``C`` and zeros. Block Lanczos with ``(s - C)^-1``, ``s`` next to the edge, gives
        the vectors: a Cholesky factorisation for each edge, a small part of what all eigenvectors would take.

        Parameters
        ----------
        k : int
            At most ``n``.
        tol : float
            Residual asked of the vectors, relative to the largest eigenvalue in magnitude.

        Returns
        -------
        eigenvalues : ndarray, shape (n,), ascending
        lowest, highest : ndarray, shape (n, k), orthonormal columns in the order of their eigenvalues
            Orthogonal to one another but for those that they share, where ``2k > n``.
        """
        if 2 * k >= self.shape[0]:
            values, all_vectors = (found.numpy() for found in torch.linalg.eigh(self.to_dense()))
            return values, all_vectors[:, :k], all_vectors[:, len(values) - k :]
        of_core = torch.linalg.eigvalsh(self.core)
        n, m = self.shape[0], self.folding.size
        eigenvalues = torch.cat([of_core, torch.zeros(n - m, dtype=torch.float64)])
        order = torch.argsort(eigenvalues, stable=True)
        middle = eigenvalues[order[k - 1 : n - k + 1]]
        # one eigenvalue from edge to edge: vectors found at one edge may be those found at the other
        shared = bool(middle[-1] - middle[0] <= tol * eigenvalues.abs().max())
        all_of_core = torch.linalg.eigh(self.core)[1] if shared else None
        nulls = self._null_vectors(min(n - m, 2 * k))
        vectors = []
        for chosen, upper in ((order[:k], False), (order[n - k :], True)):
            in_core = int((chosen < m).sum())
            found = torch.empty(n, k, dtype=torch.float64)
            of_edge = (
                _edge_vectors(self.core, of_core, in_core, upper=upper, tol=tol)
                if all_of_core is None
                else all_of_core[:, chosen[chosen < m]]
            )
            found[:, chosen < m] = self.folding.unfold(of_edge)
            found[:, chosen >= m] = nulls[:, nulls.shape[1] - (k - in_core) :] if upper else nulls[:, : k - in_core]
            vectors.append(found.numpy())
        return eigenvalues[order].numpy(), vectors[0], vectors[1]

    def _null_vectors(self, count: int) -> Tensor:
        """Orthonormal vectors that ``Q^T`` takes to zero, shape (n, count)."""
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.shape[0], count, generator=generator, dtype=torch.float64)
        for _ in range(2):
            v = torch.linalg.qr(v - self.folding.unfold(self.folding.fold(v))).Q
        return v


def edges_bytes(m: int, k: int) -> int:
    """Bytes that a core of size ``m`` and :meth:`DenseMatrix.edges` take together."""
    basis = min(m, 2 * k * _STEPS)
    return 16 * m * m + 24 * basis * (m + basis)  # the core, its factor; basis, images, temporaries


def _edge_vectors(matrix: Tensor, eigenvalues: Tensor, k: int, *, upper: bool, tol: float) -> Tensor:
    """Eigenvectors of the ``k`` largest (``upper``) or smallest eigenvalues, all of which are known; shape (m, k).

    Blocks are twice as wide as the edge, so that copies of multiple eigenvalues are seen.
    """
    m, sign = len(eigenvalues), 1.0 if upper else -1.0
    if not k:
        return torch.empty(m, 0, dtype=torch.float64)
    width = min(m, 2 * k)
    inwards = eigenvalues.flip(0) if upper else eigenvalues
    norm, spread = float(eigenvalues.abs().max()), float((inwards[0] - inwards[width - 1]).abs())
    # next to the edge as its own eigenvalues measure it, and far enough that rounding leaves the difference definite
    margin = max(1e-2 * spread, 10 * m * torch.finfo(torch.float64).eps * norm) or 1.0
    solve = _Solver(matrix, float(inwards[0]) + sign * margin, sign)
    block = torch.randn(m, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = slice(width - k, None) if upper else slice(k)
    for _ in range(_PASSES):
        basis = images = torch.empty(m, 0, dtype=torch.float64)
        while basis.shape[1] < min(m, _STEPS * width):
            block = _orthonormal(solve(block), basis)[:, : m - basis.shape[1]]
            basis, images = torch.cat([basis, block], dim=1), torch.cat([images, matrix @ block], dim=1)
            theta, coefficients = torch.linalg.eigh(basis.T @ images)
            kept = slice(-width, None) if upper else slice(width)
            ritz = basis @ coefficients[:, kept]
            residuals = torch.linalg.vector_norm(
                (images @ coefficients[:, kept] - theta[kept] * ritz)[:, wanted], dim=0
            )
            if residuals.max() <= tol * norm:
                return ritz[:, wanted]
        block = ritz
    return ritz[:, wanted]


class _Solver:
    """``|shift - A|^-1`` for a shift beyond all eigenvalues of ``A``; ``sign`` tells beyond which edge."""

    def __init__(self, matrix: Tensor, shift: float, sign: float) -> None:
        shifted = (matrix * -sign).mT
        shifted.diagonal().add_(sign * shift)
        self._factor = torch.linalg.cholesky(shifted, out=shifted)

    def __call__(self, block: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(self._factor, block, upper=False)
        return torch.linalg.solve_triangular(self._factor.mT, half, upper=True)


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what a block adds to an orthonormal basis; any other complement, where it adds nothing.

    Twice is enough for a block that adds something; where it adds rounding alone, it takes three times.
    """
    for _ in range(3):
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return block


def _symmetrised(matrix: Tensor) -> Tensor:
    """``(A + A^T) / 2``, in place and block by block."""
    for start in range(0, len(matrix), _COLUMNS):
        stop = start + _COLUMNS
        mean = (matrix[start:stop, start:] + matrix[start:, start:stop].T) / 2
        matrix[start:stop, start:], matrix[start:, start:stop] = mean, mean.T
    return matrix


def _by_first_member(groups: Tensor) -> Tensor:
    """The groups numbered in the order in which they first occur."""
    _, first, inverse = np.unique(groups.numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(np.argsort(np.argsort(first)))[torch.from_numpy(inverse.reshape(-1))]
