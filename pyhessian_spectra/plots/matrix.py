"""Figures of plain arrays show a matrix, ruled by layer, or all eigenvalues of several, by rank and counted."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyhessian_spectra.curvature import ParameterLayout, Partition
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import style

# Entries this many powers of ten below the largest, and eigenvalues below this part of the largest, are drawn on a
# linear scale about zero.
_DECADES, _LINEAR = 3, 1e-4
_BINS = 60


def plot_matrix(matrix: ArrayLike, layout: ParameterLayout, *, ax: Axes | None = None) -> Axes:
    """Draw a curvature matrix as a heatmap, rows and columns in parameter order and ruled by layer.

    Colours are symmetric about zero and logarithmic over the largest three powers of ten, so that blocks of different
    scale are seen beside each other.

    Parameters
    ----------
    matrix : array_like, shape (n, n)
        For example ``HessianOperator(risk).to_dense()``.
    layout : ParameterLayout
        The layout of these ``n`` parameters, such as ``risk.layout``.
    ax : Axes, optional

    Raises
    ------
    InputError
        The matrix is not finite, or its shape is not the layout's.
    """
    values = np.asarray(matrix, dtype=np.float64)
    n = layout.n
    if values.shape != (n, n):
        raise InputError(f"the matrix has shape {values.shape} and the layout {n} parameters; pass the risk's layout")
    if not np.isfinite(values).all():
        raise InputError("the matrix has entries that are NaN or infinite; leave that network out")
    top = float(np.abs(values).max(initial=0.0)) or 1.0
    highest = math.floor(math.log10(top))
    decades = [10.0**power for power in range(highest - _DECADES, highest + 1)]
    norm = SymLogNorm(decades[0], linscale=0.7, vmin=-top, vmax=top)
    groups = list(Partition.by_module(layout))
    ends = [(int(group.indices[0]), int(group.indices[-1])) for group in groups]
    names = [f"layer {i}" if each.label.isdigit() else style.literal(each.label) for i, each in enumerate(groups, 1)]
    with style.drawing(ax, width=4.6, height=4.0) as ax:
        image = ax.imshow(values, cmap="RdBu_r", norm=norm, interpolation="nearest")
        for last in {last for _, last in ends} - {n - 1}:
            ax.axhline(last + 0.5, color=style.INK, linewidth=0.7)
            ax.axvline(last + 0.5, color=style.INK, linewidth=0.7)
        centres = [(first + last) / 2 for first, last in ends]
        ax.set_xticks(centres, names)
        ax.set_yticks(centres, names, rotation=90, va="center")
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[["top", "right"]].set_visible(True)
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02, label=style.units())
        bar.set_ticks([*(-value for value in reversed(decades)), 0.0, *decades], minor=False)
        bar.minorticks_off()
        bar.ax.grid(visible=False)
        bar.outline.set_visible(False)
    return ax


def plot_profiles(spectra: Mapping[str, ArrayLike], *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """Draw all eigenvalues of several matrices: sorted, over the rank divided by ``n``, and as histograms.

    Parameters
    ----------
    spectra : mapping of str to array_like, shape (n,)
        Eigenvalues in any order, by the name the legend shows; lighter to darker colours in their order.
    axes : (Axes, Axes), optional
        For the sorted eigenvalues and for the histograms; by default those of a figure of its own, one
        above the other.

    Returns
    -------
    (Axes, Axes)

    Raises
    ------
    InputError
        There is no spectrum, or one that is empty or not finite.
    """
    profiles = {name: np.sort(np.asarray(values, dtype=np.float64).ravel()) for name, values in spectra.items()}
    if not profiles:
        raise InputError("spectra is empty; a figure of profiles needs at least one list of eigenvalues")
    for name, values in profiles.items():
        if not (values.size and np.isfinite(values).all()):
            raise InputError(f"the eigenvalues of {name!r} are empty or not finite; leave that network out")
    everything = np.concatenate(list(profiles.values()))
    top = float(np.abs(everything).max()) or 1.0
    bins = np.linspace(everything.min(), everything.max() or 1.0, _BINS + 1)
    colors = colormaps["viridis_r"](0.15 + 0.8 * np.arange(len(profiles)) / max(1, len(profiles) - 1))
    with style.theme():
        figure = Figure(figsize=(style.WIDTH, 2 * style.HEIGHT), layout="constrained")
        ranked, counted = figure.subplots(2, 1) if axes is None else axes
        for (name, values), color in zip(profiles.items(), colors, strict=True):
            rank = (np.arange(len(values)) + 0.5) / len(values)
            ranked.plot(rank, values, color=color, linewidth=1.2, label=style.literal(name))
            ranked.plot(rank[-2:], values[-2:], ".", color=color, markersize=4)
            counts = np.maximum(np.histogram(values, bins)[0], 0.5)
            counted.stairs(counts, bins, color=color, linewidth=1.2, baseline=0.5)
        ranked.set_yscale("symlog", linthresh=_LINEAR * top, linscale=1.2)
        # Labels so near to zero would lie over the label of zero.
        low, high = ranked.get_ylim()
        apart = [t for t in ranked.get_yticks() if low <= t <= high and not 0 < abs(t) < 3 * _LINEAR * top]
        ranked.set(yticks=apart, xlabel="Rank / n", ylabel=f"Eigenvalue {style.units()}", title="Sorted eigenvalues")
        ranked.legend(fontsize=7, loc="upper left")
        counted.set_yscale("log")
        counted.set(
            ylim=(0.5, None), xlabel=f"Eigenvalue {style.units()}", ylabel="Eigenvalues in a bin", title="Histogram"
        )
        counted.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    return ranked, counted
