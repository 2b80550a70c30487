"""LinearOperator: a real symmetric matrix that is known only through its products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import one_line
from pyhessian_spectra.spectra.space import VectorSpace

if TYPE_CHECKING:
    import scipy.sparse.linalg

# A linear function that maps the product ``A_b v`` (n,) of one term to a float64 tensor (q,); see :func:`observe`.
Observation = Callable[[Tensor], Tensor]


class LinearOperator(ABC):
    """A real symmetric matrix of shape ``(n, n)``, known through its products.

    A subclass implements ``_matvec``, and ``_matmat`` if multiplying several columns at once is cheaper. Vectors are
    flat tensors of shape ``(n,)``, or ``(n, k)`` with one vector per column, in the operator's dtype and on its device.
    ``+``, ``-`` and multiplication by a number give linear combinations of operators.

    Parameters
    ----------
    n : int
        Dimension.
    dtype : torch.dtype
    device : torch.device or str

    Attributes
    ----------
    kind : str
        Name of the matrix in reports, such as ``"Hessian"``.
    space : VectorSpace
        Supplies inner products and random vectors. An operator whose vectors are split over processes sets its own.
    """

    kind = "matrix"

    def __init__(self, n: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.space = VectorSpace(n, dtype=dtype, device=device)

    def __repr__(self) -> str:
        about = (self.kind, f"n={self.n:,}", str(self.dtype).removeprefix("torch."), str(self.device))
        return one_line(self, about)

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

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        """The operators that this one is composed of; none by default."""
        return ()

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` of shape (n,); ``v`` must not be modified."""

    def _matmat(self, v: Tensor) -> Tensor:
        """The product with ``v`` of shape (n, k)."""
        return torch.stack([self._matvec(column) for column in v.unbind(1)], dim=1)

    def __matmul__(self, v: Tensor) -> Tensor:
        """``A v`` for a vector (n,) or columns (n, k); raises InputError if shape, dtype or device do not fit."""
        self._check(v)
        v = v.detach()
        if not v.numel():
            return v.clone()
        version = None if v.is_inference() else v._version
        product = self._matvec(v) if v.dim() == 1 else self._matmat(v)
        if not isinstance(product, Tensor) or (product.shape, product.dtype) != (v.shape, v.dtype):
            got = (
                f"{tuple(product.shape)} of {product.dtype}" if isinstance(product, Tensor) else type(product).__name__
            )
            raise InputError(
                f"{type(self).__name__} gave a product of {got} with a vector of {tuple(v.shape)} of {v.dtype}; they "
                "must be alike"
            )
        if version is not None and v._version != version:
            raise InputError(f"{type(self).__name__} changes the vector that it multiplies; let it work on a copy")
        return product

    def _check(self, v: Tensor) -> None:
        """Raise InputError if ``v`` cannot be multiplied."""
        n = self.space.local_n
        if not isinstance(v, Tensor) or v.dim() not in (1, 2) or v.shape[0] != n:
            got = f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            raise InputError(f"the operator multiplies tensors of shape ({n},) or ({n}, k), got {got}")
        if v.dtype != self.dtype or v.device.type != self.device.type:
            raise InputError(
                f"the operator is {self.dtype} on {self.device}, the vector {v.dtype} on {v.device}; "
                "convert the vector with .to(op.device, op.dtype)"
            )

    def reference(self) -> LinearOperator | None:
        """The same matrix with products that round differently, in float64 if these do not; None if there is none.

        The difference between the two measures how far products are off.
        """
        return None

    def to_dense(self) -> Tensor:
        """The matrix as a tensor (n, n), computed by ``n`` products."""
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
        """This operator as a scipy one: numpy vectors of ``dtype`` (default: its own) around products in its own."""
        import scipy.sparse.linalg  # here, since the import takes 0.2 s and few callers need it

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
    """A weighted sum ``A = sum_b w_b A_b`` (for a risk: over batches) whose terms can be observed in a product."""

    @abstractmethod
    def _observe(self, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """See :func:`observe`."""


def observe(op: LinearOperator, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """Take one product ``A v``, and apply a linear function to the product ``A_b v`` of each term of the operator.

    ``look`` maps ``A_b v`` (n,) to a float64 tensor (q,). Returns ``A v`` (n,), the weights ``w_b`` (b,), whose sum is
    1, and the values of ``look`` (b, q). An operator that is not a sum counts as a single term.
    """
    op._check(v)
    if isinstance(op, TermwiseOperator):
        return op._observe(v.detach(), look)
    product = op @ v
    return product, torch.ones(1, dtype=torch.float64, device=v.device), look(product)[None]


def require_operator(op: object) -> None:
    """Raise InputError if ``op`` is not a LinearOperator."""
    if not isinstance(op, LinearOperator):
        raise InputError(
            f"a LinearOperator is needed, got {type(op).__name__}; a matrix becomes one with MatrixOperator(matrix), a "
            "risk with HessianOperator(risk)"
        )


def require_one_space(parts: list[LinearOperator]) -> VectorSpace:
    """The space in which all these operators act; raises InputError if they do not share one."""
    for op in parts:
        require_operator(op)
        if op.space != parts[0].space:
            first = parts[0]
            raise InputError(
                f"operators of shape {first.shape} ({first.dtype}, {first.device}) and {op.shape} ({op.dtype}, "
                f"{op.device}) do not combine; build both from the same risk"
            )
    return parts[0].space


def references_of(parts: Sequence[LinearOperator]) -> list[LinearOperator] | None:
    """The references of all these operators; None if none has one, or one is in lower precision and has none.

    An operator in float64 without a reference stands for its own.
    """
    found = [op.reference() for op in parts]
    missing = any(new is None and op.dtype != torch.float64 for op, new in zip(parts, found, strict=True))
    if missing or not any(found):
        return None
    return [op if new is None else new for op, new in zip(parts, found, strict=True)]


class _Combination(TermwiseOperator):
    """The linear combination ``sum_i c_i A_i``."""

    def __init__(self, parts: tuple[tuple[float, LinearOperator], ...]) -> None:
        self.space = require_one_space([op for _, op in parts])
        self._parts = parts

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The combination in words, such as ``"Hessian - 0.5 GGN"``."""
        words = []
        for scale, op in self._parts:
            size = "" if abs(scale) == 1 else f"{abs(scale):g} "
            words += ["-" if scale < 0 else "+", f"{size}{op.kind}"]
        return " ".join(words[1:] if words[0] == "+" else words)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return tuple(op for _, op in self._parts)

    def _product(self, v: Tensor) -> Tensor:
        (scale, op), *rest = self._parts
        total = scale * (op @ v)
        for scale, op in rest:
            total.add_(op @ v, alpha=scale)
        return total

    _matvec = _matmat = _product

    def reference(self) -> LinearOperator | None:
        """The same combination of the parts' references; None if one of them has none."""
        parts = references_of([op for _, op in self._parts])
        scales = [scale for scale, _ in self._parts]
        return None if parts is None else _Combination(tuple(zip(scales, parts, strict=True)))

    def _observe(self, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
        total, weights, seen = torch.zeros_like(v), torch.empty(0), torch.empty(0)
        for i, (scale, op) in enumerate(self._parts):
            product, own_weights, own_seen = observe(op, v, look)
            total.add_(product, alpha=scale)
            if i and not (len(own_weights) == len(weights) and torch.equal(own_weights, weights)):
                # the parts are sums over different terms, so only their totals can be added, as a single term
                seen, own_seen = (weights @ seen)[None], (own_weights @ own_seen)[None]
                weights = own_weights = torch.ones_like(weights[:1])
            weights, seen = own_weights, seen + scale * own_seen if i else scale * own_seen
        return total, weights, seen


class MatrixOperator(LinearOperator):
    """A dense symmetric matrix (n, n) as an operator; raises InputError if it is not square, real and symmetric.

    Attributes
    ----------
    matrix : Tensor, shape (n, n)

    Examples
    --------
    >>> MatrixOperator(torch.diag(torch.tensor([1.0, 2.0]))) @ torch.ones(2)
    tensor([1., 2.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
            raise InputError(f"a square real matrix is needed, got shape {tuple(matrix.shape)} of {matrix.dtype}")
        bound = (
            100 * torch.finfo(matrix.dtype).eps * torch.linalg.vector_norm(matrix, torch.inf) if len(matrix) else 0.0
        )
        strips = zip(matrix.split(256), matrix.split(256, dim=1), strict=True)  # the whole difference takes its memory
        if not all((rows - columns.T).abs().max() <= bound for rows, columns in strips if len(rows)):
            raise InputError("the matrix is not symmetric; pass (A + A.T) / 2 if that is what is meant")
        super().__init__(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
        self.matrix = matrix

    def reference(self) -> LinearOperator | None:
        """The same matrix in float64, if it is not; one in float64 is multiplied to within its rounding."""
        return None if self.dtype == torch.float64 else MatrixOperator(self.matrix.double())

    def to_dense(self) -> Tensor:
        """A copy of the matrix, without taking any product."""
        return self.matrix.clone()

    def _product(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    _matvec = _matmat = _product
