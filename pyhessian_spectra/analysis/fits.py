"""Laws of random matrices fitted to a bulk, with the distance that says how badly they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.analysis.merged import merge_nodes
from pyhessian_spectra.analysis.resolution import WIDEST_SHARE
from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

# Values of the law's distribution function are interpolated between this many points, equal steps of an angle: the
# trapezoidal rule is then off by less than 1e-6.
_ANGLES = np.linspace(0.0, np.pi, 2001)


@dataclass(frozen=True, repr=False)
class BulkFit(Shown):
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
        Kolmogorov distance from the bulk, in [0, 1]: the largest difference of the distribution functions.
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
        The bulk has no width, is not resolved, or is mostly zero.
    """
    nodes, weights, mean, variance = _bulk(source)
    start = np.array([mean, np.log(2 * np.sqrt(variance))])
    best, distance = _closest(lambda x, p: _semicircle(x, p[0], np.exp(p[1])), start, nodes, weights)
    centre, radius = float(best[0]), float(np.exp(best[1]))
    found = BulkFit("semicircle", {"centre": centre, "radius": radius}, (centre - radius, centre + radius), distance)
    return _holding_most(found, nodes, weights)


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
        The bulk has no width, is not resolved, or is mostly zero, or its mean is not positive.
    """
    nodes, weights, mean, variance = _bulk(source)
    if not mean > 0:
        raise InputError(f"the mean of the bulk is {mean:.3g}; a Marchenko-Pastur law needs a positive one")
    start = np.log([mean, variance / mean**2])
    logs, distance = _closest(lambda x, p: _marchenko_pastur(x, *np.exp(p)), start, nodes, weights)
    scale, ratio = (float(value) for value in np.exp(logs))
    edges = (scale * (1 - math.sqrt(ratio)) ** 2, scale * (1 + math.sqrt(ratio)) ** 2)
    found = BulkFit("marchenko-pastur", {"variance": scale, "ratio": ratio}, edges, distance)
    return _holding_most(found, nodes, weights)


def _holding_most(fit: BulkFit, nodes: Floats, weights: Floats) -> BulkFit:
    """The fit; raises InputError where most of the bulk lies outside its edges, at an atom or near it."""
    inside = float(weights[(nodes >= fit.edges[0]) & (nodes <= fit.edges[1])].sum())
    if inside <= 0.5:
        told = f"the closest law holds {inside:.1%} of the bulk between its edges"
        raise InputError(f"{told}; no law is fitted to what lies elsewhere, at zero or near it")
    return fit


def _semicircle(x: Floats, centre: float, radius: float) -> tuple[Floats, float]:
    """The continuous part of the distribution function at ``x``, and the mass of an atom at zero on top of it."""
    t = np.clip((x - centre) / radius, -1.0, 1.0)
    return 0.5 + (t * np.sqrt(1 - t**2) + np.arcsin(t)) / np.pi, 0.0


def _marchenko_pastur(x: Floats, variance: float, ratio: float) -> tuple[Floats, float]:
    """The distribution function and the atom, as for the semicircle."""
    # at nodes variance (1 + ratio + 2 sqrt(ratio) cos(phi)) the density becomes smooth in phi
    nodes = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(_ANGLES)
    density = 2 * np.sin(_ANGLES) ** 2 / (np.pi * np.maximum(nodes, np.finfo(np.float64).tiny))
    above = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(_ANGLES))])
    continuous = min(1.0, 1.0 / ratio)
    values = np.interp(x, variance * nodes[::-1], (continuous - above)[::-1], left=0.0, right=continuous)
    return values, 1.0 - continuous


def _bulk(source: Spectrum | BlockAnalysis | ArrayLike) -> tuple[Floats, Floats, float, float]:
    """Nodes inside the bulk, those that are zero to rounding set to zero; weights of sum 1; their mean and variance."""
    split, measured = split_bulk(source), merge_nodes(source)
    if (error := measured.spectrum.cdf_error(level=1 - FAILURE)) > WIDEST_SHARE:
        told = f"how its eigenvalues are distributed is known to {100 * error:.0f} points of 100 only"
        raise InputError(f"{told}; no law is fitted to what is not resolved")
    inside = (measured.values >= split.bulk[0]) & (measured.values <= split.bulk[1])
    nodes, weights = measured.values[inside], measured.weights[inside]
    if nodes[-1] - nodes[0] <= split.zero_threshold:
        raise InputError(f"the bulk is the single value {nodes[0]:.3g}; there is no width to fit a law to")
    nodes = np.where(np.abs(nodes) <= split.zero_threshold, 0.0, nodes)
    weights = weights / weights.sum()
    if (zero := float(weights[nodes == 0].sum())) > 0.5:
        raise InputError(f"{zero:.0%} of the bulk are zero to rounding; no law is fitted to what is mostly zero")
    mean = float(weights @ nodes)
    return nodes, weights, mean, float(weights @ (nodes - mean) ** 2)


def _closest(
    law: Callable[[Floats, Floats], tuple[Floats, float]], start: Floats, nodes: Floats, weights: Floats
) -> tuple[Floats, float]:
    """Parameters of least Kolmogorov distance, from the moments as a start (Nelder and Mead 1965)."""
    grid, index = np.unique(np.append(nodes, 0.0), return_inverse=True)
    mass = np.bincount(index, weights=np.append(weights, 0.0), minlength=len(grid))
    after = np.cumsum(mass)
    before = after - mass

    def distance(parameters: Floats) -> float:
        values, atom = law(grid, parameters)
        below, upto = values + atom * (grid > 0), values + atom * (grid >= 0)
        return float(max(np.abs(upto - after).max(), np.abs(below - before).max()))

    from scipy.optimize import minimize  # takes a third of a second, and only fits need it

    found = minimize(distance, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-6})
    return found.x, float(found.fun)
