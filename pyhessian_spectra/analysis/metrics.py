"""How far two spectra are apart: functions of two of them, zero where they are the same.

Each takes two :class:`Spectrum` and compares the eigenvalue distributions as measures of mass one, whatever the
dimensions, so that a layer can be compared with the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyhessian_spectra.spectra import Spectrum
from pyhessian_spectra.spectra.results import Floats

Metric = Callable[[Spectrum, Spectrum], float]

# Bins of an axis of magnitudes: so many in a decade, over so many decades below the largest of both spectra.
_BINS, _DECADES = 2, 6

# PyHessian's figure, which the published distance is taken from: points, variance for a range up to 1, and what is
# added before the logarithm.
_POINTS, _VARIANCE, _FLOOR = 10_000, 1e-5, 1e-7


def wasserstein(first: Spectrum, second: Spectrum) -> float:
    """The Wasserstein-1 distance, in units of the eigenvalues: the mean distance that eigenvalues must be moved.

    It is at least the difference of the mean eigenvalues, ``|tr A / n_A - tr B / n_B|``.
    """
    return _transport(*first.flat(), *second.flat())


def scaled_wasserstein(first: Spectrum, second: Spectrum) -> float:
    """The Wasserstein-1 distance of spectra whose mean magnitude is one: it does not change with the units of either.

    Each is divided by ``E |lambda|``, its own Wasserstein-1 distance from zero, so that the distance is at most 2. A
    spectrum of zeros is at distance 1 from any other.
    """
    pairs = []
    for nodes, weights in (first.flat(), second.flat()):
        size = float(weights @ np.abs(nodes))
        pairs += [nodes / size if size else nodes, weights]
    return _transport(*pairs)


def jensen_shannon(first: Spectrum, second: Spectrum) -> float:
    """The Jensen-Shannon divergence in nats, at most ``ln 2``, on a common axis with bins of half a decade (Lin 1991).

    Negative and positive eigenvalues have bins of their own down to a millionth of the largest magnitude of either
    spectrum; what is smaller shares one bin.
    """
    import scipy.special

    top = max(_reach(first), _reach(second))
    if not top:
        return 0.0
    magnitudes = top * 10.0 ** (np.arange(1 - _BINS * _DECADES, 1) / _BINS)
    edges = np.concatenate([[-np.inf], -magnitudes[-2::-1], magnitudes[:-1], [np.inf]])
    p, q = (np.histogram(nodes, edges, weights=weights)[0] for nodes, weights in (first.flat(), second.flat()))
    middle = (p + q) / 2
    return float(max(0.0, sum(scipy.special.rel_entr(each, middle).sum() for each in (p, q)) / 2))


def kolmogorov(first: Spectrum, second: Spectrum) -> float:
    """The largest difference of the fractions of eigenvalues at or below a point, at most 1.

    It sees mostly the mass near zero, which differs in its last digits: of a spectrum with a few large eigenvalues it
    says little about these.
    """
    points = np.concatenate([first.flat()[0], second.flat()[0]])
    below = np.nextafter(points, -np.inf)
    return float(max(np.abs(first.cdf(x) - second.cdf(x)).max() for x in (points, below)))


def relative_largest(first: Spectrum, second: Spectrum) -> float:
    """The difference of the largest eigenvalues, relative to the larger magnitude; from 0 to 2."""
    return _relative(first.support[1], second.support[1])


def relative_trace(first: Spectrum, second: Spectrum) -> float:
    """The difference of the traces, relative to the larger magnitude; from 0 to 2."""
    return _relative(first.n * first.moment(1), second.n * second.moment(1))


def htr_compat(first: Spectrum, second: Spectrum) -> float:
    """The distance published by Sankar et al. (2020), kept for comparison with their numbers. It is not a distance
    between spectra.

    Their code takes the logarithms of the smoothed density at 10,000 points of each spectrum's own axis, stretches them
    to [0, 1], and passes these *heights* to ``scipy.stats.wasserstein_distance`` as if they were samples. The positions
    of eigenvalues never enter: a spectrum is at distance zero from its mirror image, and from itself moved anywhere.
    """
    heights = []
    for spectrum in (first, second):
        low, high = spectrum.support
        variance = _VARIANCE * max(1.0, high - low)
        grid = np.linspace(low - 0.01 * (high - low or 1.0), high + 0.01 * (high - low or 1.0), _POINTS)
        logs = np.log10(spectrum.density(grid, bandwidth=variance**0.5) + _FLOOR)
        heights.append((logs - logs.min()) / (np.ptp(logs) or 1.0))
    same = np.full(_POINTS, 1 / _POINTS)
    return _transport(heights[0], same, heights[1], same)


#: The metrics that reports and tables have.
USUAL: tuple[Metric, ...] = (wasserstein, scaled_wasserstein, jensen_shannon)


def _transport(x: Floats, p: Floats, y: Floats, q: Floats) -> float:
    """The Wasserstein-1 distance of two discrete measures: the area between their distribution functions."""
    points = np.concatenate([x, y])
    order = np.argsort(points, kind="stable")
    apart = np.cumsum(np.concatenate([p, -q])[order])[:-1]
    return float(np.abs(apart) @ np.diff(points[order]))


def _reach(spectrum: Spectrum) -> float:
    return max(map(abs, spectrum.support))


def _relative(a: float, b: float) -> float:
    size = max(abs(a), abs(b))
    return abs(a - b) / size if size else 0.0
