"""What a spectrum resolves: cells whose numbers of eigenvalues are known, and intervals that hold a share of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.results import Eigenpairs, Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

#: A share of the eigenvalues whose bounds are farther apart than this is not a number.
WIDEST_SHARE = 0.1

# A cell's number of eigenvalues is known if the greatest is at most this many times the least.
_FACTOR = 10.0

# Eigenvalues smaller than the largest by more decades are zero to the rounding of float32 products.
_MAX_DECADES = 8

# Points between two nodes at which bounds are computed where an interval is sought.
_BETWEEN = 8


@dataclass(frozen=True)
class Cells:
    """Cells from ``edges[i]`` to ``edges[i + 1]``, and the number of eigenvalues in each: estimate, least, greatest."""

    edges: Floats
    counts: Floats
    lower: Floats
    upper: Floats


def known_others(spectrum: Spectrum, pairs: Sequence[Eigenpairs]) -> tuple[float, float] | None:
    """An interval that holds all eigenvalues but the spectrum's atoms, if these are the pairs that it came with."""
    known = [each.others for each in pairs if each.others is not None]
    return known[0] if known and sum(map(len, pairs)) == spectrum.num_atoms else None


def confidence(others: tuple[float, float] | None) -> str:
    """How sure bounds are: they hold at level ``1 - FAILURE``, and the interval that they rely on may fail as well."""
    return f"{100 * (1 - FAILURE * (1 if others is None else 2)):g} %"


def resolved_cells(spectrum: Spectrum, edges: ArrayLike, *, others: tuple[float, float] | None = None) -> Cells:
    """The finest cells between some of these ascending ``edges`` that the spectrum resolves.

    A cell is resolved if the least and the greatest number of eigenvalues that the bounds of
    :meth:`Spectrum.cdf_bounds` allow in it differ by no more than a factor of ten. Where a quadrature's nodes are far
    apart, cells are wide: what lies between two heavy nodes is one block, whose contents are known and not its shape.
    Of an exact spectrum each cell is. The first and the last cell hold what is beyond them too. All bounds hold
    together, with 99 % confidence.

    >>> resolved_cells(Spectrum.from_eigenvalues([0.0, 0.2, 2.5]), [-1, 1, 2, 3]).counts
    array([2., 0., 1.])
    """
    ends, edges, n = np.array(edges, dtype=np.float64), np.array(edges, dtype=np.float64), spectrum.n
    edges[[0, -1]] = -np.inf, np.inf
    below, (least, most) = spectrum.cdf(edges), spectrum.cdf_bounds(edges, level=1 - FAILURE, others=others)
    atoms = np.sort(spectrum.nodes[0, : spectrum.num_atoms])
    # how many atoms lie surely, and how many may lie, at or below each edge
    surely, perhaps = (np.searchsorted(x, edges, side="right") for x in (atoms + spectrum.off, atoms - spectrum.off))
    # entry (i, j) is about the cell from edge i to edge j; a number of eigenvalues is whole
    lower = np.maximum(np.ceil(n * np.subtract.outer(-most, -least) - 1e-6), np.subtract.outer(-perhaps, -surely))
    upper = np.floor(n * np.subtract.outer(-least, -most) + 1e-6)
    cost = np.log2(np.maximum(upper, 1) / np.maximum(lower, np.where(upper < 1, 1, 1e-9)))
    cost = np.where(cost <= np.log2(_FACTOR), 0.1 * cost - 1, np.inf)  # as many cells as possible, sharp ones first
    best, previous = np.full(len(edges), np.inf), np.zeros(len(edges), dtype=int)
    best[0] = 0.0
    for j in range(1, len(edges)):
        through = best[:j] + cost[:j, j]
        previous[j] = int(np.argmin(through))
        best[j] = through[previous[j]]
    chosen = [len(edges) - 1]
    while chosen[-1]:
        chosen.append(int(previous[chosen[-1]]))
    kept = np.array(chosen[::-1])
    lower, upper = lower[kept[:-1], kept[1:]], upper[kept[:-1], kept[1:]]
    return Cells(ends[kept], np.clip(n * np.diff(below[kept]), lower, upper), lower, upper)


def narrowest_interval(spectrum: Spectrum, share: float, *, others: tuple[float, float] | None = None) -> Floats:
    """The ends, shape (2,), of the narrowest interval found that holds at least this share, with 99 % confidence."""
    nodes, (low, high) = np.unique(spectrum.nodes[spectrum.weights > 0]), spectrum.support
    ranks, beside = np.arange(len(nodes)), (high - low) * np.geomspace(1e-8, 1.0, 100)
    points = np.interp(np.linspace(0, ranks[-1], _BETWEEN * len(nodes)), ranks, nodes)
    points = np.concatenate([low - beside[::-1], points, high + beside, others or []])
    points.sort()
    least, most = spectrum.cdf_bounds(points, level=1 - FAILURE, others=others)
    beyond = np.searchsorted(least, most + share)  # the first point up to which so much more than below lies
    starts = np.flatnonzero(beyond < len(points))
    if not len(starts):
        return points[[0, -1]]
    widths = points[beyond[starts]] - points[starts]
    first = starts[np.argmin(widths)]
    return np.array([points[first], points[beyond[first]]])


def typical_size(spectrum: Spectrum) -> float:
    """The magnitude that half of the eigenvalues not zero to rounding do not exceed, or 1 where all are zero.

    Of an estimate it is the end of the narrowest interval known to hold half of the eigenvalues.
    """
    if not spectrum.exact:
        return float(np.abs(narrowest_interval(spectrum, 0.5)).max()) or 1.0
    magnitudes = np.sort(np.abs(spectrum.nodes[0]))
    kept = magnitudes[magnitudes > magnitudes[-1] * 10.0**-_MAX_DECADES]
    return float(kept[(len(kept) - 1) // 2]) if len(kept) else 1.0


def to_decades(eigenvalues: ArrayLike, threshold: float) -> Floats:
    """Positions on an axis that is linear up to this threshold and logarithmic beyond, in decades from zero."""
    return np.arcsinh(np.asarray(eigenvalues, dtype=np.float64) / threshold) / np.log(10.0)
