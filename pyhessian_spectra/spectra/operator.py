"""LinearOperator: a real symmetric matrix known through its products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.space import VectorSpace

# What is asked of each term of a sum: a linear function of the term's product, to a float64 tensor (q,).
Observation = Callable[[Tensor], Tensor]


class LinearOperator(ABC):
    """A real symmetric matrix of shape ``(n, n)``, known through its products.

    A subclass gives ``_matvec``, and ``_matmat`` where several columns at once are cheaper than one by one. Vectors
    are flat tensors of shape ``(n,)``, or ``(n, k)`` with one vector a column, in the operator's dtype and on its
    device.

    Parameters
    ----------
    n : int
        Dimension.
    dtype : torch.dtype
    device : torch.device or str

    Attributes
    ----------
    kind : str
        What the matrix is, as a report names it.
    space : VectorSpace
        Inner products and random vectors. An operator whose vectors lie on several processes sets one of its own.
    """

    kind = "matrix"

    def __init__(self, n: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.space = VectorSpace(n, dtype=dtype, device=device)

    @property
    def n(self) -> int:
        """Dimension."""
        return self.space.n

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``."""
        return (self.space.n, self.space.n)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors."""
        return self.space.dtype

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return self.space.device

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` of shape (n,), which must not be modified."""

    def _matmat(self, v: Tensor) -> Tensor:
        """The product with ``v`` of shape (n, k)."""
        return torch.stack([self._matvec(column) for column in v.unbind(1)], dim=1)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Multiply with one vector (n,) or with columns (n, k)."""
        self._check(v)
        v = v.detach()
        if v.dim() == 1:
            return self._matvec(v)
        return self._matmat(v) if v.shape[1] else v.clone()

    def _check(self, v: Tensor) -> None:
        """Raise where ``v`` cannot be multiplied."""
        n = self.space.local_n
        if not isinstance(v, Tensor) or v.dim() not in (1, 2) or v.shape[0] != n:
            got = f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            raise InputError(f"the operator multiplies tensors of shape ({n},) or ({n}, k), got {got}")
        if v.dtype != self.dtype or v.device.type != self.device.type:
            raise InputError(
                f"the operator is {self.dtype} on {self.device}, the vector {v.dtype} on {v.device}; "
                "convert the vector with .to(op.device, op.dtype)"
            )

    def to_dense(self) -> Tensor:
        """The matrix itself, shape (n, n), by ``n`` products."""
        n = self.n
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


class TermwiseOperator(LinearOperator):
    """A weighted sum ``A = sum_b w_b A_b`` whose terms can be looked at while a product is taken.

    A curvature matrix of a risk is one: its terms are the batches.
    """

    @abstractmethod
    def _observe(self, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """As :func:`observe`."""


def observe(op: LinearOperator, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """One product, and what a linear function says of each term of the operator on the way.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    v : Tensor, shape (n,)
    look : callable
        Linear, from ``A_b v`` of shape (n,) to a float64 tensor (q,).

    Returns
    -------
    product : Tensor, shape (n,)
    weights : Tensor, shape (b,), float64
        ``w_b``, of sum 1.
    seen : Tensor, shape (b, q), float64
        ``look(A_b v)``. An operator that is no sum is its own one term.
    """
    op._check(v)
    if isinstance(op, TermwiseOperator):
        return op._observe(v.detach(), look)
    product = op @ v
    return product, torch.ones(1, dtype=torch.float64, device=v.device), look(product)[None]


def require_operator(op: object) -> None:
    """Raise where ``op`` is not an operator."""
    if not isinstance(op, LinearOperator):
        raise InputError(
            f"a LinearOperator is needed, got {type(op).__name__}; a matrix becomes one with MatrixOperator(matrix), a "
            "risk with HessianOperator(risk)"
        )


def require_one_space(parts: list[LinearOperator]) -> VectorSpace:
    """The space that all these operators act in."""
    for op in parts:
        require_operator(op)
        if op.space != parts[0].space:
            first = parts[0]
            raise InputError(
                f"operators of shape {first.shape} ({first.dtype}, {first.device}) and {op.shape} ({op.dtype}, "
                f"{op.device}) do not combine; build both from the same risk"
            )
    return parts[0].space


class _Combination(TermwiseOperator):
    """``sum_i c_i A_i``."""

    def __init__(self, parts: tuple[tuple[float, LinearOperator], ...]) -> None:
        self.space = require_one_space([op for _, op in parts])
        self._parts = parts

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Such as ``"Hessian - 0.5 GGN"``."""
        words = []
        for scale, op in self._parts:
            size = "" if abs(scale) == 1 else f"{abs(scale):g} "
            words += ["-" if scale < 0 else "+", f"{size}{op.kind}"]
        return " ".join(words[1:] if words[0] == "+" else words)

    def _product(self, v: Tensor) -> Tensor:
        (scale, op), *rest = self._parts
        total = scale * (op @ v)
        for scale, op in rest:
            total.add_(op @ v, alpha=scale)
        return total

    _matvec = _matmat = _product

    def _observe(self, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
        total, weights, seen = torch.zeros_like(v), torch.empty(0), torch.empty(0)
        for i, (scale, op) in enumerate(self._parts):
            product, own_weights, own_seen = observe(op, v, look)
            total.add_(product, alpha=scale)
            if i and not (len(own_weights) == len(weights) and torch.equal(own_weights, weights)):
                # sums over different terms: together they are one term
                seen, own_seen = (weights @ seen)[None], (own_weights @ own_seen)[None]
                weights = own_weights = torch.ones_like(weights[:1])
            weights, seen = own_weights, seen + scale * own_seen if i else scale * own_seen
        return total, weights, seen


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
