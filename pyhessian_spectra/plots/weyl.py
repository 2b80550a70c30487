"""A figure of what the Gauss-Newton part says of every eigenvalue of the Hessian."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from pyhessian_spectra.analysis.result import BlockAnalysis, GaussNewton
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.axis import scale_values


def plot_weyl(part: GaussNewton, hessian: BlockAnalysis | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of ``G`` by rank, the band that holds those of ``H``, and those of ``H`` that are known.

    Ranks are on a logarithmic axis, eigenvalues on one that is linear near zero. By Weyl's inequalities the eigenvalue
    of ``H`` of each rank is that of ``G`` shifted by an eigenvalue of ``H - G`` at most. Raises InputError if the
    eigenvalues of ``H - G`` are not bounded.
    """
    low, high = part.shifts
    values = part.block.spectrum.nodes[0][::-1]
    if not len(values):
        raise InputError("the Gauss-Newton part has no eigenvalues to draw")
    n = len(values)
    ranks = np.unique(np.geomspace(1, n, 400).round().astype(int))
    shown = values[ranks - 1]
    with style.drawing(ax) as ax:
        scale_values(ax, np.array([shown[0] + high, shown[-1] + low, low, high]))
        ax.fill_between(
            ranks, shown + low, shown + high, step="mid", color=style.BLUE, alpha=0.18, linewidth=0,
            label="$H$: band of Weyl",
        )  # fmt: skip
        ax.plot(ranks, shown, color=style.BLUE, linewidth=1.2, label="$G$: exact")
        if hessian is not None and len(hessian.largest):
            pairs = hessian.largest.take(slice(None, None, -1))
            look = {"markersize": 4, "elinewidth": 0.9, "capsize": 2, "fmt": "o", "color": style.ORANGE}
            style.mark_pairs(ax, pairs, np.arange(1, len(pairs) + 1), along="y", look=look, label="$H$: found")
        ax.set_xscale("log")
        ax.set_xlim(0.9, 1.1 * n)
        ax.set(xlabel="Rank", ylabel=style.eigenvalue())
        style.legend_above(ax, columns=3)
    return ax
