"""Results of eigensolvers and estimators: frozen containers of numpy arrays, each number with its error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.numbers import format_headline, format_number, format_with_error
from pyhessian_spectra.shown import html_table, one_line

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Eigenpair:
    """One eigenvalue with its errors and its eigenvector, as iterating over :class:`Eigenpairs` gives it.

    ``str`` has the value with the largest of its errors, ``float`` the value.

    Parameters
    ----------
    eigenvalue : float
    reach : float
        How far it may be off, see :attr:`Eigenpairs.reach`.
    converged : bool
    data_stderr : float or None
        Standard error due to the data being a sample; None if unknown.
    eigenvector : ndarray, shape (n,), or None
    """

    eigenvalue: float
    reach: float
    converged: bool
    data_stderr: float | None = None
    eigenvector: NDArray[np.floating[Any]] | None = None

    def __str__(self) -> str:
        return format_headline(self.eigenvalue, self.reach, self.data_stderr)

    def __repr__(self) -> str:
        return one_line(self, [*_errors(self.eigenvalue, self.reach, self.data_stderr), _status(self.converged)])

    def __float__(self) -> float:
        return self.eigenvalue


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in ascending order, their eigenvectors and their errors.

    The arrays ascend. Iterating goes from the largest eigenvalue to the smallest and gives an :class:`Eigenpair` each.

    Parameters
    ----------
    eigenvalues : ndarray, shape (k,), float64, ascending
    residuals : ndarray, shape (k,), float64
        ``||A v - theta v||`` for the unit vector ``v``, computed from fresh products. For a symmetric operator some
        true eigenvalue lies within this distance (Parlett 1998, theorem 4.5.1).
    converged : ndarray, shape (k,), bool
        Whether the residual meets the tolerance.
    eigenvectors : ndarray, shape (n, k), or None
        Orthonormal columns; None if they were not kept.
    num_products : int
        Products spent, including those for the residuals.
    lower, upper : ndarray, shape (k,), or None
        Certified interval of each eigenvalue, which allows for rounding of the products; None if none was computed. It
        holds some eigenvalue, and the eigenvalue of that rank if it is :meth:`placed` at its edge, or if all
        eigenvalues are known.
    others : (float, float) or None
        Interval that holds all other eigenvalues, except with probability 0.01, so that none beyond it was missed. If
        it is known, ``lower`` and ``upper`` may be Kato-Temple bounds that rely on it.
    data_stderr : ndarray, shape (k,), or None
        Standard error due to the data being a sample, not part of the other errors; None if unknown.
    rounding : float
        Measured bound on the error of the products with the eigenvectors, which ``lower`` and ``upper`` allow for.
    data_influences : ndarray, shape (b, k), or None
        How much each batch of the data, or each example, moves each eigenvalue: ``data_stderr`` is the root of the sum
        of squares over them, and of the difference of eigenvalues on the same data it is that of the differences.
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
    rounding: float = 0.0
    data_influences: Floats | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def __iter__(self) -> Iterator[Eigenpair]:
        """From the largest to the smallest, against the order of the arrays."""
        reach, data, vectors = self.reach, self.data_stderr, self.eigenvectors
        for i in reversed(range(len(self))):
            yield Eigenpair(
                float(self.eigenvalues[i]),
                float(reach[i]),
                bool(self.converged[i]),
                None if data is None else float(data[i]),
                None if vectors is None else vectors[:, i],
            )

    def __repr__(self) -> str:
        pairs = list(self)
        if not pairs:
            return one_line(self, ["none"])
        ends = dict.fromkeys((str(pairs[0]), str(pairs[-1])))
        missed = sum(not pair.converged for pair in pairs)
        status = f"{missed} not converged" if missed else "all converged"
        return one_line(self, [f"{len(pairs)}: {' to '.join(ends)}", status, f"{self.num_products:,} products"])

    def _repr_html_(self) -> str:
        columns = ["Eigenvalue ± error", "Data, ± standard error", "Status"]
        rows = ([*_columns(pair.eigenvalue, pair.reach, pair.data_stderr), _status(pair.converged)] for pair in self)
        return html_table(f"{len(self)} eigenvalues, from the largest", columns, rows)

    @property
    def reach(self) -> Floats:
        """How far (k,) each eigenvalue may be off: the reach of its certified interval, or its residual without one."""
        if self.lower is None or self.upper is None:
            return self.residuals
        return np.maximum(self.upper - self.eigenvalues, self.eigenvalues - self.lower)

    def placed(self, *, from_top: bool) -> NDArray[np.bool_]:
        """Whether (k,) each interval lies beyond ``others`` at the edge that ranks are counted from; else False.

        Then the eigenvalue has that rank. At an edge that has few eigenvalues those of the other one may be listed.
        """
        if self.lower is None or self.upper is None or self.others is None:
            return np.zeros(len(self), dtype=bool)
        return self.lower > self.others[1] if from_top else self.upper < self.others[0]

    def take(self, index: Any) -> Eigenpairs:
        """The pairs at ``index`` (a slice or an index array), with all that belongs to them."""
        return replace(
            self,
            eigenvalues=self.eigenvalues[index],
            residuals=self.residuals[index],
            converged=self.converged[index],
            eigenvectors=None if self.eigenvectors is None else self.eigenvectors[:, index],
            lower=None if self.lower is None else self.lower[index],
            upper=None if self.upper is None else self.upper[index],
            data_stderr=None if self.data_stderr is None else self.data_stderr[index],
            data_influences=None if self.data_influences is None else self.data_influences[:, index],
        )


@dataclass(frozen=True)
class TraceEstimate:
    """A trace, or another sum over eigenvalues, with its standard error.

    Parameters
    ----------
    value : float
    stderr : float
        Standard error from random probes; 0 if the value is exact up to rounding.
    num_products : int
        Products spent on this value alone; products of a shared pass are counted with the pass.
    method : str
        How the value was computed.
    num_samples : int
        Independent samples behind ``stderr``; 0 if the value is exact or their number is unknown. Intervals then use
        normal quantiles.
    data_stderr : float, optional
        Standard error due to the data being a sample, not part of ``stderr``; None if unknown.
    rounding : float
        Measured bound on the error of ``value`` due to the rounding of products, not part of ``stderr``.
    samples : ndarray, shape (r,), or None
        What each probe alone says, of which ``value`` is the mean.
    data_influences : ndarray, shape (b,), or None
        How much each batch of the data, or each example, moves the value: ``data_stderr`` is their norm, and of the
        difference of two values on the same data it is that of the differences.
    """

    value: float
    stderr: float
    num_products: int
    method: str = "exact"
    num_samples: int = 0
    data_stderr: float | None = None
    rounding: float = 0.0
    samples: Floats | None = field(default=None, repr=False, compare=False)
    data_influences: Floats | None = field(default=None, repr=False, compare=False)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided confidence interval at ``level``, by Student's t with ``num_samples - 1`` degrees of freedom.

        It is wider by ``rounding`` at both ends.

        >>> TraceEstimate(3.0, 0.0, 10).interval()
        (3.0, 3.0)
        """
        half = self._half_width(level)
        return self.value - half, self.value + half

    @property
    def reach(self) -> float:
        """Half the width of the 95 % confidence interval."""
        return self._half_width(0.95)

    def _half_width(self, level: float) -> float:
        drawn = t_quantile((1 + level) / 2, self.num_samples) * self.stderr if self.stderr > 0 else 0.0
        return self.rounding + drawn

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        """The value with the largest of its errors."""
        return format_headline(self.value, self.reach, self.data_stderr)

    def __repr__(self) -> str:
        return one_line(self, [*_errors(self.value, self.reach, self.data_stderr), self.method])

    def _repr_html_(self) -> str:
        row = [*_columns(self.value, self.reach, self.data_stderr), self.method, f"{self.num_products:,}"]
        columns = ["Value ± 95 %", "Data, ± standard error", "Found by", "Products"]
        return html_table("An estimate and its errors", columns, [row])


def _errors(value: float, reach: float, data: float | None) -> list[str]:
    """A value with its own error and, where it is known, that of the data."""
    return [format_with_error(value, reach), *([] if data is None else [f"data ± {format_number(data, digits=2)}"])]


def _columns(value: float, reach: float, data: float | None) -> tuple[str, str]:
    return format_with_error(value, reach), "unknown" if data is None else format_number(data, digits=2)


def _status(converged: bool) -> str:
    return "converged" if converged else "not converged"


def t_quantile(probability: float, num_samples: int) -> float:
    """Quantile of Student's t for a mean of ``num_samples`` samples; of the normal distribution if below 2."""
    import scipy.special  # takes a third of a second

    if num_samples < 2:
        return float(scipy.special.ndtri(probability))
    return float(scipy.special.stdtrit(num_samples - 1, probability))
