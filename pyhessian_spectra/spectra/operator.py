"""LinearOperator: a real symmetric matrix known through its products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError


class LinearOperator(ABC):
    """A real symmetric matrix of shape ``(n, n)``, known through its products.

    A subclass gives ``_matvec``, and ``_matmat`` where several columns at once are cheaper than one by
    one. Vectors are flat tensors of shape ``(n,)``, or ``(n, k)`` with one vector a column, in the
    operator's dtype and on its device.

    Attributes
    ----------
    shape : tuple of int
        ``(n, n)``.
    dtype : torch.dtype
    device : torch.device
    num_matvecs : int
        Products taken so far through ``@``; a product with ``k`` columns counts ``k``.
    """

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.shape = (size, size)
        self.dtype = dtype
        self.device = torch.device(device)
        self.num_matvecs = 0

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` of shape (n,), which must not be modified."""

    def _matmat(self, v: Tensor) -> Tensor:
        """The product with ``v`` of shape (n, k)."""
        return torch.stack([self._matvec(column) for column in v.unbind(1)], dim=1)

    def _terms(self, v: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Weights, which sum to 1, and products with ``v`` of shape (n,) of the terms of a sum."""
        yield 1.0, self._matvec(v)

    def _with_forms(self, v: Tensor, vectors: Tensor, sections: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total = torch.zeros_like(v)
        weights: list[float] = []
        own: list[Tensor] = []
        crossed: list[Tensor] = []
        for weight, term in self._terms(v):
            weights.append(weight)
            own.append(torch.stack([part.sum() for part in (v.double() * term.double()).split(list(sections))]))
            crossed.append((vectors.T @ term).double())
            total.add_(term, alpha=weight)
        return total, torch.tensor(weights, dtype=torch.float64), torch.stack(own), torch.stack(crossed)

    def with_forms(self, v: Tensor, vectors: Tensor, sections: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The product with a vector, and what its terms ``A_b v`` have in common with it and with others.

        Parameters
        ----------
        v : Tensor, shape (n,)
        vectors : Tensor, shape (n, p)
        sections : sequence of int
            Lengths of ``s`` sections of the coordinates, of sum ``n``.

        Returns
        -------
        product : Tensor, shape (n,)
        weights : Tensor, shape (b,), float64
        own : Tensor, shape (b, s), float64
            ``v^T E_s A_b v`` with the projector ``E_s`` onto a section.
        crossed : Tensor, shape (b, p), float64
            ``V^T A_b v``.
        """
        self._check(v)
        self.num_matvecs += 1
        return self._with_forms(v.detach(), vectors, sections)

    def terms(self, v: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Weights ``w_b`` and products ``A_b v`` of the terms of ``A = sum_b w_b A_b``, for ``v`` of shape (n,).

        Together they cost one product and count as one. The weights sum to 1; an operator that is no sum is its one
        term. A curvature matrix of a risk is the sum over batches.
        """
        self._check(v)
        self.num_matvecs += 1
        return self._terms(v.detach())

    def __matmul__(self, v: Tensor) -> Tensor:
        """Multiply with one vector (n,) or with columns (n, k)."""
        self._check(v)
        v = v.detach()
        self.num_matvecs += 1 if v.dim() == 1 else v.shape[1]
        if v.dim() == 1:
            return self._matvec(v)
        return self._matmat(v) if v.shape[1] else v.clone()

    def _check(self, v: Tensor) -> None:
        """Raise where ``v`` cannot be multiplied."""
        if not isinstance(v, Tensor) or v.dim() not in (1, 2) or v.shape[0] != self.shape[0]:
            got = f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            raise InputError(
                f"the operator multiplies tensors of shape ({self.shape[0]},) or ({self.shape[0]}, k), got {got}"
            )
        if v.dtype != self.dtype or v.device.type != self.device.type:
            raise InputError(
                f"the operator is {self.dtype} on {self.device}, the vector {v.dtype} on {v.device}; "
                "convert the vector with .to(op.device, op.dtype)"
            )

    def to_dense(self) -> Tensor:
        """The matrix itself, shape (n, n), by ``n`` products."""
        n = self.shape[0]
        dense = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        columns = max(1, min(n, 256))
        for start in range(0, n, columns):
            stop = min(start + columns, n)
            basis = torch.zeros(n, stop - start, dtype=self.dtype, device=self.device)
            basis[range(start, stop), range(stop - start)] = 1
            dense[:, start:stop] = self @ basis
        return dense

    def to_scipy(self, dtype: np.dtype | type | None = None) -> scipy.sparse.linalg.LinearOperator:
        """This operator for scipy: numpy vectors in, numpy vectors out.

        ``dtype`` is what scipy sees, by default the operator's own. A wider one lets scipy's recurrences
        run in float64 around float32 products.
        """
        dtype = np.dtype(dtype or torch.empty(0, dtype=self.dtype).numpy().dtype)

        def product(x: np.ndarray) -> np.ndarray:
            v = torch.from_numpy(np.array(x)).to(self.device, self.dtype)
            return (self @ v).cpu().numpy().astype(dtype, copy=False)

        return scipy.sparse.linalg.LinearOperator(
            shape=self.shape,
            dtype=dtype,
            matvec=lambda x: product(x.reshape(-1)),
            matmat=product,
            rmatvec=lambda x: product(x.reshape(-1)),
            rmatmat=product,
        )

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return _Combination(((1.0, self), (1.0, other))) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return _Combination(((1.0, self), (-1.0, other))) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, scalar: float) -> LinearOperator:
        return _Combination(((float(scalar), self),)) if isinstance(scalar, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return -1.0 * self


def require_operator(op: object) -> None:
    """Raise where ``op`` is not an operator."""
    if not isinstance(op, LinearOperator):
        raise InputError(
            f"a LinearOperator is needed, got {type(op).__name__}; a matrix becomes one with MatrixOperator(matrix), a "
            "risk with HessianOperator(risk)"
        )


class _Combination(LinearOperator):
    """``sum_i c_i A_i``."""

    def __init__(self, parts: tuple[tuple[float, LinearOperator], ...]) -> None:
        first = parts[0][1]
        for _, op in parts[1:]:
            if (op.shape, op.dtype, op.device) != (first.shape, first.dtype, first.device):
                raise InputError(
                    f"operators of shape {first.shape} ({first.dtype}, {first.device}) and {op.shape} ({op.dtype}, "
                    f"{op.device}) do not combine; build both from the same risk"
                )
        super().__init__(first.shape[0], dtype=first.dtype, device=first.device)
        self._parts = parts

    def _product(self, v: Tensor) -> Tensor:
        (scale, op), *rest = self._parts
        total = scale * (op @ v)
        for scale, op in rest:
            total.add_(op @ v, alpha=scale)
        return total

    _matvec = _matmat = _product


class MatrixOperator(LinearOperator):
    """A dense symmetric matrix as an operator.

    >>> MatrixOperator(torch.diag(torch.tensor([1.0, 2.0]))) @ torch.ones(2)
    tensor([1., 2.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
            raise InputError(f"a square real matrix is needed, got shape {tuple(matrix.shape)} of {matrix.dtype}")
        scale = matrix.abs().max() if matrix.numel() else 0.0
        if not torch.allclose(matrix, matrix.T, rtol=0.0, atol=float(100 * torch.finfo(matrix.dtype).eps * scale)):
            raise InputError("the matrix is not symmetric; pass (A + A.T) / 2 if that is what is meant")
        super().__init__(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
        self._matrix = matrix

    def to_dense(self) -> Tensor:
        """A copy of the matrix; no product is taken."""
        return self._matrix.clone()

    def _product(self, v: Tensor) -> Tensor:
        return self._matrix @ v

    _matvec = _matmat = _product
