"""How far products are off: measured by taking a few of them again, in another precision or at another rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra.lanczos import Tridiagonal
from pyhessian_spectra.spectra.operator import LinearOperator

# A norm is estimated from the images of a few random sign vectors. This factor covers their spread: for an error of
# rank one, where it is widest, two vectors underestimate the norm by more in about one case of twenty.
_SAFETY = 3.0


@dataclass(frozen=True)
class Off:
    """Bounds on the rounding error ``E`` of all products: on ``||E||_F`` and on ``|tr E|``."""

    norm: float
    trace: float


class Rounding:
    """Measures the rounding error ``E`` of an operator's products.

    A product is taken again with :meth:`LinearOperator.reference`; if there is none, or if it fails, as the sum of the
    products with two parts of the vector. The random signs are the same for each operator.
    """

    def __init__(self, op: LinearOperator) -> None:
        self._op, self._other = op, op.reference()
        self._generator = torch.Generator().manual_seed(0)

    def everywhere(self, num_vectors: int = 1) -> Off:
        """Bounds for the whole matrix, from products with random sign vectors."""
        vectors = [self._op.space.rademacher(self._generator) for _ in range(num_vectors)]
        return self.seen([(v, self._op @ v) for v in vectors])

    def seen(self, products: Sequence[tuple[Tensor, Tensor]]) -> Off:
        """As :meth:`everywhere`, from products with random vectors that were taken anyway: pairs ``v, A v``."""
        space, norms, traces = self._op.space, 0.0, 0.0
        for v, product in products:
            error = self._difference(v, product)
            norms += space.norm(error) ** 2 / len(products)
            traces += space.inner(error, v) ** 2 / len(products)
        return Off(_SAFETY * norms**0.5, _SAFETY * traces**0.5)

    def along(self, vectors: Tensor, products: Tensor) -> float:
        """A bound on ``||E V||_F`` from sums with random signs: ``V S`` (n, r) and their products, both float64."""
        squares = [
            self._op.space.norm(self._difference(v, w)) ** 2
            for v, w in zip(vectors.unbind(1), products.unbind(1), strict=True)
        ]
        return _SAFETY * (sum(squares) / len(squares)) ** 0.5

    def signs(self, size: int, count: int) -> Tensor:
        """Random signs (size, count), float64."""
        return torch.randint(0, 2, (size, count), generator=self._generator).double() * 2 - 1

    def of_process(self, process: Tridiagonal, against: Tensor | None = None) -> float:
        """A bound on the norm of the error ``F`` of a Lanczos relation, ``A V = V T + beta_m v_{m+1} e_m^T + F``.

        The process ran in the complement of the columns ``against`` (n, k). All its eigenvalues are those of a matrix
        that differs from ``A`` by at most ``2 ||F||``.
        """
        g = self.signs(len(process.alphas), 1).numpy()
        right = process.alphas[:, None] * g
        right[1:] += process.betas[:-1, None] * g[:-1]
        right[:-1] += process.betas[:-1, None] * g[1:]
        v, product = process.combine(np.hstack([g, right])).double().unbind(1)
        if process.residual is not None:
            product = product.add(process.residual, alpha=float(g[-1, 0]))
        error = self._difference(v, product)
        if against is not None:
            error = error - against.double() @ self._op.space.gram(against.T.double(), error[:, None])[:, 0]
        return _SAFETY * self._op.space.norm(error)

    def _difference(self, v: Tensor, product: Tensor) -> Tensor:
        """``product - A v`` (n,) in float64, where ``A v`` is taken again."""
        if self._other is not None:
            try:
                return product.double() - (self._other @ v.to(self._other.dtype)).double()
            except OutOfMemoryError:
                raise
            except InputError:  # such as a model that cannot run in float64
                self._other = None
        v = v.to(self._op.dtype)
        part = torch.where(torch.arange(len(v), device=v.device) % 2 == 0, v, torch.zeros_like(v))
        return product.double() - (self._op @ part).double() - (self._op @ (v - part)).double()
