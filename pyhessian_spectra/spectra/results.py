"""What eigensolvers and estimators return: frozen containers of numpy arrays, each number with its error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in ascending order with what is known of their accuracy.

    Parameters
    ----------
    eigenvalues : ndarray, shape (k,), float64, ascending
    residuals : ndarray, shape (k,), float64
        ``||A v - theta v||`` for the unit vector ``v``, recomputed with fresh products. For a symmetric
        operator some true eigenvalue lies within this distance (Parlett 1998, theorem 4.5.1).
    converged : ndarray, shape (k,), bool
    eigenvectors : ndarray, shape (n, k), or None
        Orthonormal columns; None where they were not kept.
    num_products : int
        Products spent, the residual checks included.
    lower, upper : ndarray, shape (k,), or None
        Certified interval of each eigenvalue, rounding of the products included; None where none was computed. It holds
        an eigenvalue; the one of that rank where it lies outside ``others``, or where all eigenvalues are known.
    others : (float, float) or None
        An interval that holds all eigenvalues but these, except with probability 0.01: no larger and no smaller one was
        missed. Where it is known, ``lower`` and ``upper`` may be Kato-Temple bounds that rely on it.
    data_stderr : ndarray, shape (k,), or None
        Standard error from the data being a sample, apart from all the above; None where it is not known.
    """

    eigenvalues: Floats
    residuals: Floats
    converged: NDArray[np.bool_]
    eigenvectors: NDArray[np.floating[Any]] | None = None
    num_products: int = 0
    lower: Floats | None = None
    upper: Floats | None = None
    others: tuple[float, float] | None = None
    data_stderr: Floats | None = None

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def take(self, index: Any) -> Eigenpairs:
        """The pairs at ``index`` (a slice or an index array), keeping everything that belongs to them."""
        return replace(
            self,
            eigenvalues=self.eigenvalues[index],
            residuals=self.residuals[index],
            converged=self.converged[index],
            eigenvectors=None if self.eigenvectors is None else self.eigenvectors[:, index],
            lower=None if self.lower is None else self.lower[index],
            upper=None if self.upper is None else self.upper[index],
            data_stderr=None if self.data_stderr is None else self.data_stderr[index],
        )


@dataclass(frozen=True)
class TraceEstimate:
    """A trace, or another sum over eigenvalues, with its standard error.

    Parameters
    ----------
    value : float
    stderr : float
        0 when the value is exact up to rounding.
    num_products : int
        Products it cost; those of a shared pass are counted there.
    method : str
        How it was found.
    num_samples : int
        Independent samples behind ``stderr``; 0 when the value is exact, or taken for many when that is not known.
    data_stderr : float, optional
        Standard error from the data being a sample, apart from ``stderr``; None where it is not known.
    """

    value: float
    stderr: float
    num_products: int
    method: str = "exact"
    num_samples: int = 0
    data_stderr: float | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval at a level, by Student's t with ``num_samples - 1`` degrees of freedom.

        >>> TraceEstimate(3.0, 0.0, 10).interval()
        (3.0, 3.0)
        """
        if self.stderr == 0:
            return self.value, self.value
        half = t_quantile((1 + level) / 2, self.num_samples) * self.stderr
        return self.value - half, self.value + half

    def __float__(self) -> float:
        return self.value


def t_quantile(probability: float, num_samples: int) -> float:
    """The quantile of Student's t for a mean of so many samples; the normal one where their number is not known."""
    if num_samples < 2:
        return float(scipy.special.ndtri(probability))
    return float(scipy.special.stdtrit(num_samples - 1, probability))
