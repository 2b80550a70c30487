"""Meter: an operator that counts the products taken with another operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from pyhessian_spectra.spectra.operator import LinearOperator, MatrixOperator, Observation, TermwiseOperator, observe


class Take(Protocol):
    """A function through which a :class:`Meter` takes products; it may return answers kept from an earlier run.

    ``op`` is the operator metered, or its reference; ``ask`` names the request about ``v``; ``call`` computes the
    answer, a list of tensors.
    """

    def __call__(self, op: LinearOperator, ask: str, v: Tensor, call: Callable[[], list[Tensor]]) -> list[Tensor]: ...


def _plainly(op: LinearOperator, ask: str, v: Tensor, call: Callable[[], list[Tensor]]) -> list[Tensor]:
    return call()


class Meter(TermwiseOperator):
    """An operator that counts products, and takes them through a function that may time, show or record them.

    Parameters
    ----------
    op : LinearOperator
    take : callable, optional
        See :class:`Take`; by default products are taken directly.

    Attributes
    ----------
    num_products : int
        Products so far; a product with ``k`` columns counts as ``k``.

    Examples
    --------
    >>> import torch
    >>> from pyhessian_spectra import MatrixOperator
    >>> meter = Meter(MatrixOperator(torch.eye(3)))
    >>> _ = meter @ torch.ones(3, 2)
    >>> meter.num_products
    2
    """

    def __init__(self, op: LinearOperator, take: Take = _plainly) -> None:
        self.op, self.space, self.kind = op, op.space, op.kind
        self._take, self._count = take, [0]

    @property
    def num_products(self) -> int:
        """Products so far, with the references' included."""
        return self._count[0]

    def reference(self) -> Meter | None:
        """A meter of the operator's reference, which counts and takes products like this one and together with it."""
        inner = self.op.reference()
        if inner is None:
            return None
        other = Meter(inner, self._take)
        other._count = self._count
        return other

    @classmethod
    def of(cls, op: LinearOperator) -> Meter:
        """``op`` itself if it is a meter already, so that no product is counted twice; else a meter for it."""
        return op if isinstance(op, Meter) else cls(op)

    def _product(self, v: Tensor) -> Tensor:
        self._count[0] += 1 if v.dim() == 1 else v.shape[1]
        return self._take(self.op, "product", v, lambda: [self.op @ v])[0]

    _matvec = _matmat = _product

    def _observe(self, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
        self._count[0] += 1
        product, weights, seen = self._take(self.op, "observation", v, lambda: list(observe(self.op, v, look)))
        return product, weights, seen

    def to_dense(self) -> Tensor:
        """The matrix (n, n); no product is taken if the metered operator is a MatrixOperator."""
        inner = self.op
        while isinstance(inner, Meter):
            inner = inner.op
        return inner.to_dense() if isinstance(inner, MatrixOperator) else super().to_dense()
