"""Certificates: how far an eigenvalue may be off, and what may have been missed."""

from __future__ import annotations

import numpy as np

from pyhessian_spectra.spectra.lanczos import Tridiagonal
from pyhessian_spectra.spectra.results import Floats

# A failure probability of all probabilistic eigenvalue bounds of one pass together.
FAILURE = 0.01


def unseen_bounds(tridiagonal: Tridiagonal, size: int, *, failure: float = FAILURE) -> tuple[float, float]:
    """An interval that holds all eigenvalues, those that the Lanczos process has not seen included.

    The next Lanczos vector is ``p_m(A) v_1`` with ``p_m(x) = prod_i (x - theta_i) / prod_i beta_i``, and has norm 1, so
    that ``|p_m(lambda)| <= 1 / |c|`` for each eigenvalue, ``c`` being the start vector's component along its
    eigenvector. For a start vector uniform on the sphere ``|c|`` is below ``eta sqrt(pi / (2 n))`` with probability at
    most ``eta`` (van Dorsselaer, Hochstenbach and van der Vorst 2000).

    Parameters
    ----------
    tridiagonal : Tridiagonal
        From a start vector uniform on the sphere.
    size : int
        Dimension ``n`` of the space the process ran in.
    failure : float
        Probability that one end of the interval is wrong; half of it is given to each end.

    Returns
    -------
    (float, float)
        Lower and upper end; the extreme Ritz values themselves where the process exhausted its space.
    """
    theta, betas = tridiagonal.eigh()[0], tridiagonal.betas
    if betas[-1] == 0:
        return float(theta[0]), float(theta[-1])
    target = np.log(betas).sum() - np.log(failure / 2 * np.sqrt(np.pi / (2 * size)))
    return -_crossing(-theta[::-1], target), _crossing(theta, target)


def _crossing(theta: Floats, target: float) -> float:
    """The ``x`` above all ``theta`` with ``sum log(x - theta) = target``, rounded up."""
    top, width = theta[-1], max(theta[-1] - theta[0], np.finfo(float).tiny)
    low, high = 0.0, width * 1e-300
    while np.log(top + high - theta + np.finfo(float).tiny).sum() < target:
        low, high = high, max(2 * high, 1e-16 * width)
    for _ in range(60):
        middle = (low + high) / 2
        if np.log(top + middle - theta + np.finfo(float).tiny).sum() < target:
            low = middle
        else:
            high = middle
    return float(top + high)


def certified_intervals(values: Floats, residuals: Floats, others: tuple[float, float]) -> tuple[Floats, Floats]:
    """Intervals that hold one eigenvalue each, given where all the other eigenvalues lie.

    The residual bound (Parlett 1998, theorem 4.5.1) everywhere; where a gap separates the pair from its neighbours and
    from ``others``, the Kato-Temple bound ``theta - rho^2 / (b - theta) <= lambda <= theta + rho^2 / (theta - a)`` with
    ``a`` and ``b`` the nearest that another eigenvalue can be below and above.

    Parameters
    ----------
    values, residuals : ndarray, shape (k,)
        Ascending Ritz values and upper bounds of their residuals.
    others : (float, float)
        An interval that holds all eigenvalues but these ``k``.

    Returns
    -------
    lower, upper : ndarray, shape (k,)
    """
    lower, upper = values - residuals, values + residuals
    kato_low, kato_high = lower.copy(), upper.copy()
    for i, (theta, rho) in enumerate(zip(values, residuals, strict=True)):
        below = [*(upper[:i]), *([others[1]] if others[1] < theta else []), -np.inf]
        above = [*(lower[i + 1 :]), *([others[0]] if others[0] > theta else []), np.inf]
        if others[0] <= theta <= others[1]:
            continue  # another eigenvalue may be arbitrarily near
        a, b = max(below), min(above)
        if b > theta:
            kato_low[i] = theta - rho**2 / (b - theta)
        if a < theta:
            kato_high[i] = theta + rho**2 / (theta - a)
    return np.maximum(lower, kato_low), np.minimum(upper, kato_high)
