"""By what angles rounding may turn eigenvectors and spans (Davis and Kahan 1970, Wedin 1972)."""

from __future__ import annotations

import numpy as np

from pyhessian_spectra.spectra.results import Floats


def sine(off: float, gap: float) -> float:
    """A bound on the sine of the angle by which a perturbation of norm ``off`` turns a subspace; 1 without a gap."""
    return min(1.0, off / (gap - off)) if gap > off else 1.0


def turned(values: Floats, k: int, off: float) -> Floats:
    """By which sine the eigenvector to each of the ``k`` largest of these ascending eigenvalues may be turned (k,)."""
    gaps = np.diff(values, prepend=0.0)[-k:]
    return np.array([sine(off, gap) for gap in np.minimum(gaps, np.append(gaps[1:], np.inf))])


def span(rows: Floats, least: float, off: float) -> tuple[Floats, float]:
    """An orthonormal basis (r, m) of the rows' span, and the sine of the angle by which it may be off.

    Directions with singular values below ``least`` of the largest do not count; the sine is 1 where rounding decides
    which do.
    """
    lengths, basis = np.linalg.svd(rows, full_matrices=False)[1:]
    limit = least * float(lengths[0])
    kept = int((lengths > limit).sum())
    if not kept or np.abs(lengths - limit).min() <= 2 * off:
        return basis[:kept], 1.0
    return basis[:kept], sine(off, float(lengths[kept - 1] - np.append(lengths, 0.0)[kept]))
