"""Bilinear forms of an operator's terms and of sections of its coordinates, from products that are taken anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.spectra.operator import LinearOperator, observe
from pyhessian_spectra.spectra.results import Floats


@dataclass(frozen=True)
class Forms:
    """What products with ``p`` orthonormal vectors and ``r`` random probes say of each term of ``A = sum_b w_b A_b``.

    With the projector ``E_s`` onto a section of the coordinates, the trace of ``E_s A_b`` is the sum of the forms of
    the vectors that were deflated plus ``complement`` times the mean form of the probes, in expectation: the probes are
    unit vectors, uniform in the complement of those.

    Parameters
    ----------
    weights : ndarray, shape (b,)
        ``w_b``, of sum 1.
    compressed : ndarray, shape (b, p, p)
        ``V^T A_b V``.
    vectors : ndarray, shape (b, p, s)
        ``v^T E_s A_b v`` of each vector ``v``.
    probes : ndarray, shape (b, r, s)
        The same of each probe.
    deflated : ndarray of bool, shape (p,)
        Which vectors the probes are orthogonal to.
    complement : int
        Dimension of their complement.
    """

    weights: Floats
    compressed: Floats
    vectors: Floats
    probes: Floats
    deflated: NDArray[np.bool_]
    complement: int

    @property
    def trace_samples(self) -> Floats:
        """Estimates of ``tr(E_s A_b)``, one a probe, shape (b, r, s); one that is exact where nothing is left over."""
        exact = self.vectors[:, self.deflated].sum(axis=1, keepdims=True)
        return exact + self.complement * self.probes if self.complement else exact


class FormsRecorder:
    """Takes products with an operator and records their forms.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    sections : sequence of int, optional
        Lengths of the sections of the coordinates, of sum ``n``; by default one section.
    """

    def __init__(self, op: LinearOperator, sections: Sequence[int] | None = None) -> None:
        self.op, self._sections = op, list(sections or [op.space.local_n])
        self._weights: Floats = np.empty(0)
        self._compressed: list[Floats] = []
        self._vectors: list[Floats] = []
        self._probes: list[Floats] = []

    def products(self, vectors: Tensor) -> Iterator[Tensor]:
        """The products with the columns of (n, p), one by one."""
        for v in vectors.T.contiguous():
            product, forms = self._multiply(v, vectors)
            self._vectors.append(forms[:, : len(self._sections)])
            self._compressed.append(forms[:, len(self._sections) :])
            yield product

    def probe(self, u: Tensor) -> Tensor:
        """The product with a unit vector, which is recorded as a probe."""
        product, forms = self._multiply(u, u[:, None][:, :0])
        self._probes.append(forms)
        return product

    def forms(self, deflated: NDArray[np.bool_]) -> Forms:
        """What was recorded; ``deflated`` tells which of the vectors the probes are orthogonal to."""
        empty = np.empty((len(self._weights), 0, len(self._sections)))
        crossed = np.stack(self._compressed, axis=2) if self._compressed else np.empty((len(self._weights), 0, 0))
        return Forms(
            self._weights,
            crossed,
            np.stack(self._vectors, axis=1) if self._vectors else empty,
            np.stack(self._probes, axis=1) if self._probes else empty,
            deflated,
            self.op.n - int(deflated.sum()),
        )

    def _multiply(self, v: Tensor, vectors: Tensor) -> tuple[Tensor, Floats]:
        """The product with ``v``, and of each term its forms with ``v`` by section and with each of the vectors."""
        space = self.op.space

        def look(term: Tensor) -> Tensor:
            own = space.section_inner(v, term, self._sections)
            return torch.cat([own, space.gram(vectors.T, term[:, None])[:, 0]]) if vectors.shape[1] else own

        product, weights, forms = observe(self.op, v, look)
        self._weights = weights.cpu().numpy()
        return product, forms.cpu().numpy()
