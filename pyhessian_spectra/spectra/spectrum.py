"""Spectrum: the distribution of an operator's eigenvalues, and bounds on its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.shown import html_table, one_line
from pyhessian_spectra.spectra.quadrature import bracket, probe_bounds, smoothed_bounds, step_bounds
from pyhessian_spectra.spectra.results import Floats

# Kernels are evaluated on a grid in blocks of at most this many grid-by-node entries (8 bytes each).
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Spectrum:
    """A probability measure on the real line that stands for the eigenvalue distribution of an operator.

    There is one row per probe. Exact eigenvalues are a single row with weights ``1 / n``; deflated quadrature is atoms
    followed by quadrature nodes. Values that break the rules below raise InputError.

    Parameters
    ----------
    nodes : ndarray, shape (r, m), float64
        Eigenvalues or Ritz values, finite, in the units of the operator.
    weights : ndarray, shape (r, m), float64
        Non-negative; each row sums to 1. Rows shorter than ``m`` are padded with weight 0.
    n : int
        Dimension of the operator; mass times ``n`` is a number of eigenvalues.
    num_atoms : int
        Number of eigenvalues that are known individually, each of weight ``1 / n``; every row begins with them.
    dtype : str
        Precision of the products it was found with, such as ``"float32"``.
    exact : bool
        True if the nodes are all the eigenvalues, so that there is no sampling error.
    rounding : float
        Measured bound on how far the rounding of products has moved an eigenvalue or a quadrature; bounds allow for it.
    residual : float
        Norm of the residuals of the atoms' eigenpairs: no eigenvalue, of an atom or of the others, is farther than this
        from where the pairs and the quadrature in their complement put it (Weyl's inequality).
    whole : ndarray, shape (2, m), float64, optional
        Nodes and weights of one more probe's quadrature, of the whole operator with its atoms: that of the process
        that found them, which is longer than the others. It narrows the bounds that hold with a probability.
    facts : mapping
        JSON scalars about the run for reports, such as the number of Lanczos steps. No number depends on them.
    """

    nodes: Floats
    weights: Floats
    n: int
    _: KW_ONLY
    num_atoms: int
    dtype: str
    exact: bool = False
    rounding: float = 0.0
    residual: float = 0.0
    whole: Floats | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.nodes.ndim != 2 or self.nodes.shape != self.weights.shape:
            raise InputError(
                f"nodes and weights must share one shape (probes, nodes); got {self.nodes.shape} and "
                f"{self.weights.shape}"
            )
        if not np.isfinite(self.nodes).all() or not np.isfinite(self.weights).all():
            raise InputError("nodes and weights must be finite; drop or repair the probe that produced them")
        if (self.weights < 0).any() or not np.allclose(self.weights.sum(axis=1), 1.0, atol=1e-8):
            raise InputError("weights must be non-negative and sum to 1 in each row")
        if not 0 <= self.num_atoms <= self.nodes.shape[1]:
            raise InputError(f"num_atoms must be between 0 and the {self.nodes.shape[1]} nodes, got {self.num_atoms}")

    @classmethod
    def from_eigenvalues(cls, eigenvalues: ArrayLike, *, dtype: str = "float64", rounding: float = 0.0) -> Spectrum:
        """The exact spectrum of an operator, given all ``n`` eigenvalues; raises InputError if there are none.

        >>> Spectrum.from_eigenvalues([0.0, 0.0, 2.0]).moment(1)
        0.6666666666666666
        """
        values = np.sort(np.asarray(eigenvalues, dtype=np.float64).ravel())
        if values.size == 0:
            raise InputError("eigenvalues is empty; a spectrum needs at least one")
        n = values.size
        weights = np.full((1, n), 1.0 / n)
        return cls(values[None, :], weights, n, num_atoms=n, dtype=dtype, exact=True, rounding=rounding)

    @classmethod
    def from_quadrature(
        cls, atoms: Floats, rows: Sequence[tuple[Floats, Floats]], n: int, *, dtype: str, **known: Any
    ) -> Spectrum:
        """Atoms of weight ``1 / n`` and, in one row per probe, the quadrature of the remaining spectrum.

        ``rows`` hold nodes, and weights whose sum is 1; if there are no rows, the atoms must be the whole spectrum.
        """
        width = max((len(nodes) for nodes, _ in rows), default=0)
        nodes = np.empty((max(1, len(rows)), len(atoms) + width))
        weights = np.zeros_like(nodes)
        nodes[:, : len(atoms)], weights[:, : len(atoms)] = atoms, 1 / n
        for i, (theta, weight) in enumerate(rows):
            stop = len(atoms) + len(theta)
            nodes[i, len(atoms) : stop], weights[i, len(atoms) : stop] = theta, (n - len(atoms)) / n * weight
            nodes[i, stop:] = theta[-1]
        return cls(nodes, weights, n, num_atoms=len(atoms), dtype=dtype, exact=not rows, **known)

    def __repr__(self) -> str:
        known = ["exact"] if self.exact else [self._probed, f"fractions ± {self._halfwidth} (95 %)"]
        return one_line(self, [f"n={self.n:,}", self._range, *known])

    def _repr_html_(self) -> str:
        rows = [("Eigenvalues n", f"{self.n:,}"), ("Known one by one", f"{self.num_atoms:,}"), ("Range", self._range)]
        if not self.exact:
            rows += [("Estimated from", self._probed), ("Fractions of eigenvalues, ± 95 %", self._halfwidth)]
        rows.append(("Precision of products", self.dtype))
        return html_table("Distribution of eigenvalues" + self.exact * ", exact", ["", ""], rows)

    @property
    def _range(self) -> str:
        return " to ".join(map(format_number, self.support))

    @property
    def _probed(self) -> str:
        return f"{self.num_probes} probe{'s' * (self.num_probes > 1)}"

    @property
    def _halfwidth(self) -> str:
        return format_number(self.cdf_error(level=0.95), digits=2)

    @property
    def num_probes(self) -> int:
        """Number of rows ``r``."""
        return self.nodes.shape[0]

    @property
    def off(self) -> float:
        """How far an eigenvalue may be from where the distribution has it: ``rounding`` and ``residual`` together."""
        return self.rounding + self.residual

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest node with positive weight."""
        used = self.nodes[self.weights > 0]
        return float(used.min()), float(used.max())

    def flat(self) -> tuple[Floats, Floats]:
        """The average over probes as one measure: ascending nodes and their weights, each shape (r * m,)."""
        order = np.argsort(self.nodes, axis=None, kind="stable")
        return self.nodes.ravel()[order], self.weights.ravel()[order] / self.num_probes

    def cdf(self, grid: ArrayLike) -> Floats:
        """Fraction of eigenvalues at or below each grid point, averaged over probes; shape of ``grid``, float64."""
        grid = np.asarray(grid, dtype=np.float64)
        nodes, weights = self.flat()
        cumulative = np.concatenate([[0.0], np.cumsum(weights)])
        return np.minimum(cumulative[np.searchsorted(nodes, grid, side="right")], 1.0)

    def cdf_bounds(
        self, grid: ArrayLike, *, level: float | None = None, others: tuple[float, float] | None = None
    ) -> tuple[Floats, Floats]:
        """Bounds on the fraction of eigenvalues at or below each grid point.

        Without ``level`` they hold the average of the probes' spectral measures: each measure lies between the bounds
        of Chebyshev, Markov and Stieltjes for its quadrature, wherever its mass lies between the nodes. With ``level``
        they are a confidence band for the operator's own distribution, which holds at all points of the line together,
        by a bound for independent probes uniform on the sphere. The quadrature of the ``whole``, where there is one, is
        such a probe too and narrows the band. The weights of the atoms are known; for an exact spectrum both bounds are
        the CDF. Both move apart by ``rounding`` and ``residual`` along the axis. Raises InputError if ``level`` is not
        between 0 and 1.

        Parameters
        ----------
        grid : array_like
        level : float, optional
            Probability that the band holds the operator's distribution everywhere.
        others : (float, float), optional
            An interval known to hold all eigenvalues but the atoms, such as ``Eigenpairs.others``.

        Returns
        -------
        lower, upper : ndarray, shape of ``grid``, float64
        """
        grid = np.asarray(grid, dtype=np.float64)
        left, right = grid - self.off, grid + self.off
        if self.exact:
            return self.cdf(left), self.cdf(right)
        lower, upper = step_bounds(*self._seen_bounds, left)[0], step_bounds(*self._seen_bounds, right)[1]
        lower, upper = self._rest_bounds(lower, upper, level if level is None else self._split(level))
        if others is not None:
            lower = np.where(grid >= others[1], 1.0, np.where(grid < others[0], 0.0, lower))
            upper = np.where(grid >= others[1], 1.0, np.where(grid < others[0], 0.0, upper))
        fewest, most = (np.searchsorted(np.sort(self._atoms), x, side="right") / self.n for x in (left, right))
        share = 1 - len(self._atoms) / self.n
        lower, upper = fewest + share * lower, np.minimum(most + share * upper, 1.0)
        if level is None or self._long is None:
            return lower, upper
        least, most = self._long.cdf_bounds(grid, level=self._split(level))
        return np.maximum(lower, least), np.minimum(upper, most)

    def cdf_error(self, *, level: float) -> float:
        """Half the greatest distance between the bounds of :meth:`cdf_bounds`, or a little more; 0 if exact."""
        if self.exact:
            return 0.0
        _, lower, upper = self._seen_bounds
        lower, upper = self._rest_bounds(lower, upper, each := self._split(level))
        share = 1 - len(self._atoms) / self.n
        error = share / 2 * float((np.append(upper, 1.0) - np.append(0.0, lower)).max())
        return error if self._long is None else min(error, self._long.cdf_error(level=each))

    @cached_property
    def _long(self) -> Spectrum | None:
        """The quadrature of the whole operator as a spectrum of its own."""
        if self.whole is None:
            return None
        return Spectrum(self.whole[:1], self.whole[1:], self.n, num_atoms=0, dtype=self.dtype, rounding=self.rounding)

    def _split(self, level: float) -> float:
        """The level at which each of the two bounds must hold so that both hold together at ``level``."""
        return level if self.whole is None else (1 + level) / 2

    @property
    def _atoms(self) -> Floats:
        """The eigenvalues that are known individually."""
        return self.nodes[0, : self.num_atoms]

    @cached_property
    def _seen_bounds(self) -> tuple[Floats, Floats, Floats]:
        """Points, and bounds there on the average of the probes' spectral measures without the atoms."""
        atoms = len(self._atoms)
        share = 1 - atoms / self.n
        rows = [bracket(x[atoms:], w[atoms:] / share) for x, w in zip(self.nodes, self.weights, strict=True)]
        points = np.unique(np.concatenate([row[0] for row in rows]))
        lower, upper = np.mean([step_bounds(*row, points) for row in rows], axis=0).clip(0.0, 1.0)
        return points, lower, np.append(upper[:-1], 1.0)

    def _rest_bounds(self, lower: Floats, upper: Floats, level: float | None) -> tuple[Floats, Floats]:
        """Bounds for the eigenvalues themselves from bounds for the probes; unchanged if ``level`` is None."""
        if level is None:
            return lower, upper
        return probe_bounds(lower, upper, self.num_probes, self.n - len(self._atoms), level=level)

    def density(self, grid: ArrayLike, *, bandwidth: float) -> Floats:
        """Gaussian-smoothed density per unit eigenvalue, averaged over probes; shape of ``grid``, float64.

        ``bandwidth`` is the standard deviation of the Gaussian, in eigenvalue units; it must be positive, else
        InputError is raised. The density is not renormalised, so mass outside the grid is missing from its integral.
        """
        nodes, weights = self.flat()
        nodes, weights = nodes[weights > 0], weights[weights > 0]
        return _in_blocks(grid, nodes.size, lambda x: smoothed_bounds(x, nodes, nodes, weights, bandwidth))[0]

    def density_bounds(
        self,
        grid: ArrayLike,
        *,
        bandwidth: float,
        level: float | None = None,
        others: tuple[float, float] | None = None,
        coordinate: Callable[[ArrayLike], Floats] = np.asarray,
    ) -> tuple[Floats, Floats]:
        """Bounds on the Gaussian-smoothed density that follow from those of :meth:`cdf_bounds`, at all points together.

        They are the least and the greatest smoothed density of all distributions between the bounds of the CDF. Each
        quantile lies in an interval; the upper bound puts it at the interval's nearest point to the grid point, the
        lower bound at the farthest. For an exact spectrum both are :meth:`density`.

        Parameters
        ----------
        grid : array_like
        bandwidth : float
            Standard deviation of the Gaussian, in units of the coordinate; must be positive.
        level, others
            As for :meth:`cdf_bounds`.
        coordinate : callable, optional
            Increasing function of the eigenvalue, such as that of ``EigenvalueAxis.decades``: smoothing is Gaussian
            along its values. By default the eigenvalue itself.

        Returns
        -------
        lower, upper : ndarray, shape of ``grid``, float64
            Per unit of the coordinate.
        """
        grid = coordinate(grid)
        off, atoms = self.off, self._atoms
        below, above = coordinate(atoms - off), coordinate(atoms + off)
        masses = np.full(len(atoms), 1 / self.n)
        if self.exact:
            return _in_blocks(grid, atoms.size, lambda x: smoothed_bounds(x, below, above, masses, bandwidth))
        points, lower, upper = self._seen_bounds
        lower, upper = self._rest_bounds(lower, upper, level)
        # Between points, the upper bound is that of the next point, the lower bound that of the last one.
        ranks = np.unique(np.concatenate([[0.0, 1.0], lower, upper]))
        middle = (ranks[1:] + ranks[:-1]) / 2
        masses = np.append((1 - len(atoms) / self.n) * np.diff(ranks), masses)
        left = np.concatenate([[-np.inf], coordinate(points - off)])[np.searchsorted(upper, middle)]
        right = np.append(coordinate(points + off), np.inf)[np.searchsorted(lower, middle)]
        if others is not None:
            left, right = np.clip(left, *coordinate(others)), np.clip(right, *coordinate(others))
        left, right = np.append(left, below), np.append(right, above)
        return _in_blocks(grid, masses.size, lambda x: smoothed_bounds(x, left, right, masses, bandwidth))

    def moment(self, power: int) -> float:
        """Mean of ``eigenvalue ** power``: ``n`` times moment 1 is the trace, moment 2 the squared Frobenius norm."""
        return float((self.weights * self.nodes**power).sum(axis=1).mean())


def _in_blocks(
    grid: ArrayLike, size: int, evaluate: Callable[[Floats], tuple[Floats, Floats]]
) -> tuple[Floats, Floats]:
    """Evaluate two functions on a grid in parts, so that no array of grid points by ``size`` is too large."""
    grid = np.asarray(grid, dtype=np.float64)
    step = max(1, _BLOCK // max(1, size))
    parts = [evaluate(grid.ravel()[i : i + step]) for i in range(0, max(1, grid.size), step)]
    first, second = (np.concatenate(part).reshape(grid.shape) for part in zip(*parts, strict=True))
    return first, second
