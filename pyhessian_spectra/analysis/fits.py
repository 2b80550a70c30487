"""Laws of random matrices fitted to a bulk, with the distance that says how badly they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike

from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.analysis.merged import merge_nodes
from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

# Values of the law's distribution function are interpolated between this many points, equal steps of an angle: the
# trapezoidal rule is then off by less than 1e-6.
_ANGLES = np.linspace(0.0, np.pi, 2001)


@dataclass(frozen=True)
class BulkFit:
    """A law fitted to the bulk of a spectrum.

    Parameters
    ----------
    law : str
        ``"marchenko-pastur"`` or ``"semicircle"``.
    parameters : mapping of str to float
        ``variance`` and ``ratio``, or ``centre`` and ``radius``.
    edges : tuple of float
        Ends of the law's continuous part, in eigenvalue units.
    distance : float
        Kolmogorov distance between the law and the bulk, in [0, 1]: the largest difference of their distribution
        functions.
    """

    law: str
    parameters: Mapping[str, float]
    edges: tuple[float, float]
    distance: float


def fit_semicircle(source: Spectrum | BlockAnalysis | ArrayLike) -> BulkFit:
    """The semicircle of least Kolmogorov distance from the bulk that :func:`split_bulk` finds.

    Parameters
    ----------
    source : Spectrum, BlockAnalysis or array_like
        Exact or estimated; eigenvalues in any order.

    Raises
    ------
    InputError
        The bulk has no width.
    """
    nodes, weights = _bulk(source)
    mean, variance = _moments(nodes, weights)
    start = np.array([mean, np.log(2 * np.sqrt(variance))])
    (centre, log_radius), distance = _closest(lambda p: _semicircle(p[0], np.exp(p[1])), start, nodes, weights)
    radius = float(np.exp(log_radius))
    parameters = {"centre": float(centre), "radius": radius}
    return BulkFit("semicircle", parameters, (float(centre) - radius, float(centre) + radius), distance)


def fit_marchenko_pastur(source: Spectrum | BlockAnalysis | ArrayLike) -> BulkFit:
    r"""The Marchenko-Pastur law of least Kolmogorov distance from the bulk that :func:`split_bulk` finds.

    The law of :math:`X X^T / N` for an ``n x N`` matrix of independent entries with the given ``variance`` and
    ``ratio = n / N``: edges ``variance (1 +- sqrt(ratio))^2`` and, for a ratio above 1, an atom at zero.

    Parameters
    ----------
    source : Spectrum, BlockAnalysis or array_like
        Exact or estimated; eigenvalues in any order.

    Raises
    ------
    InputError
        The bulk has no width, or its mean is not positive.
    """
    nodes, weights = _bulk(source)
    mean, variance = _moments(nodes, weights)
    if not mean > 0:
        raise InputError(f"the mean of the bulk is {mean:.3g}; a Marchenko-Pastur law needs a positive one")
    start = np.log([mean, variance / mean**2])
    logs, distance = _closest(lambda p: _marchenko_pastur(*np.exp(p)), start, nodes, weights)
    scale, ratio = (float(value) for value in np.exp(logs))
    edges = (scale * (1 - math.sqrt(ratio)) ** 2, scale * (1 + math.sqrt(ratio)) ** 2)
    return BulkFit("marchenko-pastur", {"variance": scale, "ratio": ratio}, edges, distance)


# A law is a continuous distribution function and the mass of an atom at zero on top of it.
_Law = tuple[Callable[[Floats], Floats], float]


def _semicircle(centre: float, radius: float) -> _Law:
    def cdf(x: Floats) -> Floats:
        t = np.clip((x - centre) / radius, -1.0, 1.0)
        return 0.5 + (t * np.sqrt(1 - t**2) + np.arcsin(t)) / np.pi

    return cdf, 0.0


def _marchenko_pastur(variance: float, ratio: float) -> _Law:
    # with x = variance (1 + ratio + 2 sqrt(ratio) cos(phi)) the density becomes smooth in phi
    x = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(_ANGLES)
    density = 2 * np.sin(_ANGLES) ** 2 / (np.pi * np.maximum(x, np.finfo(np.float64).tiny))
    above = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(_ANGLES))])
    continuous = min(1.0, 1.0 / ratio)

    def cdf(t: Floats) -> Floats:
        return np.interp(t, variance * x[::-1], (continuous - above)[::-1], left=0.0, right=continuous)

    return cdf, 1.0 - continuous


def _bulk(source: Spectrum | BlockAnalysis | ArrayLike) -> tuple[Floats, Floats]:
    """Nodes and weights inside the bulk, the weights summing to 1; nodes that are zero to rounding are zero."""
    split = split_bulk(source)
    measured = merge_nodes(source)
    inside = (measured.values >= split.bulk[0]) & (measured.values <= split.bulk[1])
    nodes, weights = measured.values[inside], measured.weights[inside]
    if nodes[-1] - nodes[0] <= split.zero_threshold:
        raise InputError(f"the bulk is the single value {nodes[0]:.3g}; there is no width to fit a law to")
    nodes = np.where(np.abs(nodes) <= split.zero_threshold, 0.0, nodes)
    return nodes, weights / weights.sum()


def _moments(nodes: Floats, weights: Floats) -> tuple[float, float]:
    mean = float(weights @ nodes)
    return mean, float(weights @ (nodes - mean) ** 2)


def _closest(law: Callable[[Floats], _Law], start: Floats, nodes: Floats, weights: Floats) -> tuple[Floats, float]:
    """Parameters of least Kolmogorov distance, from the moments as a start (Nelder and Mead 1965)."""
    grid, index = np.unique(np.append(nodes, 0.0), return_inverse=True)
    mass = np.bincount(index, weights=np.append(weights, 0.0), minlength=len(grid))
    after = np.cumsum(mass)
    before = after - mass

    def distance(parameters: Floats) -> float:
        cdf, atom = law(parameters)
        values = cdf(grid)
        below, upto = values + atom * (grid > 0), values + atom * (grid >= 0)
        return float(max(np.abs(upto - after).max(), np.abs(below - before).max()))

    found = scipy.optimize.minimize(distance, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-6})
    return found.x, float(found.fun)
