"""Certificates: how far an eigenvalue may be off, and what may have been missed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.spectra.edges import threshold
from pyhessian_spectra.spectra.lanczos import Tridiagonal
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Eigenpairs, Floats

# A failure probability of all probabilistic eigenvalue bounds of one pass together.
FAILURE = 0.01


# Rounding of the products, in eps of the norm, that intervals allow for.
_ROUNDING = 30


def certify(
    op: LinearOperator,
    values: Floats,
    vectors: Tensor,
    products: Iterable[Tensor],
    probes: Sequence[Tridiagonal],
    good: NDArray[np.bool_],
    *,
    tol: float,
    atol: float,
    scale: float,
) -> Eigenpairs:
    """Pairs with fresh residuals, and with intervals from these and from what can have been missed.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    values : ndarray, shape (k,), ascending
    vectors : Tensor, shape (n, k)
        Orthonormal columns.
    products : iterable of Tensor
        The products with the vectors, in order.
    probes : sequence of Tridiagonal
        Lanczos processes from random vectors in the complement of all the vectors that are good.
    good : ndarray of bool, shape (k,)
        Which pairs have converged by the recurrence. Where not all have, the complement is not that of all, and nothing
        is said of what was missed.
    tol, atol, scale : float
        See :func:`threshold`.
    """
    residuals = residuals_of(op, values, vectors, products)
    converged = good & (residuals <= threshold(op, values, tol, atol, scale))
    pairs = Eigenpairs(values, residuals, converged, vectors.cpu().numpy())
    rounding = _ROUNDING * op.space.eps * scale
    reach = residuals + rounding
    if not (good.all() and probes):
        return replace(pairs, lower=values - reach, upper=values + reach)
    each = [unseen_bounds(probe, op.n, failure=FAILURE / len(probes)) for probe in probes]
    slack = float(np.linalg.norm(reach))  # the coupling to the complement, by Weyl
    others = max(low for low, _ in each) - slack, min(high for _, high in each) + slack
    lower, upper = certified_intervals(values, reach, others)
    return replace(pairs, lower=lower - rounding, upper=upper + rounding, others=others)


def residuals_of(op: LinearOperator, values: Floats, vectors: Tensor, products: Iterable[Tensor]) -> Floats:
    """``||A v - theta v||`` of unit columns (n, k) and their products, in float64."""
    pairs = zip(values, vectors.unbind(1), products, strict=True)
    return np.array([op.space.norm(w.double() - theta * v.double()) for theta, v, w in pairs])


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
        Lower and upper end; the extreme Ritz values themselves where the process spans the whole space.
    """
    theta = tridiagonal.eigh()[0]
    if tridiagonal.remainder == 0:
        return float(theta[0]), float(theta[-1])
    # where rounding hides the last residual, the largest it can be: eigenvalues apart by less are not told apart
    norms = np.append(tridiagonal.betas[:-1], tridiagonal.remainder)
    target = np.log(norms).sum() - np.log(failure / 2 * np.sqrt(np.pi / (2 * size)))
    return -_crossing(-theta[::-1], target), _crossing(theta, target)


def _crossing(theta: Floats, target: float) -> float:
    """The ``x`` above all ``theta`` with ``sum log(x - theta) = target``, rounded up."""
    gaps = theta[-1] - theta
    # of the distance from the largest: each logarithm is at least that of the distance itself
    outside = target / len(theta)
    inside = outside - 700.0
    for _ in range(60):
        middle = (inside + outside) / 2
        if np.log(np.exp(middle) + gaps).sum() < target:
            inside = middle
        else:
            outside = middle
    return float(theta[-1] + np.exp(outside))


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
