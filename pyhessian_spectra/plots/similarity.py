"""Draws how alike spectra are: all pairs as a heatmap, clusters of them, and layers beside the whole by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.cluster.hierarchy as hierarchy
import seaborn as sns
from matplotlib.axes import Axes
from mpl_toolkits.axes_grid1 import make_axes_locatable
from numpy.typing import NDArray
from scipy.spatial.distance import squareform

from pyhessian_spectra.analysis.similarity import WHOLE, SimilarityMatrix
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.heatmap import is_legible, square_heatmap
from pyhessian_spectra.spectra.results import Floats

# What each metric of the package is called on an axis.
_NAMES = {
    "wasserstein": "Wasserstein-1 distance",
    "scaled_wasserstein": "Wasserstein-1 distance, scale-free",
    "jensen_shannon": "Jensen-Shannon divergence [nats]",
    "kolmogorov": "Kolmogorov distance",
    "relative_largest": r"Relative difference of $\lambda_1$",
    "relative_trace": "Relative difference of traces",
    "htr_compat": "Published distance (heights only)",
}


def plot_similarity(matrix: SimilarityMatrix, *, ax: Axes | None = None) -> Axes:
    """Draw all distances as a heatmap.

    Where parts of the data were analysed, distances are those between different parts, so that the null on the diagonal
    is their like, and differences that exceed it are marked: by bold numbers, or by dots in a large matrix.
    """
    return _heatmap(matrix, np.arange(len(matrix.labels)), ax)


def plot_clusters(matrix: SimilarityMatrix, *, ax: Axes | None = None) -> Axes:
    """As :func:`plot_similarity`, in the order of average-linkage clusters, whose dendrogram is at the right.

    The height of a joint is the mean distance between the two clusters. Raises InputError for fewer than three spectra.
    """
    if len(matrix.labels) < 3:
        raise InputError(f"clusters need at least three spectra, got {len(matrix.labels)}")
    apart = _shown(matrix)
    np.fill_diagonal(apart, 0.0)
    linkage = hierarchy.linkage(squareform(apart, checks=False), method="average", optimal_ordering=True)
    ax = _heatmap(matrix, hierarchy.leaves_list(linkage), ax)
    with style.theme():
        beside = make_axes_locatable(ax).append_axes("right", size="28%", pad=0.06)
        tree = hierarchy.dendrogram(linkage, no_plot=True)
        for heights, places in zip(tree["dcoord"], tree["icoord"], strict=True):
            beside.plot(heights, np.array(places) / 10, color=style.INK, linewidth=0.9)  # scipy puts leaves 10 apart
        beside.set_ylim(*ax.get_ylim())
        beside.set_yticks([])
        beside.set_xlim(0, None)
        beside.tick_params(labelsize=6.5)
        beside.spines["left"].set_visible(False)
        beside.grid(visible=False, axis="y")
    return ax


def plot_depth(
    matrices: SimilarityMatrix | Sequence[SimilarityMatrix],
    *,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each layer's distance to the whole against its place from the first (0) to the last layer (1).

    Bars are standard errors, of data and probes together. Where parts of the data were analysed, distances are those
    between different parts, and the shaded height is the null: that of the layer to itself.

    Parameters
    ----------
    matrices : SimilarityMatrix or sequence of SimilarityMatrix
        Of one metric, with the whole and the layers in their order, for example one a checkpoint.
    labels : sequence of str, optional
        Names for the legend.

    Raises
    ------
    InputError
        A matrix has no whole, or fewer than two layers, or metrics differ.
    """
    several = [matrices] if isinstance(matrices, SimilarityMatrix) else list(matrices)
    if not several or len({matrix.metric for matrix in several}) > 1:
        raise InputError("matrices must be of one metric; draw each metric on axes of its own")
    colors = sns.color_palette("viridis_r", len(several) + 1)[1:] if len(several) > 1 else [style.BLUE]
    with style.drawing(ax) as ax:
        for i, (matrix, color) in enumerate(zip(several, colors, strict=True)):
            if WHOLE not in matrix.labels or len(matrix.labels) < 3:
                raise InputError("a figure along the depth needs the whole and at least two layers")
            at = matrix.labels.index(WHOLE)
            layers = [j for j in range(len(matrix.labels)) if j != at]
            x = np.linspace(0, 1, len(layers))
            squares = matrix.probe_stderr**2 + (0 if matrix.data_stderr is None else matrix.data_stderr**2)
            name = None if labels is None else style.literal(labels[i])
            look: dict[str, Any] = {"fmt": "o-", "markersize": 3.5, "linewidth": 1.1, "capsize": 2, "color": color}
            ax.errorbar(x, _shown(matrix)[at, layers], squares[at, layers] ** 0.5, label=name or "to the whole", **look)
            if matrix.null is not None:
                null = "null: to itself, other data and probes" if i == len(several) - 1 else None
                ax.fill_between(x, 0, matrix.null[layers], color=color, alpha=0.15, linewidth=0, label=null)
        ax.set_ylim(0, None)
        ax.set_xlabel("Normalised depth (first to last layer)")
        ax.set_ylabel(_label(several[0].metric))
        style.legend_above(ax, columns=3)
    return ax


def _shown(matrix: SimilarityMatrix) -> Floats:
    """Distances between different parts of the data, whose diagonal is the null, or else between all data."""
    return (matrix.values if matrix.across is None else matrix.across).copy()


def _heatmap(matrix: SimilarityMatrix, order: NDArray[Any], ax: Axes | None) -> Axes:
    at = np.ix_(order, order)
    labels, few = [matrix.labels[i] for i in order], is_legible(matrix.labels)
    bar = {"label": _label(matrix.metric)}
    look = {"cmap": style.shades("mako_r"), "vmin": 0, "linewidths": 0.5 if few else 0, "linecolor": "white"}
    ax = square_heatmap(_shown(matrix)[at], labels, bar=bar, room=1.0, ax=ax, **look)
    if matrix.exceeds is None:
        return ax
    beyond = matrix.exceeds[at]
    for text, marked in zip(ax.texts, beyond.ravel(), strict=False):
        text.set_fontweight("bold" if marked else "normal")
    if not few:
        rows, columns = np.nonzero(beyond)
        ax.plot(columns + 0.5, rows + 0.5, ".", color="white", markersize=2.5, markeredgecolor=style.INK, mew=0.3)
    return ax


def _label(metric: str) -> str:
    name = _NAMES.get(metric, metric)
    return f"{name} {style.units()}" if metric == "wasserstein" else name
