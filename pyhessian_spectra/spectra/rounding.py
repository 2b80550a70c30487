"""How far products are off: measured by taking a few of them again, in another precision or at another rounding."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra.lanczos import Tridiagonal
from pyhessian_spectra.spectra.operator import LinearOperator

# A norm is estimated from the images of a few random sign vectors. This factor covers their spread: for an error of
# rank one, where it is widest, two vectors underestimate the norm by more in about one case of twenty.
SAFETY = 3.0

# Sums with random signs of all that was multiplied, whose products are taken again.
_SUMS = 2


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

    @functools.cached_property
    def _sums(self) -> Tensor:
        """Sums of vectors, and the same sums of their products, for :meth:`bound`."""
        return torch.zeros(2, self._op.space.local_n, _SUMS, dtype=torch.float64, device=self._op.device)

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
        traces += norms  # v^T E v spreads by up to the norm about the trace, and may be small by chance
        return Off(SAFETY * norms**0.5, SAFETY * traces**0.5)

    def add_process(self, process: Tridiagonal) -> None:
        """Take a Lanczos relation ``A V = V T + beta_m v_{m+1} e_m^T`` into account in :meth:`bound`."""
        g = self._signs(len(process.alphas)).numpy()
        right = process.alphas[:, None] * g
        right[1:] += process.betas[:-1, None] * g[:-1]
        right[:-1] += process.betas[:-1, None] * g[1:]
        v, product = process.combine(np.hstack([g, right])).double().split(_SUMS, dim=1)
        if process.residual is not None:
            product = product.addr(process.residual.double(), torch.from_numpy(g[-1]).to(product))
        self._sums[0] += v
        self._sums[1] += product

    def add_pairs(self, vectors: Tensor, products: Iterable[Tensor], deflated: NDArray[np.bool_]) -> Iterator[Tensor]:
        """Yield the products with the columns of (n, k), and take them into account in :meth:`bound`.

        Lanczos relations added earlier are those of ``A`` in the complement of the ``deflated`` (k,) columns.
        """
        v, product = self._sums
        inside = v.clone()  # of the processes, whose products have components along the deflated vectors
        signs = self._signs(vectors.shape[1]).to(v.device)
        for column, w, sign, is_deflated in zip(vectors.unbind(1), products, signs, deflated, strict=True):
            column, exact = column.double(), w.double()
            v.addr_(column, sign)
            product.addr_(exact, sign)
            if is_deflated:
                product.addr_(column, self._op.space.gram(exact[None], inside)[0])
            yield w

    def bound(self, against: Tensor | None = None) -> float:
        """A bound on ``||F||_F``, ``F`` the errors of all relations and products added, from two products.

        ``against`` (n, k) are columns in whose complement all processes ran, if their products were not added.
        """
        v, product = self._sums
        if not v.any():
            return 0.0
        errors = torch.stack([self._difference(*each) for each in zip(v.unbind(1), product.unbind(1), strict=True)], 1)
        if against is not None:
            errors = errors - against.double() @ self._op.space.gram(against.T.double(), errors)
        return SAFETY * float(self._op.space.column_inner(errors, errors).mean()) ** 0.5

    def _signs(self, size: int) -> Tensor:
        """Random signs, float64, a column for each sum."""
        return torch.randint(0, 2, (size, _SUMS), generator=self._generator).double() * 2 - 1

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
