"""Bilinear forms of an operator's terms, by sections of the coordinates, from products that are taken anyway."""

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
    """Bilinear forms of each term of ``A = sum_b w_b A_b`` with ``p`` orthonormal vectors and ``r`` random probes.

    ``E_s`` projects onto section ``s`` of the coordinates. Probes are unit vectors, uniform in the complement of the
    deflated vectors. So the trace of ``E_s A_b`` is the sum of the deflated vectors' forms plus ``complement`` times
    the expected form of a probe.

    Parameters
    ----------
    weights : ndarray, shape (b,)
        ``w_b``, whose sum is 1.
    compressed : ndarray, shape (b, p, p)
        ``V^T A_b V``.
    vectors : ndarray, shape (b, p, s)
        ``v^T E_s A_b v`` for each vector ``v``.
    probes : ndarray, shape (b, r, s)
        ``u^T E_s A_b u`` for each probe ``u``.
    images : ndarray, shape (b, r)
        ``(A u)^T A_b u`` for each probe whose image ``A u`` was known before its product, else of shape (b, 0).
    deflated : ndarray of bool, shape (p,)
        Which vectors the probes are orthogonal to.
    complement : int
        Dimension of the complement of the deflated vectors.
    """

    weights: Floats
    compressed: Floats
    vectors: Floats
    probes: Floats
    images: Floats
    deflated: NDArray[np.bool_]
    complement: int

    @classmethod
    def of_vectors(cls, weights: Floats, compressed: Floats, n: int) -> Forms:
        """Those of orthonormal vectors alone, whose products were not taken apart by sections."""
        b, p = compressed.shape[:2]
        none = np.zeros(p, dtype=bool)
        return cls(weights, compressed, np.empty((b, p, 0)), np.empty((b, 0, 0)), np.empty((b, 0)), none, n)

    @property
    def trace_samples(self) -> Floats:
        """One estimate of ``tr(E_s A_b)`` per probe, shape (b, r, s); one exact value if ``complement`` is 0."""
        exact = self.vectors[:, self.deflated].sum(axis=1, keepdims=True)
        return exact + self.complement * self.probes if self.complement else exact


class FormsRecorder:
    """Takes products with an operator and records their forms; ``sections`` are lengths in local coordinates."""

    def __init__(self, op: LinearOperator, sections: Sequence[int] | None = None) -> None:
        self.op, self._sections = op, list(sections or [op.space.local_n])
        self._weights: Floats = np.empty(0)
        self._compressed: list[Floats] = []
        self._vectors: list[Floats] = []
        self._probes: list[Floats] = []
        self._images: list[Floats] = []

    def products(self, vectors: Tensor) -> Iterator[Tensor]:
        """Yield the products (n,) with the columns of (n, p), one by one, and record their forms."""
        for v in vectors.T.contiguous():
            product, forms = self._multiply(v, vectors)
            self._vectors.append(forms[:, : len(self._sections)])
            self._compressed.append(forms[:, len(self._sections) :])
            yield product

    def probe(self, u: Tensor, image: Tensor | None = None) -> Tensor:
        """The product with a unit vector (n,), whose forms are recorded as those of a probe; ``image`` is its own."""
        product, forms = self._multiply(u, u[:, None][:, :0] if image is None else image[:, None])
        self._probes.append(forms[:, : len(self._sections)])
        if image is not None:
            self._images.append(forms[:, -1])
        return product

    def forms(self, deflated: NDArray[np.bool_]) -> Forms:
        """The recorded forms; ``deflated`` (p,) says which of the vectors the probes are orthogonal to."""
        empty = np.empty((len(self._weights), 0, len(self._sections)))
        crossed = np.stack(self._compressed, axis=2) if self._compressed else np.empty((len(self._weights), 0, 0))
        return Forms(
            self._weights,
            crossed,
            np.stack(self._vectors, axis=1) if self._vectors else empty,
            np.stack(self._probes, axis=1) if self._probes else empty,
            np.stack(self._images, axis=1) if self._images else empty[:, :, 0],
            deflated,
            self.op.n - int(deflated.sum()),
        )

    def _multiply(self, v: Tensor, vectors: Tensor) -> tuple[Tensor, Floats]:
        """The product with ``v``, and each term's forms: with ``v`` by section, and with each of ``vectors``."""
        space = self.op.space

        def look(term: Tensor) -> Tensor:
            own = space.section_inner(v, term, self._sections)
            return torch.cat([own, space.gram(vectors.T, term[:, None])[:, 0]]) if vectors.shape[1] else own

        product, weights, forms = observe(self.op, v, look)
        self._weights = weights.cpu().numpy()
        return product, forms.cpu().numpy()
