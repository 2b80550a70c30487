"""Draws many checkpoints beside a reference: differences, densities over one another, small multiples, layers."""

from __future__ import annotations

import math

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import TwoSlopeNorm

from pyhessian_spectra.analysis.comparison import Comparison
from pyhessian_spectra.analysis.correlation import RankCorrelation
from pyhessian_spectra.analysis.similarity import WHOLE
from pyhessian_spectra.analysis.trajectory import both_errors, exceeds
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.axis import EigenvalueAxis
from pyhessian_spectra.plots.eigenvalues import place_checkpoints
from pyhessian_spectra.plots.heatmap import finish

# Densities below this part of the eigenvalues per decade are not drawn.
_FLOOR = 1e-4
# So many curves can be told apart in one figure, and so many names be read below one another.
_CURVES, _NAMES = 12, 40
# Small multiples in a row, inches of each, and how much of that is drawn on.
_ACROSS, _SMALL, _TALL = 6, (1.25, 0.85), 0.8
_SYMBOLS = {"lambda_1": r"$\lambda_1$", "lambda_n": r"$\lambda_n$", "trace": "trace"}


def plot_differences(
    found: Comparison, quantity: str = "lambda_1", *, block: str = WHOLE, ax: Axes | None = None
) -> Axes:
    """Draw what sets each checkpoint apart from the reference, a line for each run.

    Dark bars are the 95 % errors of the difference, of computation and data together; the wide light ones behind them
    what they would be if the two had nothing in common. Hollow marks do not exceed their errors. Raises InputError if
    no checkpoint has such a difference.
    """
    shown = {i: each for i, each in found.compared if (block, quantity) in each.changes}
    if not shown:
        raise InputError(f"no checkpoint has a difference of {quantity!r} of {block!r}")
    order = [i for i in range(len(found.labels)) if i in shown or i == found.reference]
    steps = [found.steps[i] for i in order]
    timed = all(step is not None for step in steps)
    places = sorted({float(step) for step in steps if step is not None}) if timed else [*map(float, range(len(order)))]
    colors = dict(zip(found.runs, sns.color_palette("colorblind", len(found.runs)), strict=True))
    with style.drawing(ax, height=style.HEIGHT + 0.2) as ax:
        named = [found.labels[i] if len(order) <= _NAMES else "" for i in order]
        x = place_checkpoints(ax, places if timed else [None] * len(places), named)
        across = dict(zip(places, x, strict=True))
        at = {i: float(across[float(found.steps[i] or 0.0)] if timed else x[rank]) for rank, i in enumerate(order)}
        ax.axhline(0, color=style.INK, linewidth=0.8)
        for run, members in found.runs.items():
            own = [i for i in members if i in shown]
            if not own:
                continue
            moved = [shown[i].changes[block, quantity] for i in own]
            values, color = [each.value for each in moved], colors[run]
            label = style.literal(run) if len(found.runs) <= _CURVES else ""
            ax.plot([at[i] for i in own], values, color=color, linewidth=0.9, label=label)
            alone = [shown[i].alone.get((block, quantity), 0.0) for i in own]
            ax.errorbar([at[i] for i in own], values, alone, fmt="none", ecolor=style.MUTED, elinewidth=4, alpha=0.25)
            ax.errorbar([at[i] for i in own], values, [*map(both_errors, moved)], fmt="none", ecolor=color, capsize=2)
            faces = [color if exceeds(each) else "white" for each in moved]
            ax.scatter([at[i] for i in own], values, s=18, facecolors=faces, edgecolors=[color], zorder=3)
        ax.scatter([at[found.reference]], [0.0], s=34, marker="D", color=style.INK, zorder=4, label="reference")
        symbol = _SYMBOLS.get(quantity, quantity)
        units = "" if quantity.startswith("share") else f" {style.units()}"
        of = "" if block == WHOLE else f" of {style.literal(block)}"
        ax.set_ylabel(f"Difference of {symbol}{of}{units}")
        style.legend_above(ax, columns=4)
    return ax


