"""Exact eigenpairs and quadrature nodes as one list: what is known of where the eigenvalues lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.errors import InputError
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
    """Eigenvalues or Ritz values and what is known of each; arrays share one shape."""

    values: Floats
    weights: Floats
    residuals: Floats  # NaN where none is known
    probes: NDArray[np.intp]  # the row a node came from, -1 for an exact eigenvalue
    spectrum: Spectrum

    def ascending(self) -> MergedNodes:
        """The same nodes, with values in ascending order."""
        order = np.argsort(self.values, kind="stable")
        arrays = {name: getattr(self, name)[order] for name in ("values", "weights", "residuals", "probes")}
        return replace(self, **arrays)

    def distinct(self, part: NDArray[np.bool_]) -> Floats:
        """The exact eigenvalues of a part, and the Ritz values of the probe that has most of them there."""
        values, probes = self.values[part], self.probes[part]
        seen = probes[probes >= 0]
        fullest = np.bincount(seen).argmax() if len(seen) else -1
        return values[(probes == -1) | (probes == fullest)]


def merge_nodes(source: Spectrum | BlockAnalysis | ArrayLike) -> MergedNodes:
    """The nodes of a spectrum, of an analysis with its converged eigenpairs in place, or of a list of eigenvalues."""
    if isinstance(source, Eigenpairs):
        raise InputError("Eigenpairs are a part of a spectrum; pass their eigenvalues, if these are all there are")
    spectrum = source.spectrum if isinstance(source, BlockAnalysis) else source
    if not isinstance(spectrum, Spectrum):
        values = np.asarray(spectrum, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{int((~np.isfinite(values)).sum())} eigenvalues are not finite; leave that run out")
        spectrum = Spectrum.from_eigenvalues(values)
    used = spectrum.weights > _LIGHTEST / spectrum.n
    values, weights = spectrum.nodes[used], spectrum.weights[used] / spectrum.num_probes
    nodes = MergedNodes(values, weights, np.full(values.shape, np.nan), np.nonzero(used)[0], spectrum).ascending()
    if not isinstance(source, BlockAnalysis):
        return nodes
    # each end keeps its pairs up to the first that has not converged
    low, high = source.smallest, source.largest
    low = low.take(slice(0, int(np.argmin([*low.converged, False]))))
    high = high.take(slice(len(high) - int(np.argmin([*high.converged[::-1], False])), None))
    if not spectrum.exact:
        return _with_atoms(nodes, low, high)
    nodes.residuals[: len(low)] = low.residuals
    nodes.residuals[len(values) - len(high) :] = high.residuals
    return nodes


def _with_atoms(nodes: MergedNodes, low: Eigenpairs, high: Eigenpairs) -> MergedNodes:
    """Put eigenvalues of weight 1 / n in place of the quadrature nodes at and beyond them, on both sides."""
    n = nodes.spectrum.n
    above = high.eigenvalues[0] if len(high) else np.inf
    low = low.take(low.eigenvalues < above)
    below = low.eigenvalues[-1] if len(low) else -np.inf
    slack = _SAME * np.abs(nodes.values).max()
    kept = (nodes.values > below + slack) & (nodes.values < above - slack)
    atoms = np.concatenate([low.eigenvalues, high.eigenvalues])
    rest = nodes.weights[kept].sum()
    share = (n - len(atoms)) / n / rest if rest else 0.0
    values = np.concatenate([nodes.values[kept], atoms])
    weights = np.concatenate([nodes.weights[kept] * share, np.full(len(atoms), 1 / n)])
    residuals = np.concatenate([nodes.residuals[kept], low.residuals, high.residuals])
    probes = np.concatenate([nodes.probes[kept], np.full(len(atoms), -1)])
    return MergedNodes(values, weights, residuals, probes, nodes.spectrum).ascending()
