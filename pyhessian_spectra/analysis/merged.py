"""Exact eigenpairs and quadrature nodes as one list: what is known of where the eigenvalues lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.results import Eigenpairs, Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

# Quadrature nodes whose weight is below this part of an eigenvalue's mean weight 1/n are Ritz values on their way, not
# eigenvalues: the squared normal component of a random probe is smaller with probability 8e-4 only.
_LIGHTEST = 1e-6

# Ritz values this close to a converged eigenvalue, relative to the largest node, are that eigenvalue: float32 products
# leave them a few 1e-7 apart.
_SAME = 1e-6


@dataclass(frozen=True)
class MergedNodes:
    """Eigenvalues or Ritz values in ascending order and what is known of each; arrays share one shape."""

    values: Floats
    weights: Floats
    residuals: Floats  # NaN where none is known
    probes: NDArray[np.intp]  # the row a node came from, -1 for an exact eigenvalue
    spectrum: Spectrum

    @property
    def n(self) -> int:
        """Number of eigenvalues."""
        return self.spectrum.n

    @property
    def exact(self) -> bool:
        """Whether the values are all eigenvalues."""
        return self.spectrum.exact

    def distinct(self, part: NDArray[np.bool_]) -> Floats:
        """The exact eigenvalues of a part, and the Ritz values of the probe that has most of them there."""
        values, probes = self.values[part], self.probes[part]
        seen = probes[probes >= 0]
        fullest = np.bincount(seen).argmax() if len(seen) else -1
        return values[(probes == -1) | (probes == fullest)]

    def mass_upto(self, x: float) -> tuple[float, float]:
        """Bounds on the fraction of eigenvalues at or below ``x``, with confidence ``1 - FAILURE`` for an estimate."""
        lower, upper = self.spectrum.cdf_bounds([x], level=None if self.exact else 1 - FAILURE)
        return float(lower[0]), float(upper[0])


def merge_nodes(source: Spectrum | BlockAnalysis | ArrayLike) -> MergedNodes:
    """The nodes of a spectrum, of an analysis with its converged eigenpairs in place, or of a list of eigenvalues.

    Raises
    ------
    InputError
        An eigenvalue is not finite, or there is none.
    """
    if isinstance(source, BlockAnalysis):
        spectrum = source.spectrum
    elif isinstance(source, Spectrum):
        spectrum = source
    else:
        if isinstance(source, Eigenpairs):
            raise InputError("Eigenpairs are a part of a spectrum; pass their eigenvalues, if these are all there are")
        values = np.asarray(source, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{int((~np.isfinite(values)).sum())} eigenvalues are not finite; leave that run out")
        spectrum = Spectrum.from_eigenvalues(values)
    used = spectrum.weights > _LIGHTEST / spectrum.n
    probes = np.broadcast_to(np.arange(spectrum.num_probes)[:, None], used.shape)[used]
    values, weights = spectrum.nodes[used], spectrum.weights[used] / spectrum.num_probes
    nodes = _ascending(values, weights, np.full(values.shape, np.nan), probes, spectrum)
    if not isinstance(source, BlockAnalysis):
        return nodes
    low, high = _converged_pairs(source)
    if spectrum.exact:
        nodes.residuals[: len(low)] = low.residuals
        nodes.residuals[len(values) - len(high) :] = high.residuals
        return nodes
    return _with_atoms(nodes, low, high, spectrum)


def _ascending(
    values: Floats, weights: Floats, residuals: Floats, probes: NDArray[np.intp], spectrum: Spectrum
) -> MergedNodes:
    order = np.argsort(values, kind="stable")
    return MergedNodes(values[order], weights[order], residuals[order], probes[order], spectrum)


def _converged_pairs(block: BlockAnalysis) -> tuple[Eigenpairs, Eigenpairs]:
    """Pairs from the lower and from the upper end, each up to the first that has not converged."""
    low, high = block.smallest, block.largest
    low = low.take(slice(0, int(np.argmin([*low.converged, False]))))
    high = high.take(slice(len(high) - int(np.argmin([*high.converged[::-1], False])), None))
    return low, high


def _with_atoms(nodes: MergedNodes, low: Eigenpairs, high: Eigenpairs, spectrum: Spectrum) -> MergedNodes:
    """Eigenvalues of weight 1 / n in place of the quadrature nodes at and beyond them, on both sides."""
    if len(high):
        low = low.take(low.eigenvalues < high.eigenvalues[0])
    slack = _SAME * np.abs(nodes.values).max()
    kept = np.ones(len(nodes.values), dtype=bool)
    if len(low):
        kept &= nodes.values > low.eigenvalues[-1] + slack
    if len(high):
        kept &= nodes.values < high.eigenvalues[0] - slack
    atoms = np.concatenate([low.eigenvalues, high.eigenvalues])
    rest = nodes.weights[kept].sum()
    share = (spectrum.n - len(atoms)) / spectrum.n / rest if rest else 0.0
    return _ascending(
        np.concatenate([nodes.values[kept], atoms]),
        np.concatenate([nodes.weights[kept] * share, np.full(len(atoms), 1 / spectrum.n)]),
        np.concatenate([nodes.residuals[kept], low.residuals, high.residuals]),
        np.concatenate([nodes.probes[kept], np.full(len(atoms), -1)]),
        spectrum,
    )
