"""What a Gauss quadrature, and the average of a few from random probes, leave open about a distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats

# Points at which a bracket is worked out: thirty for each of 40 nodes.
_POINTS = 1200

# Rounding leaves the root of a weight, and a node relative to the largest, uncertain by some 1e-16: what is at least
# this large is known to four digits, and those of a bracket.
_KNOWN = 1e-12


def step_bounds(points: Floats, lower: Floats, upper: Floats, grid: ArrayLike) -> tuple[Floats, Floats]:
    """Bounds on an ascending function at each grid point from those at ``points``, between 0 and the last bound."""
    below = np.searchsorted(points, grid, side="right")
    above = np.searchsorted(points, grid, side="left")
    return np.concatenate([[0.0], lower])[below], np.append(upper, upper[-1])[above]


def bracket(nodes: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Bounds on the mass at or below some points, of any measure that has this Gauss quadrature.

    By the inequalities of Chebyshev, Markov and Stieltjes (Szegő 1939, section 3.41), below a node lies at least the
    weight of the nodes before it, and at or below it at most its own weight more. They hold between nodes, too: adding
    ``tau`` to the last diagonal entry of the Jacobi matrix leaves the moments up to order ``2 m - 2``, and makes of its
    eigenvalues the nodes of another quadrature of the measure, to which the inequalities apply as well; for each point
    there is the ``tau`` that makes it a node, and no bound from these moments is sharper (Krein and Nudelman 1977). The
    last entries of the eigenvectors follow from nodes and weights: up to a factor they are
    ``1 / (sqrt(w_i) prod_(j != i) (theta_i - theta_j))``. Where rounding hides them, the points are the nodes.

    Parameters
    ----------
    nodes, weights : ndarray, shape (m,), float64
        Nodes in ascending order. Those of weight 0 are padding.

    Returns
    -------
    points, lower, upper : ndarray, shape (p,), float64
        Ascending points and bounds on the mass at or below each, for :func:`step_bounds`.
    """
    nodes, weights = nodes[weights > 0], weights[weights > 0]
    values, masses = nodes[None], weights[None]
    gaps, scale = np.diff(nodes), np.abs(nodes).max()
    if len(nodes) > 1 and gaps.min() > _KNOWN * scale and weights.min() > _KNOWN**2 * weights.sum():
        distances = np.log(np.abs(nodes[:, None] - nodes) + np.eye(len(nodes))).sum(axis=1)
        last = -distances - np.log(weights) / 2
        last = np.exp(last - last.max()) * (-1.0) ** np.arange(len(nodes))
        # as many between each two nodes, and as many again spread by mass
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
    """A confidence band for a distribution of ``size`` eigenvalues, from bounds on what the probes see on average.

    Of ``d`` eigenvalues let the fraction ``q = k / d`` lie at or below a point. The mass ``p`` which ``r`` probes
    uniform on the sphere see there on average is a mean of ``r`` independent Beta variables of parameters ``k / 2`` and
    ``(d - k) / 2``. It is the expectation, given these, of a single one of parameters ``r k / 2`` and ``r (d - k) / 2``
    (their mean with random weights), so that by Jensen's inequality Chernoff's bound on that one holds for it, too:
    ``P(p beyond x) <= exp(-r d kl(q, x) / 2)`` with the relative entropy ``kl(q, x) = q ln(q / x) + (1 - q) ln((1 - q)
    / (1 - x))``. As ``q`` takes ``d - 1`` values strictly between 0 and 1, ``kl(q, p) <= 2 ln(2 (d - 1) / eta) / (r
    d)`` at all points together, except with probability ``eta``.

    As ``kl(q, p) >= 2 (q - p)^2``, this is never wider than :func:`largest_probe_error`; towards either end of the
    spectrum it is far narrower.

    Parameters
    ----------
    lower, upper : ndarray, float64
        Bounds on the average over the probes, in [0, 1].
    probes, size : int
        Number of probes ``r`` and dimension ``d`` of the space they were drawn in.
    level : float
        ``1 - eta``.

    Returns
    -------
    lower, upper : ndarray
        Bounds on ``q``.
    """
    radius = 2 * largest_probe_error(probes, size, level=level) ** 2
    return 1 - _entropy_ball(1 - lower, radius), _entropy_ball(upper, radius)


def largest_probe_error(probes: int, size: int, *, level: float) -> float:
    """How far the average of probes may be from a distribution anywhere, ``sqrt(ln(2 (d - 1) / eta) / (r d))``.

    With ``d + 2`` in place of ``d`` it is the bound of Chen, Trogdon and Ubaru (2021); see :func:`probe_bounds`.
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}; it is the probability that the band holds")
    return float(np.sqrt(np.log(2 * max(size - 1, 1) / (1 - level)) / (probes * size)))


def _entropy_ball(p: Floats, radius: float) -> Floats:
    """The largest ``q`` with ``kl(q, p) <= radius``, rounded up."""
    inside, outside = p, np.ones_like(p)
    for _ in range(50):
        q = (inside + outside) / 2
        near = rel_entr(q, p) + rel_entr(1 - q, 1 - p) <= radius
        inside, outside = np.where(near, q, inside), np.where(near, outside, q)
    return outside


def smoothed_bounds(
    grid: ArrayLike, left: Floats, right: Floats, masses: Floats, bandwidth: float
) -> tuple[Floats, Floats]:
    """The least and greatest Gaussian-smoothed density on a grid of masses each anywhere from ``left`` to ``right``."""
    if not bandwidth > 0:
        raise InputError(f"bandwidth must be positive, got {bandwidth}; it is the Gaussian's standard deviation")
    x = np.asarray(grid, dtype=np.float64)[..., None]
    farthest, nearest = np.maximum(np.abs(x - left), np.abs(x - right)), np.clip(x, left, right) - x
    least, greatest = (np.exp(-0.5 * (distance / bandwidth) ** 2) @ masses for distance in (farthest, nearest))
    height = 1 / (bandwidth * np.sqrt(2 * np.pi))
    return height * least, height * greatest
