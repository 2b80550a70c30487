"""Smoothed densities of several spectra on one axis, and what sets each apart from that of a reference.

Densities are per decade of an axis that is linear around zero and logarithmic beyond, and smoothed along it. Their
integral is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyhessian_spectra.analysis.resolution import to_decades, typical_size
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.similarity import WHOLE, comparable
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import Spectrum
from pyhessian_spectra.spectra.quadrature import smoothed_bounds
from pyhessian_spectra.spectra.results import Floats, t_quantile

# Standard deviation of the Gaussian, in decades.
_BANDWIDTH = 0.2

# Points of the grid, so many in a bandwidth.
_POINTS = 4

# The spread of fewer paired probes is not trusted; the variance of random probes is then bounded from the spectra.
_FEWEST = 10


@dataclass(frozen=True, repr=False)
class Densities(Shown):
    """Densities of ``T`` spectra at ``g`` points, and their differences from that of a reference.

    Parameters
    ----------
    threshold : float
        Where the axis turns from linear to logarithmic, in units of the eigenvalues.
    bandwidth : float
        Standard deviation of the Gaussian by which densities are smoothed, in decades of the axis.
    eigenvalues : ndarray, shape (g,)
        The points.
    values : ndarray, shape (T, g)
        Fractions of eigenvalues per decade.
    differences : ndarray, shape (T, g)
        ``values`` less those of the reference.
    reach : ndarray, shape (T, g)
        Half the width of a 95 % confidence interval of each difference alone, due to random probes, rounding, and what
        quadratures leave open between their nodes. The last is estimated, not bounded: by how far the density is from
        that with each node's weight spread evenly up to the middles between nodes. That of the probes is, from ten of
        them on, from the spread of the differences of probes one by one. With fewer the variance is bounded: for a
        probe uniform on the sphere of ``d`` dimensions that of ``v^T f v`` is at most ``2 / (d + 2)`` times the mean
        square of ``f`` over the spectrum, and of a difference of two such terms, neither negative on average, at most
        the sum of theirs.
    data_stderr : ndarray, shape (T, g)
        Standard errors of the differences due to the data being a sample, from differences on the same parts of the
        data; NaN where parts were not analysed.
    """

    threshold: float
    bandwidth: float
    eigenvalues: Floats
    values: Floats
    differences: Floats
    reach: Floats
    data_stderr: Floats

    @property
    def exceeds(self) -> np.ndarray:
        """Where (T, g) differences are larger than their 95 % errors of computation and, as far as known, of data."""
        return np.abs(self.differences) > self.reach + t_quantile(0.975, 0) * np.nan_to_num(self.data_stderr)


def compare_densities(analyses: Sequence[SpectralAnalysis], reference: int = 0) -> Densities:
    """Densities of the whole matrices, and their differences from that of the analysis at the place ``reference``."""
    spectra = [analysis.full.spectrum for analysis in analyses]
    threshold = sorted(map(typical_size, spectra))[len(spectra) // 2]
    ends = to_decades([end for spectrum in spectra for end in spectrum.support], threshold)
    width = _BANDWIDTH / _POINTS
    grid = np.arange(np.floor(ends.min() / width) - 3 * _POINTS, np.ceil(ends.max() / width) + 3 * _POINTS + 1) * width
    smooth = _Smoothing(grid, threshold)
    each = [smooth.rows(spectrum) for spectrum in spectra]
    variances = [smooth.variance(spectrum) for spectrum in spectra]
    allowed = [smooth.rounding(spectrum) + smooth.unresolved(spectrum) for spectrum in spectra]
    own = analyses[reference]
    known = _of_parts(own, smooth)
    reach, data = np.zeros((len(spectra), len(grid))), np.full((len(spectra), len(grid)), np.nan)
    for i, analysis in enumerate(analyses):
        if i == reference:
            data[i] = 0.0
            continue
        rows, count = (each[i], each[reference]), min(len(each[i]), len(each[reference]))
        if count >= _FEWEST and len(rows[0]) == len(rows[1]):
            reach[i] = t_quantile(0.975, count) * np.std(rows[0] - rows[1], axis=0, ddof=1) / count**0.5
        else:
            reach[i] = t_quantile(0.975, 0) * np.sqrt(variances[i] + variances[reference])
        reach[i] += allowed[i] + allowed[reference]
        parts = _of_parts(analysis, smooth)
        if len(parts) == len(known) > 1 and not comparable({"one": own, "other": analysis}, checkpoints=False):
            whole = rows[0].mean(axis=0) - rows[1].mean(axis=0)
            data[i] = paired_error(parts - known, whole)
    values = np.array([rows.mean(axis=0) for rows in each])
    axis = threshold * np.sinh(grid * np.log(10.0))
    return Densities(threshold, _BANDWIDTH, axis, values, values - values[reference], reach, data)


def paired_error(parts: Floats, whole: Floats) -> Floats:
    """The standard error of a difference, from those on ``S`` disjoint parts of the data (S, ...) and that on all.

    As :class:`~pyhessian_spectra.SimilarityMatrix` has it for distances.
    """
    return np.sqrt(((parts - whole) ** 2).mean(axis=0) / (len(parts) - 1))


@dataclass(frozen=True)
class _Smoothing:
    """A Gaussian around each point of a grid (g,), in decades."""

    grid: Floats
    threshold: float

    def rows(self, spectrum: Spectrum) -> Floats:
        """The density (r, g) that each probe sees."""
        return np.array([self._kernel(x) @ w for x, w in zip(spectrum.nodes, spectrum.weights, strict=True)])

    def variance(self, spectrum: Spectrum) -> Floats:
        """A bound on the variance (g,) of the mean of the probes' densities; see :class:`Densities`."""
        if spectrum.exact:
            return np.zeros(len(self.grid))
        atoms, rest = spectrum.num_atoms, spectrum.n - spectrum.num_atoms
        others = zip(spectrum.nodes[:, atoms:], spectrum.weights[:, atoms:], strict=True)
        squares = np.mean([self._kernel(x) ** 2 @ w for x, w in others], axis=0)
        return 2 / (rest + 2) * (rest / spectrum.n) * squares / spectrum.num_probes

    def rounding(self, spectrum: Spectrum) -> Floats:
        """By how much the density (g,) changes at most where each eigenvalue moves by ``spectrum.off``."""
        nodes, weights = spectrum.flat()
        left, right = (to_decades(nodes + side * spectrum.off, self.threshold) for side in (-1, 1))
        least, greatest = smoothed_bounds(self.grid, left, right, weights, _BANDWIDTH)
        value = self._kernel(nodes) @ weights
        return np.maximum(greatest - value, value - least)

    def unresolved(self, spectrum: Spectrum) -> Floats:
        """How far the density (g,) is from that with each node's weight spread evenly up to the middles between nodes.

        Both are readings of the same quadrature, which agree where nodes are nearer to one another than the bandwidth.
        """
        from scipy.special import ndtr

        if spectrum.exact:
            return np.zeros(len(self.grid))
        atoms, apart = spectrum.num_atoms, []
        for nodes, weights in zip(spectrum.nodes[:, atoms:], spectrum.weights[:, atoms:], strict=True):
            kept = weights > 0
            places, own = to_decades(nodes[kept], self.threshold), weights[kept]
            if len(places) < 2:
                continue
            gaps = np.diff(places)
            ends = np.concatenate([[places[0] - gaps[0] / 2], places[:-1] + gaps / 2, [places[-1] + gaps[-1] / 2]])
            below = ndtr((self.grid[:, None] - ends) / _BANDWIDTH)
            widths = np.maximum(np.diff(ends), 1e-9 * _BANDWIDTH)
            apart.append((below[:, :-1] - below[:, 1:]) @ (own / widths) - self._kernel(nodes[kept]) @ own)
        return np.abs(np.mean(apart, axis=0)) if apart else np.full(len(self.grid), np.inf)

    def _kernel(self, eigenvalues: Floats) -> Floats:
        apart = (self.grid[:, None] - to_decades(eigenvalues, self.threshold)) / _BANDWIDTH
        return np.exp(-0.5 * apart**2) / (np.sqrt(2 * np.pi) * _BANDWIDTH)


def _of_parts(analysis: SpectralAnalysis, smooth: _Smoothing) -> Floats:
    """The densities (S, g) of the whole matrix on the parts of the data that were analysed."""
    return np.array([smooth.rows(part[WHOLE]).mean(axis=0) for part in analysis.parts if WHOLE in part])
