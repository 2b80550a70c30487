"""Draws the loss on lines and planes beside the quadratic model at their centre, each with its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from mpl_toolkits.mplot3d import Axes3D

from pyhessian_spectra.analysis.surface import LossSurface
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number, format_with_error
from pyhessian_spectra.plots import style
from pyhessian_spectra.spectra.results import Floats

# Contours, at heights whose roots are evenly apart: those of a bowl then are as well.
_LEVELS = 12
# More lines than this have a colour bar's worth of labels: only the first and the last are named.
_LEGIBLE = 6


def plot_loss_line(surface: LossSurface, *, ax: Axes | None = None) -> Axes:
    """Draw the loss on a line, and dashed the quadratic model, which its slope and curvature at the centre give.

    Bands are standard errors of the differences to the centre, on the same data. The error of the loss at the centre,
    in the legend, moves all together. Crosses are losses that are not finite.
    """
    (x,) = _require(surface, 1)
    model = surface.centre + surface.model
    with style.drawing(ax) as ax:
        low, high = _range(surface.loss)
        ax.axvline(0, color=style.GRID, linewidth=1.0, zorder=0)
        told = f"loss, {_told(surface.centre, surface.rounding, surface.centre_stderr)} at 0"
        _line(ax, x, surface.loss, surface.rise_stderr, {"color": style.BLUE, "label": told})
        slope = _told(surface.slopes[0], surface.slopes_rounding[0], surface.slopes_stderr)
        bend = _told(surface.curvatures[0, 0], surface.curvatures_rounding[0, 0], surface.curvatures_stderr)
        told = f"model: slope {slope}, curvature {bend}"
        _line(ax, x, model, surface.model_stderr, {"color": style.VERMILION, "ls": "--", "label": told})
        _mark_missing(ax, x, surface.loss, high)
        ax.set(xlim=(x[0], x[-1]), ylim=(low, high), xlabel=_step(surface, 0), ylabel="Loss")
        style.legend_above(ax, columns=3)
    return ax


def plot_loss_lines(surfaces: Mapping[str, LossSurface], *, ax: Axes | None = None) -> Axes:
    """Draw the loss on several lines, such as between two networks at several steps of their training.

    Bands are standard errors of the differences to each line's centre.
    """
    if not surfaces:
        raise InputError("surfaces is empty; a figure needs at least one line")
    few = len(surfaces) <= _LEGIBLE
    colors = sns.color_palette("colorblind" if few else "viridis", len(surfaces))
    with style.drawing(ax, height=style.HEIGHT + 0.2) as ax:
        ends = [_range(surface.loss) for surface in surfaces.values()]
        for number, ((label, surface), color) in enumerate(zip(surfaces.items(), colors, strict=True)):
            (x,) = _require(surface, 1)
            named = few or number in (0, len(surfaces) - 1)
            look = {"color": color, "label": style.literal(label) if named else ""}
            _line(ax, x, surface.loss, surface.rise_stderr, look)
        first = next(iter(surfaces.values()))
        ax.set(ylim=(min(low for low, _ in ends), max(high for _, high in ends)), ylabel="Loss")
        ax.set(xlabel=_step(first, 0), xlim=(first.positions[0][0], first.positions[0][-1]))
        style.legend_above(ax, columns=4)
    return ax


def plot_loss_contour(surface: LossSurface, *, ax: Axes | None = None) -> Axes:
    """Draw the loss on a plane as filled contours, and dashed those of the quadratic model at the same heights.

    Heights are further apart the higher they are, so that contours of a bowl are evenly apart. Where the loss is not
    finite the plane is left open.
    """
    x, y = _require(surface, 2)
    loss, model, levels = _finite(surface.loss).T, surface.centre + surface.model.T, _levels(surface)
    with style.drawing(ax, height=style.HEIGHT + 0.6) as ax:
        cmap = style.shades("mako")
        norm = BoundaryNorm(levels, cmap.N)
        filled = ax.contourf(x, y, np.ma.masked_invalid(loss), levels, cmap=cmap, norm=norm)
        ax.contour(x, y, model, levels, colors=style.VERMILION, linewidths=0.9, linestyles="--")
        ax.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.6)
        ax.plot([], [], "--", color=style.VERMILION, linewidth=0.9, label="quadratic model, same heights")
        bar = ax.figure.colorbar(filled, ax=ax, ticks=levels[::3], shrink=0.9, pad=0.02, label="Loss")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value, digits=2)))
        bar.ax.minorticks_off()
        ax.set(xlabel=_step(surface, 0), ylabel=_step(surface, 1), xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        ax.grid(visible=False)
        style.legend_above(ax, columns=1)
    return ax


def plot_loss_landscape(surface: LossSurface, *, ax: Axes | None = None) -> Axes:
    """Draw the loss on a plane in three dimensions, and the quadratic model as a dashed net within its range.

    Raises InputError if ``ax`` is not three-dimensional, as of ``figure.add_subplot(projection="3d")``.
    """
    x, y = _require(surface, 2)
    if ax is None:
        with style.theme():
            figure = Figure(figsize=(style.WIDTH, style.HEIGHT + 1.0), layout="constrained")
            ax = figure.add_subplot(projection="3d")
    if not isinstance(ax, Axes3D):
        raise InputError('ax must have three dimensions; make it by figure.add_subplot(projection="3d")')
    low, high = _range(surface.loss)
    loss, model = _finite(surface.loss), surface.centre + surface.model
    across, along = np.meshgrid(x, y, indexing="ij")
    with style.drawing(ax):
        look: dict[str, Any] = {"cmap": style.shades("mako"), "linewidth": 0.15, "edgecolor": "white", "alpha": 0.85}
        ax.plot_surface(across, along, loss, rstride=1, cstride=1, vmin=low, vmax=high, **look)
        shown = np.where((model >= low) & (model <= high), model, np.nan)
        rows = {"rcount": 9, "ccount": 9}
        ax.plot_wireframe(across, along, shown, colors=style.VERMILION, linewidth=0.8, linestyle="--", **rows)
        ax.plot([], [], "--", color=style.VERMILION, linewidth=0.8, label="quadratic model")
        ax.set(zlim=(low, high))
        for axis, label in ((ax.xaxis, _step(surface, 0)), (ax.yaxis, _step(surface, 1)), (ax.zaxis, "Loss")):
            axis.set_label_text(label, fontsize=7.5)
            axis.labelpad = -2
            axis.set_major_locator(MaxNLocator(5))
        ax.tick_params(labelsize=6.5, pad=-2)
        ax.set_box_aspect((4, 4, 3), zoom=0.86)  # else labels leave the figure
        ax.legend(loc="upper left", fontsize=7.5)
    return ax


def _require(surface: LossSurface, count: int) -> tuple[Floats, ...]:
    if len(surface.positions) != count:
        drawn = ("plot_loss_line", "plot_loss_contour or plot_loss_landscape")[len(surface.positions) - 1]
        raise InputError(f"the surface has {len(surface.positions)} directions, not {count}; draw it by {drawn}")
    return surface.positions


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _range(loss: Floats) -> tuple[float, float]:
    """Ends of an axis that hold every loss that is finite."""
    known = loss[np.isfinite(loss)]
    if not known.size:
        raise InputError("the loss is finite nowhere on the surface; choose positions nearer to the centre")
    low, high = float(known.min()), float(known.max())
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _levels(surface: LossSurface) -> Floats:
    known = surface.loss[np.isfinite(surface.loss)]
    _range(known)
    low, high = float(known.min()), float(known.max())
    high = high if high > low else low + 1.0
    return low + (high - low) * np.linspace(0, 1, _LEVELS + 1) ** 2


def _line(ax: Axes, x: Floats, y: Floats, error: Floats | None, look: dict[str, Any]) -> None:
    y = _finite(y)
    ax.plot(x, y, linewidth=1.4, **look)
    if error is not None:
        ax.fill_between(x, y - error, y + error, color=look["color"], alpha=0.22, linewidth=0)


def _mark_missing(ax: Axes, x: Floats, loss: Floats, high: float) -> None:
    missing = ~np.isfinite(loss)
    if missing.any():
        ax.plot(x[missing], np.full(missing.sum(), high), "x", color=style.INK, label="not finite", clip_on=False)


def _step(surface: LossSurface, i: int) -> str:
    return f"Step along {style.literal(surface.labels[i])}"


def _told(value: float, off: float, data: Floats | float | None) -> str:
    """Write a value with the largest of its errors."""
    return format_with_error(float(value), max(float(off), 0.0 if data is None else float(np.ravel(data)[0])))
