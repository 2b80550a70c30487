"""The spectrum of a semidefinite matrix ``A^T A`` from the Gram matrix ``A A^T`` of its factor's rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.dense import top_vectors
from pyhessian_spectra.spectra.results import Floats, TraceEstimate
from pyhessian_spectra.spectra.spectrum import Spectrum

_FOUND_BY = "Gram matrix"

# Relative to the largest, an eigenvalue from a backward-stable solver in float64 is off by less for any size in use.
_SOLVED = 100 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, repr=False)
class GramMatrix(Shown):
    """The Gram matrix ``K = A A^T`` of the rows of ``A``; ``A^T A`` has its eigenvalues and, beyond them, zeros.

    Parameters
    ----------
    matrix : ndarray, shape (m, m), float64
        ``K``.
    n : int
        Length of the rows.
    dtype : str
        Of the rows, such as ``"float32"``.
    rows_off : float
        Bound on the Frobenius norm of the rounding error of ``A``.
    sums_off : float
        Bound on the Frobenius norm of the rounding error of its inner products.
    """

    matrix: Floats
    n: int
    dtype: str
    rows_off: float
    sums_off: float

    @property
    def rounding(self) -> float:
        """A bound on how far rounding has moved any eigenvalue, and on the Frobenius norm of the error of ``K``."""
        # the error of (A + E)(A + E)^T, and Weyl's inequality
        return self.rows_off * (2 * self._norm**0.5 + self.rows_off) + self.sums_off + _SOLVED * self._norm

    def among(self, rows: NDArray[np.bool_], share: float = 1.0) -> GramMatrix:
        """The Gram matrix of some rows (m,) only, divided by ``share``: that of a mean over part of the data."""
        chosen = self.matrix[np.ix_(rows, rows)] / share
        return GramMatrix(chosen, self.n, self.dtype, self.rows_off / share**0.5, self.sums_off / share)

    def eigenvalues(self) -> Floats:
        """The eigenvalues (m,) of ``K``, ascending; where ``m > n``, the ``n`` largest of them."""
        return self._eigenvalues[max(0, len(self.matrix) - self.n) :].copy()

    def top(self, k: int) -> tuple[Floats, Floats]:
        """The ``k`` largest eigenvalues of ``K``, ascending, and their eigenvectors (m, k)."""
        return self._eigenvalues[len(self.matrix) - k :], top_vectors(self._tensor, k, self._eigenvalues)

    def spectrum(self) -> Spectrum:
        """The exact spectrum of ``A^T A``: the eigenvalues of ``K``, and zeros."""
        found = self.eigenvalues()
        values = np.concatenate([np.zeros(self.n - len(found)), found])
        return Spectrum.from_eigenvalues(np.sort(values), dtype=self.dtype, rounding=self.rounding)

    def trace(self) -> TraceEstimate:
        """The trace of ``A^T A``."""
        value = float(np.trace(self.matrix))
        off = self.rows_off * (2 * max(value, 0.0) ** 0.5 + self.rows_off) + len(self.matrix) ** 0.5 * self.sums_off
        return TraceEstimate(value, 0.0, 0, _FOUND_BY, rounding=off + _SOLVED * value)

    def frobenius(self) -> TraceEstimate:
        """The Frobenius norm of ``A^T A``."""
        return TraceEstimate(float(np.linalg.norm(self.matrix)), 0.0, 0, _FOUND_BY, rounding=self.rounding)

    def rank(self) -> int:
        """How many eigenvalues are certain not to be zero."""
        return int((self.eigenvalues() > self.rounding).sum())

    def effective_dimension(self, damping: float) -> float:
        """``sum_i lambda_i / (lambda_i + damping)``; raises InputError unless the damping is positive."""
        if not damping > 0:
            raise InputError(f"damping must be positive, got {damping}")
        values = self.eigenvalues().clip(0.0)
        return float((values / (values + damping)).sum())

    @functools.cached_property
    def _eigenvalues(self) -> Floats:
        return np.asarray(torch.linalg.eigvalsh(self._tensor), np.float64)

    @property
    def _tensor(self) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.matrix))

    @property
    def _norm(self) -> float:
        return max(0.0, float(self._eigenvalues[-1])) if len(self._eigenvalues) else 0.0
