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

# Bars of neighbouring ranks stand so far apart, as a ratio of numbers of examples.
_APART = 1.035


def plot_data_curve(curve: DataCurve, *, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues over subsets of the data, their errors at all ``N``, and the interval for more data.

    Bars are standard deviations over subsets; those at ``N`` (filled) are standard errors. The band holds the largest
    eigenvalue that more data give on average, with the curve's confidence, and the dashed line in it is a guess. Bars
    of further ranks stand a little to the left of their numbers of examples.
    """
    ranks, count = curve.means.shape[1], curve.num_examples
    shades = [style.BLUE, *color_palette(f"blend:{style.GREEN},#b8d4c8", max(1, ranks - 1)).as_hex()]
    with style.drawing(ax, height=style.HEIGHT + 0.2) as ax:
        for j in reversed(range(ranks)):
            label = rf"$\lambda_{{{j + 1}}}$" if j in (0, 1, ranks - 1) else ""
            _draw_rank(ax, curve, j, {"color": shades[j], "zorder": 3 - j / 100}, label)
        _draw_forecast(ax, curve)
        ax.axvline(count, color=style.MUTED, linewidth=0.8, linestyle=":")
        ax.annotate(f" all {count:,}", (count, 0.98), xycoords=("data", "axes fraction"), va="top", **style.REMARK)
        _scale(ax, curve)
        ax.set(xlabel="Examples", ylabel=style.eigenvalue())
        _label(ax)
    return ax


def _draw_rank(ax: Axes, curve: DataCurve, j: int, look: dict[str, Any], label: str) -> None:
    """Draw the curve of one rank."""
    sizes, values = curve.sizes / _APART**j, curve.means[:, j]
    if not values[-1] > 0:
        return
    errors = np.append(curve.spreads[:-1, j], curve.stderr[j])
    # on a logarithmic axis what reaches zero runs out of the picture
    bars = np.stack([np.minimum(errors, (1 - 1e-6) * values), errors])
    ax.plot(sizes, values, linewidth=1.1, **look)
    for part, face in ((slice(None, -1), "white"), (slice(-1, None), look["color"])):
        points: dict[str, Any] = {
            "fmt": "o",
            "markersize": 4.5,
            "elinewidth": 0.9,
            "capsize": 2,
            "markerfacecolor": face,
        }
        ax.errorbar(sizes[part], values[part], yerr=bars[:, part], label=label if part.start else "", **points, **look)


def _draw_forecast(ax: Axes, curve: DataCurve) -> None:
    """Draw the interval for the largest eigenvalue of more data, and the guess within it."""
    low, high = curve.interval()
    sizes = np.geomspace(curve.num_examples, _BEYOND * curve.num_examples, 40)
    label = f"$\\lambda_1$ of more: {100 * curve.level:g} % interval"
    ax.fill_between(sizes, low, high, color=style.BLUE, alpha=0.16, linewidth=0, label=label)
    guess = [curve.expected(int(np.ceil(size))) for size in sizes]
    ax.plot(sizes, guess, "--", color=style.BLUE, linewidth=1.1, label="a guess")


def _scale(ax: Axes, curve: DataCurve) -> None:
    """Logarithmic axes with plain numbers, wide enough for the values and the interval, if not for every bar."""
    low, high = curve.interval()
    shown = curve.means[curve.means > 0]
    tops = (curve.means[:, 0] + np.append(curve.spreads[:-1, 0], curve.stderr[0])).max()
    # an interval that reaches down to nothing would leave no room for the values
    bottom, top = min(shown.min(), max(low, 1e-3 * shown.min())) / 1.4, max(tops, high) * 1.25
    ax.set(xscale="log", yscale="log", ylim=(bottom, top))
    ax.set_xlim(curve.sizes[0] / 1.3, _BEYOND * curve.num_examples)
    for axis, subs in ((ax.xaxis, (1.0, 3.0)), (ax.yaxis, (1.0, 2.0, 5.0) if top < 200 * bottom else (1.0,))):
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())


def _label(ax: Axes) -> None:
    """Name what is drawn, the ranks first."""
    found = list(zip(*ax.get_legend_handles_labels(), strict=True))
    ranks = sorted((each for each in found if each[1].endswith("}$")), key=lambda each: (len(each[1]), each[1]))
    chosen = [*ranks, *(each for each in found if not each[1].endswith("}$"))]
    style.legend_above(ax, columns=5, entries=chosen)