def plot_overlaid(found: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the smoothed densities of all checkpoints over one another, the reference in black.

    Of more than twelve, those of the reference, of the first and last, and of others evenly between them are drawn.
    """
    densities = found.densities
    count = len(found.labels)
    chosen = dict.fromkeys(round(i) for i in np.linspace(0, count - 1, min(count, _CURVES)))
    shades = sns.color_palette("viridis", len(chosen))
    with style.drawing(ax, height=style.HEIGHT + 0.5) as ax:
        _density_axes(ax, found)
        for color, i in zip(shades, chosen, strict=True):
            if i != found.reference:
                label = style.literal(found.labels[i])
                ax.plot(densities.eigenvalues, densities.values[i], color=color, linewidth=1.1, label=label)
        own = found.reference
        label = style.literal(found.labels[own]) + " (reference)"
        ax.plot(densities.eigenvalues, densities.values[own], color=style.INK, linewidth=1.3, label=label)
        ax.set(xlabel=style.eigenvalue(), ylabel="Fraction of eigenvalues per decade")
        style.legend_above(ax, columns=3)
    return ax


def plot_multiples(found: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw each checkpoint's smoothed density in a panel of its own, over that of the reference in grey.

    Where the difference exceeds its errors it is filled. All panels have one scale, that of :func:`plot_overlaid`, and
    the first row's ends and zero are labelled. They are drawn in one Axes: hundreds of Axes take minutes.
    """
    densities, own, count = found.densities, found.reference, len(found.labels)
    heights = np.log(np.maximum(densities.values, _FLOOR) / _FLOOR)
    heights *= _TALL / float(heights.max())
    seen = np.flatnonzero((heights > 0).any(axis=0))
    shown = slice(seen[0], seen[-1] + 1)
    points, heights = densities.eigenvalues[shown], heights[:, shown]
    place = np.linspace(0.0, _TALL, len(points))
    rows = math.ceil(count / _ACROSS)
    lines, grey, filled = [], [], []
    with style.drawing(ax, width=_ACROSS * _SMALL[0], height=rows * _SMALL[1] + 0.5) as ax:
        for i, curve in enumerate(heights):
            x, base = place + i % _ACROSS, i // _ACROSS + 1.0
            lines.append(np.column_stack([x, base - curve]))
            grey.append(np.column_stack([x, base - heights[own]]))
            apart = densities.exceeds[i, shown]
            for part in np.split(np.arange(len(x)), np.flatnonzero(np.diff(apart)) + 1):
                if apart[part[0]] and len(part) > 1:
                    filled.append(np.concatenate([lines[i][part], grey[i][part[::-1]]]))
            ax.text(x[0], base - _TALL, style.literal(found.labels[i], length=22), fontsize=5.5, va="bottom")
            ax.plot([x[0], x[-1]], [base, base], color=style.MUTED, linewidth=0.4)
        ax.add_collection(PolyCollection(filled, facecolors=style.ORANGE, alpha=0.5, linewidths=0))
        ax.add_collection(LineCollection(grey, colors=style.MUTED, linewidths=0.7))
        inks = [style.INK if i == own else style.BLUE for i in range(count)]
        ax.add_collection(LineCollection(lines, colors=inks, linewidths=0.8))
        for at in (0, int(np.abs(points).argmin()), len(points) - 1):
            text = format_number(float(points[at]), digits=1) if at in (0, len(points) - 1) else "0"
            ax.text(place[at], 1.02, text, fontsize=5, ha="center", va="top", color=style.MUTED)
        ax.set(xlim=(-0.05, _ACROSS), ylim=(rows + 0.12, -0.05))
        ax.set_axis_off()
    return ax


def plot_layer_differences(found: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw by how much the trace of each layer differs from the reference's, relative to it, as a heatmap.

    A dot marks differences that do not exceed their errors. Raises InputError if no layer is in all analyses.
    """
    first = found.analyses[found.reference].layers
    layers = [name for name in first if all(name in each.layer_traces for _, each in found.compared)]
    places = [i for i, _ in found.compared]
    if not layers:
        raise InputError("no layer was analysed at all checkpoints; ask for layers to compare them")
    table = np.array([[_relative(found, i, name) for i in places] for name in layers])
    sure = np.array([[exceeds(found.differences[i].layer_traces[name]) for i in places] for name in layers])  # type: ignore[union-attr]
    most = float(np.abs(table).max()) or 1.0
    many = len(places) > _NAMES
    width = max(style.WIDTH, 2.2 + (0.24 * len(places) if not many else 6.0))
    with style.drawing(ax, width=width, height=max(2.6, 1.5 + 0.24 * len(layers))) as ax:
        names = "auto" if many else [style.literal(found.labels[i], length=20) for i in places]
        sns.heatmap(
            table, ax=ax, cmap=style.shades("vlag"), norm=TwoSlopeNorm(0.0, -most, most), xticklabels=names,
            yticklabels=[style.literal(name, length=16) for name in layers],
            cbar_kws={"label": "Relative to the\nreference’s trace"},
        )  # fmt: skip
        finish(ax)
        rows, columns = np.nonzero(~sure)
        ax.scatter(columns + 0.5, rows + 0.5, s=3, color=style.INK)
        ax.set_xlabel("Checkpoint")
    return ax


def plot_correlation(found: RankCorrelation, *, ax: Axes | None = None) -> Axes:
    """Draw one number of each checkpoint against the other, a colour for each run, with the rank correlation."""
    names = list(dict.fromkeys(found.runs))
    colors = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    known = "no interval: fewer than five runs"
    if found.interval is not None:
        known = f"{100 * found.level:g} % interval over runs {found.interval[0]:.2f} to {found.interval[1]:.2f}"
    with style.drawing(ax) as ax:
        for name in names:
            own = np.array([run == name for run in found.runs])
            label = style.literal(name) if 1 < len(names) <= _CURVES else ""
            ax.plot(found.x[own], found.y[own], "o", markersize=4, color=colors[name], alpha=0.8, label=label)
        for which, values in (("x", found.x), ("y", found.y)):
            if values.min() > 0 and values.max() > 30 * values.min():
                ax.set(**{f"{which}scale": "log"})
        called = [r"$\lambda_1$" if name == "lambda_1" else style.literal(name, length=40) for name in found.names]
        ax.set(xlabel=called[0], ylabel=called[1])
        if 1 < len(names) <= _CURVES:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        of = f"{len(found.x)} checkpoints, {len(names)} run{'s' * (len(names) > 1)}"
        text = f"{found.method.capitalize()} {found.value:.2f}, {known}; {of}"
        style.remark_above(ax, text)
    return ax


def _relative(found: Comparison, place: int, layer: str) -> float:
    difference, own = found.differences[place], found.analyses[found.reference].layers[layer].trace.value
    return difference.layer_traces[layer].value / abs(own) if difference is not None and own else 0.0


def _density_axes(ax: Axes, found: Comparison) -> None:
    """A logarithmic scale for densities over the axis they were smoothed along."""
    densities = found.densities
    seen = densities.eigenvalues[(densities.values > _FLOOR).any(axis=0)]
    low, high = (float(np.arcsinh(end / densities.threshold) / np.log(10)) for end in (seen.min(), seen.max()))
    EigenvalueAxis(densities.threshold, low, high, densities.bandwidth).set_scale(ax)
    ax.set_yscale("log")
    ax.set_ylim(_FLOOR, 2 * float(densities.values.max()))
