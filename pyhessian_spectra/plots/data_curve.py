"""The figure of eigenvalues against the number of examples, and of what more of them would give."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from seaborn import color_palette

from pyhessian_spectra.analysis.data_curve import DataCurve
from pyhessian_spectra.plots import style

# The interval for more data is drawn up to so many times the examples there are.
_BEYOND = 10


def plot_data_curve(curve: DataCurve, *, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues over subsets of the data, their errors at all ``N``, and the interval for more data.

    Bars are standard deviations over subsets; those at ``N`` are standard errors. The band holds the largest eigenvalue
    that more data give on average, with the curve's confidence, and the dashed line in it is a guess.
    """
    ranks = range(curve.means.shape[1])
    shades = [style.BLUE, *color_palette(f"blend:{style.GREEN},#c9dfd6", max(1, len(ranks) - 1)).as_hex()]
    count, look = curve.num_examples, {"markersize": 4, "linewidth": 1.1, "elinewidth": 0.9, "capsize": 2}
    with style.drawing(ax, height=style.HEIGHT + 0.2) as ax:
        _draw_forecast(ax, curve)
        for j in reversed(ranks):
            errors = np.append(curve.spreads[:-1, j], curve.stderr[j])
            bars: dict[str, Any] = {"yerr": _within(errors, curve.means[:, j]), **look, "color": shades[j]}
            ax.errorbar(curve.sizes, curve.means[:, j], fmt="o-", markerfacecolor="white", zorder=3 - j / 100, **bars)
            label = rf"$\lambda_{{{j + 1}}}$" if j in (0, 1, len(ranks) - 1) else None
            ax.plot(count, curve.means[-1, j], "o", color=shades[j], markersize=5.5, zorder=4, label=label)
        ax.axvline(count, color=style.MUTED, linewidth=0.8, linestyle=":")
        ax.annotate(f" all {count:,}", (count, 0.98), xycoords=("data", "axes fraction"), va="top", **style.REMARK)
        _scale(ax, curve)
        ax.set(xlabel="Examples", ylabel=style.EIGENVALUE)
        handles, labels = ax.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: (not labels[i].startswith(r"$\lambda"), labels[i]))
        chosen = [handles[i] for i in order], [labels[i] for i in order]
        ax.legend(*chosen, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1.0, handletextpad=0.3)
    return ax


def _draw_forecast(ax: Axes, curve: DataCurve) -> None:
    """Draw the interval for the largest eigenvalue of more data, and the guess within it."""
    low, high = curve.interval()
    sizes = np.geomspace(curve.num_examples, _BEYOND * curve.num_examples, 40)
    label = f"$\\lambda_1$ of more: {100 * curve.level:g} % interval"
    ax.fill_between(sizes, low, high, color=style.BLUE, alpha=0.16, linewidth=0, label=label)
    guess = [curve.expected(int(np.ceil(size))) for size in sizes]
    ax.plot(sizes, guess, "--", color=style.BLUE, linewidth=1.1, label="a guess")


def _within(errors: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Bars (2, s) that stay above zero on a logarithmic axis."""
    return np.stack([np.minimum(errors, 0.9 * values), errors])


def _scale(ax: Axes, curve: DataCurve) -> None:
    """Logarithmic axes with plain numbers."""
    ax.set(xscale="log", yscale="log")
    ax.set_xlim(curve.sizes[0] / 1.25, _BEYOND * curve.num_examples)
    low, high = ax.get_ylim()
    few = high / low < 200
    for axis, subs in ((ax.xaxis, (1.0, 3.0)), (ax.yaxis, (1.0, 2.0, 5.0) if few else (1.0,))):
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())
