"""Where eigenvectors live, and how near two spaces of them are, each with what residuals leave uncertain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.analysis.block import BlockAnalysis
from pyhessian_spectra.curvature.partition import Partition
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.results import Floats

# Rows of vectors that are brought to float64 at once.
_ROWS = 2**16


@dataclass(frozen=True, repr=False)
class Localisation(Shown):
    """How much of each eigenvector lies in each group of coordinates.

    Parameters
    ----------
    labels : tuple of str, length p
    eigenvalues : ndarray, shape (k,)
        Descending.
    shares : ndarray, shape (p, k)
        ``sum_{i in group} v_i^2``; a column sums to 1 where every coordinate belongs to a group.
    errors : ndarray, shape (k,)
        How far any share of the column may be off, by the angle to the true eigenvector; 1 where that is not bounded.
    """

    labels: tuple[str, ...]
    eigenvalues: Floats
    shares: Floats
    errors: Floats


def localisation(block: BlockAnalysis, partition: Partition) -> Localisation:
    """Where the largest eigenvectors of a matrix live; raises InputError if they were not kept."""
    vectors = _top_vectors(block, len(block.largest))[:, ::-1]
    at = [group.indices.numpy() for group in partition]
    # one vector after another: squares of all of them in float64 would take more memory than they do
    columns = [[float((column[i].astype(np.float64) ** 2).sum()) for i in at] for column in vectors.T]
    shares = np.array(columns).T
    # a unit vector at an angle of sine s has shares that differ by s at most
    errors = [_sine(block, rank, rank + 1) for rank in range(vectors.shape[1])]
    values = block.largest.eigenvalues[::-1]
    return Localisation(tuple(partition.groups), values.copy(), shares, np.array(errors))


def eigenspace_overlap(first: BlockAnalysis, second: BlockAnalysis, k: int) -> tuple[float, float]:
    """``||U^T V||_F^2 / k`` of the spaces of the ``k`` largest eigenvalues, and a bound on its error.

    It is 1 for the same space, 0 for orthogonal ones, and ``k / n`` on average for a random one (Gur-Ari, Roberts and
    Dyer 2018). The error is at most the sum of the sines of the angles between computed and true spaces.

    Raises
    ------
    InputError
        The eigenvectors were not kept, are fewer than ``k``, or differ in length.
    """
    u, v = _top_vectors(first, k), _top_vectors(second, k)
    if len(u) != len(v):
        raise InputError(f"eigenvectors of {len(u):,} and {len(v):,} coordinates have no overlap; embed them first")
    value = float((inner_products(u, v) ** 2).sum() / k)
    return value, min(1.0, space_error(first, k) + space_error(second, k))


def inner_products(u: NDArray[np.floating[Any]], v: NDArray[np.floating[Any]]) -> Floats:
    """``u^T v`` in float64, for columns (n, k) and (n, l), a part of the rows at a time."""
    rows = range(0, len(u), _ROWS)
    return sum((u[i : i + _ROWS].T.astype(np.float64) @ v[i : i + _ROWS].astype(np.float64) for i in rows), np.zeros(1))


def space_error(block: BlockAnalysis, k: int) -> float:
    """A bound on the sine of the angle between the computed and the true space of the ``k`` largest eigenvalues."""
    return _sine(block, 0, k)


def _top_vectors(block: BlockAnalysis, k: int) -> NDArray[np.floating[Any]]:
    """The vectors (n, k) of the ``k`` largest eigenvalues, ascending."""
    vectors = block.largest.eigenvectors
    if vectors is None or not 1 <= k <= vectors.shape[1]:
        kept = "none" if vectors is None else f"{vectors.shape[1]}"
        raise InputError(f"{k} eigenvectors are needed and {kept} were kept; raise num_eigenvalues, or take fewer")
    return vectors[:, vectors.shape[1] - k :]


def _sine(block: BlockAnalysis, first: int, last: int) -> float:
    """A bound, at most 1, on the sine of the angle between the computed and the true space of some eigenvectors.

    These have ranks from ``first`` up to ``last``, excluded, 0 being the largest eigenvalue. By Davis and Kahan (1970)
    it is the norm of the residuals over the distance to all other eigenvalues.
    """
    pairs, exact = block.largest, block.spectrum.exact
    if pairs.lower is None or pairs.upper is None or not (exact or pairs.others is not None):
        return 1.0
    low, high = pairs.lower[::-1], pairs.upper[::-1]
    above = low[first - 1] if first else np.inf
    if last < len(high):
        below = high[last]
    elif exact:
        nodes = block.spectrum.nodes[0]
        below = nodes[len(nodes) - last - 1] + block.spectrum.off if last < len(nodes) else -np.inf
    else:
        below = -np.inf
    if pairs.others is not None:
        below = max(below, pairs.others[1])
    gap = min(low[last - 1] - below, above - high[first])
    chosen = pairs.residuals[::-1][first:last]
    size = float(np.linalg.norm(chosen)) + pairs.rounding
    return float(min(1.0, size / gap)) if gap > 0 else 1.0
