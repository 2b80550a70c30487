"""Certificates: intervals that hold eigenvalues, and bounds on eigenvalues that may have been missed."""

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
from pyhessian_spectra.spectra.rounding import Rounding

# Probability that any of the probabilistic eigenvalue bounds of one pass fails.
FAILURE = 0.01

# Allowance of the intervals, in eps of the norm, for the rounding of what follows the products, whose own is measured.
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
    rounding: Rounding,
) -> Eigenpairs:
    """Eigenpairs with residuals from ``products``, and with intervals from residuals and bounds on missed eigenvalues.

    ``values`` (k,) ascend; ``products`` are those with the orthonormal columns ``vectors`` (n, k), in order. ``good``
    (k,) says which pairs have converged by the recurrence; ``probes`` are Lanczos processes from random vectors in the
    complement of these, which ``rounding`` was given. It measures the error of products, by which intervals are wider.
    Unless all pairs are good, missed eigenvalues are not bounded, since the probes did not run in the complement of all
    pairs. For ``tol``, ``atol`` and ``scale`` see :func:`threshold`.
    """
    residuals = residuals_of(op, values, vectors, rounding.add_pairs(vectors, products, good))
    converged = good & (residuals <= threshold(op, values, tol, atol, scale))
    off = _ROUNDING * op.space.eps * scale + rounding.bound()
    pairs = Eigenpairs(values, residuals, converged, vectors.cpu().numpy(), rounding=off)
    reach = residuals + off
    if not (good.all() and probes):
        return replace(pairs, lower=values - reach, upper=values + reach)
    each = [unseen_bounds(probe, op.n, off, failure=FAILURE / len(probes)) for probe in probes]
    slack = float(np.linalg.norm(residuals)) + off  # the coupling to the complement, by Weyl
    others = max(low for low, _ in each) - slack, min(high for _, high in each) + slack
    lower, upper = certified_intervals(values, reach, others)
    return replace(pairs, lower=lower - off, upper=upper + off, others=others)


def residuals_of(op: LinearOperator, values: Floats, vectors: Tensor, products: Iterable[Tensor]) -> Floats:
    """``||A v - theta v||`` (k,) in float64, from unit columns (n, k) and their products ``A v``."""
    pairs = zip(values, vectors.unbind(1), products, strict=True)
    return np.array([op.space.norm(w.double() - theta * v.double()) for theta, v, w in pairs])


def unseen_bounds(
    tridiagonal: Tridiagonal, size: int, error: float, *, failure: float = FAILURE
) -> tuple[float, float]:
    """An interval that holds all eigenvalues, including those that the Lanczos process has not found.

    The next Lanczos vector is ``p_m(A) v_1`` with ``p_m(x) = prod_i (x - theta_i) / prod_i beta_i``. It has norm 1, so
    ``|p_m(lambda)| <= 1 / |c|`` for each eigenvalue ``lambda``, where ``c`` is the start vector's component along the
    eigenvector. For a start vector uniform on the sphere, of dimension ``size`` = n, ``|c|`` is below ``eta sqrt(pi /
    (2 n))`` with probability at most ``eta`` (van Dorsselaer, Hochstenbach and van der Vorst 2000). ``failure`` is the
    probability that one end is wrong; half of it is given to each. If the process spans the whole space, the ends are
    the extreme Ritz values. Both ends move outwards by what an ``error`` of this norm in the Lanczos relation can hide:
    the Ritz values are eigenvalues of a compression of a matrix that differs from ``A`` by at most twice as much.
    """
    theta, slack = tridiagonal.eigh()[0], 2 * error
    if tridiagonal.remainder == 0:
        return float(theta[0]) - slack, float(theta[-1]) + slack
    # if rounding hides the last residual norm, its upper bound: eigenvalues closer than that are not separated
    norms = np.append(tridiagonal.betas[:-1], tridiagonal.remainder)
    target = np.log(norms).sum() - np.log(failure / 2 * np.sqrt(np.pi / (2 * size)))
    return -_crossing(-theta[::-1], target) - slack, _crossing(theta, target) + slack


def _crossing(theta: Floats, target: float) -> float:
    """The ``x`` above all ``theta`` with ``sum log(x - theta) = target``, rounded up."""
    gaps = theta[-1] - theta
    # bisect over the logarithm of the distance to the largest theta: no other distance has a smaller logarithm
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
    """Intervals that hold one eigenvalue each, given an interval ``others`` that holds all but these ``k`` eigenvalues.

    Every interval satisfies the residual bound (Parlett 1998, theorem 4.5.1). Where those of several pairs meet, which
    eigenvalue belongs to which is not known: each is as near as the norm of all their residuals (theorem 11.5.1). Where
    a gap separates a pair from its neighbours and from ``others``, the Kato-Temple bound ``theta - rho^2 / (b - theta)
    <= lambda <= theta + rho^2 / (theta - a)`` holds too, where ``a`` and ``b`` are the nearest points that another
    eigenvalue can reach from below and above.
    """
    residuals, alone = _shared(values, residuals)
    lower, upper = values - residuals, values + residuals
    kato_low, kato_high = lower.copy(), upper.copy()
    for i, (theta, rho) in enumerate(zip(values, residuals, strict=True)):
        below = [*(upper[:i]), *([others[1]] if others[1] < theta else []), -np.inf]
        above = [*(lower[i + 1 :]), *([others[0]] if others[0] > theta else []), np.inf]
        if not alone[i] or others[0] <= theta <= others[1]:
            continue  # another eigenvalue may be arbitrarily near
        a, b = max(below), min(above)
        if b > theta:
            kato_low[i] = theta - rho**2 / (b - theta)
        if a < theta:
            kato_high[i] = theta + rho**2 / (theta - a)
    return np.maximum(lower, kato_low), np.minimum(upper, kato_high)


def _shared(values: Floats, residuals: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Residuals (k,), of pairs whose intervals meet the norm of all theirs, and which pairs meet no other."""
    reach = residuals
    while len(values):
        # no interval of a later group begins before one of an earlier group ends
        starts = np.minimum.accumulate((values - reach)[::-1])[::-1]
        ends = np.maximum.accumulate(values + reach)
        groups = np.cumsum(np.append(False, starts[1:] > ends[:-1]))
        wider = np.sqrt(np.bincount(groups, residuals**2))[groups]
        if (wider <= reach).all():
            return reach, np.bincount(groups)[groups] == 1
        reach = np.maximum(reach, wider)
    return reach, np.empty(0, dtype=bool)
