"""Bounds on a distribution from a Gauss quadrature, and from the average of a few quadratures of random probes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats

# Number of points at which a bracket is computed: thirty per node for 40 nodes.
_POINTS = 1200

# Rounding perturbs the root of a weight, and a node relative to the largest, by about 1e-16: roots and gaps of at least
# this size are known to four digits, and so is a bracket computed from them.
_KNOWN = 1e-12


def step_bounds(points: Floats, lower: Floats, upper: Floats, grid: ArrayLike) -> tuple[Floats, Floats]:
    """Bounds, at each grid point, on an ascending function from 0 to ``upper[-1]``, given bounds at ``points``."""
    below = np.searchsorted(points, grid, side="right")
    above = np.searchsorted(points, grid, side="left")
    return np.concatenate([[0.0], lower])[below], np.append(upper, upper[-1])[above]


def bracket(nodes: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Bounds on the mass at or below some points, for any measure that has this Gauss quadrature.

    By the inequalities of Chebyshev, Markov and Stieltjes (Szegő 1939, section 3.41) the mass below a node is at least
    the weight of all earlier nodes, and the mass at or below it is at most the node's own weight more. Points between
    nodes are bounded too: adding ``tau`` to the last diagonal entry of the Jacobi matrix preserves the moments up to
    order ``2 m - 2``, so its eigenvalues are the nodes of another quadrature of the measure, to which the inequalities
    apply. For each point some ``tau`` makes it a node, and no bound from these moments is sharper (Krein and Nudelman
    1977). The last entries of the eigenvectors follow from nodes and weights: up to a factor they are ``1 / (sqrt(w_i)
    prod_(j != i) (theta_i - theta_j))``. If rounding hides them, the only points are the nodes.

    Nodes ascend; nodes of weight 0 are padding. Returns ascending points, and the lower and upper bounds there, for
    :func:`step_bounds`.
    """
    nodes, weights = nodes[weights > 0], weights[weights > 0]
    values, masses = nodes[None], weights[None]
    gaps, scale = np.diff(nodes), np.abs(nodes).max()
    if len(nodes) > 1 and gaps.min() > _KNOWN * scale and weights.min() > _KNOWN**2 * weights.sum():
        distances = np.log(np.abs(nodes[:, None] - nodes) + np.eye(len(nodes))).sum(axis=1)
        last = -distances - np.log(weights) / 2
        last = np.exp(last - last.max()) * (-1.0) ** np.arange(len(nodes))
        # half of the points are spread evenly over the gaps between nodes, the other half by mass
        ranks = (np.cumsum(weights) - weights / 2) / weights.sum() + np.arange(len(nodes)) / (len(nodes) - 1)
        between = np.interp(np.linspace(ranks[0], ranks[-1], max(8, _POINTS // len(nodes)) + 2)[1:-1], ranks, nodes)
        with np.errstate(divide="ignore"):  # at a node, tau is 0
            taus = -1 / (last**2 / (nodes - between[:, None])).sum(axis=1)
        found, vectors = np.linalg.eigh(np.diag(nodes) + taus[:, None, None] * np.outer(last, last))
        values = np.concatenate([values, found])
        masses = np.concatenate([masses, (np.sqrt(weights) @ vectors) ** 2])
    order = np.argsort(values, axis=None, kind="stable")
    upper = np.cumsum(masses, axis=1)
    lower = np.maximum.accumulate((upper - masses).ravel()[order])
    return values.ravel()[order], lower, np.minimum.accumulate(upper.ravel()[order][::-1])[::-1]


def probe_bounds(lower: Floats, upper: Floats, probes: int, size: int, *, level: float) -> tuple[Floats, Floats]:
    """A confidence band for the distribution of ``size`` eigenvalues, from bounds on the average that the probes see.

    Let ``q = k / d`` be the fraction of ``d`` eigenvalues at or below a point. The mass ``p`` that ``r`` probes,
    uniform on the sphere, see there on average is a mean of ``r`` independent Beta variables with parameters ``k / 2``
    and ``(d - k) / 2``. It is the conditional expectation, given these, of their mean with random weights, which is a
    single Beta variable with parameters ``r k / 2`` and ``r (d - k) / 2``. By Jensen's inequality Chernoff's bound for
    the single variable therefore holds for ``p`` as well: ``P(p beyond x) <= exp(-r d kl(q, x) / 2)`` with the relative
    entropy ``kl(q, x) = q ln(q / x) + (1 - q) ln((1 - q) / (1 - x))``. Since ``q`` takes ``d - 1`` values strictly
    between 0 and 1, ``kl(q, p) <= 2 ln(2 (d - 1) / eta) / (r d)`` holds at all points together, except with probability
    ``eta = 1 - level``. As ``kl(q, p) >= 2 (q - p)^2``, the band is never wider than :func:`largest_probe_error`;
    towards either end of the spectrum it is far narrower.
    """
    radius = 2 * largest_probe_error(probes, size, level=level) ** 2
    return 1 - _entropy_ball(1 - lower, radius), _entropy_ball(upper, radius)


def largest_probe_error(probes: int, size: int, *, level: float) -> float:
    """How far the probes' average may be off anywhere, at a level ``1 - eta``: ``sqrt(ln(2 (d - 1) / eta) / (r d))``.

    With ``d + 2`` in place of ``d`` it is the bound of Chen, Trogdon and Ubaru (2021); see :func:`probe_bounds`.
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}; it is the probability that the band holds")
    return float(np.sqrt(np.log(2 * max(size - 1, 1) / (1 - level)) / (probes * size)))


def _entropy_ball(p: Floats, radius: float) -> Floats:
    """The largest ``q >= p`` with ``kl(q, p) <= radius``, rounded up."""
    from scipy.special import rel_entr

    inside, outside = p, np.ones_like(p)
    for _ in range(50):
        q = (inside + outside) / 2
        near = rel_entr(q, p) + rel_entr(1 - q, 1 - p) <= radius
        inside, outside = np.where(near, q, inside), np.where(near, outside, q)
    return outside


def smoothed_bounds(
    grid: ArrayLike, left: Floats, right: Floats, masses: Floats, bandwidth: float
) -> tuple[Floats, Floats]:
    """Least and greatest Gaussian-smoothed density on a grid, if each mass lies between its ``left`` and ``right``."""
    if not bandwidth > 0:
        raise InputError(f"bandwidth must be positive, got {bandwidth}; it is the Gaussian's standard deviation")
    x = np.asarray(grid, dtype=np.float64)[..., None]
    farthest, nearest = np.maximum(np.abs(x - left), np.abs(x - right)), np.clip(x, left, right) - x
    least, greatest = (np.exp(-0.5 * (distance / bandwidth) ** 2) @ masses for distance in (farthest, nearest))
    height = 1 / (bandwidth * np.sqrt(2 * np.pi))
    return height * least, height * greatest
