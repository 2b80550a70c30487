"""The matrix itself as a picture, ruled by layer."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from numpy.typing import ArrayLike

from pyhessian_spectra.curvature import ParameterLayout, Partition
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots.style import INK, UNITS, literal, new_axes, theme

# Entries this many powers of ten below the largest are drawn on a linear scale about zero.
_DECADES = 3


def plot_matrix(matrix: ArrayLike, layout: ParameterLayout, *, ax: Axes | None = None) -> Axes:
    """A curvature matrix as a heatmap, rows and columns in parameter order and ruled by layer.

    Colours are symmetric about zero and logarithmic over the largest three powers of ten, so that blocks of different
    scale are seen beside each other.

    Parameters
    ----------
    matrix : array_like, shape (n, n)
        For example ``HessianOperator(risk).to_dense()``.
    layout : ParameterLayout
        Of the same ``n``, such as ``risk.layout``.
    ax : Axes, optional

    Raises
    ------
    InputError
        The matrix is not finite, or its shape is not the layout's.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape != (layout.n, layout.n):
        raise InputError(
            f"the matrix has shape {values.shape} and the layout {layout.n} parameters; pass the risk's own layout"
        )
    if not np.isfinite(values).all():
        raise InputError("the matrix has entries that are NaN or infinite; leave that network out")
    ax = new_axes(4.6, 4.0) if ax is None else ax
    top = float(np.abs(values).max(initial=0.0)) or 1.0
    highest = math.floor(math.log10(top))
    decades = [10.0**power for power in range(highest - _DECADES, highest + 1)]
    norm = SymLogNorm(decades[0], linscale=0.7, vmin=-top, vmax=top)
    with theme():
        image = ax.imshow(values, cmap="RdBu_r", norm=norm, interpolation="nearest")
        _rule(ax, layout)
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02)
        bar.set_ticks([*(-value for value in reversed(decades)), 0.0, *decades], minor=False)
        bar.set_label(UNITS)
        bar.ax.minorticks_off()
        bar.ax.grid(visible=False)
        bar.outline.set_visible(False)
    return ax


def _rule(ax: Axes, layout: ParameterLayout) -> None:
    """Lines between layers, their names in the middle."""
    centres: list[float] = []
    names: list[str] = []
    for group in Partition.by_module(layout):
        start, stop = int(group.indices[0]), int(group.indices[-1]) + 1
        centres.append((start + stop - 1) / 2)
        names.append(f"layer {len(names) + 1}" if group.label.isdigit() else literal(group.label))
        if stop < layout.n:
            ax.axhline(stop - 0.5, color=INK, linewidth=0.7)
            ax.axvline(stop - 0.5, color=INK, linewidth=0.7)
    ax.set_xticks(centres, names)
    ax.set_yticks(centres, names, rotation=90, va="center")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(True)
