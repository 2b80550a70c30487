"""This module says how every figure looks and draws what several share. It never changes the user's own rcParams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from pyhessian_spectra.spectra.results import Eigenpairs

#: Text and axes have the first ink; the two lighter ones are for remarks and grids.
INK, MUTED, GRID = "#24292f", "#6e7781", "#e1e4e8"
#: These are the first four colours of seaborn's colour-blind-safe palette (after Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION = sns.color_palette("colorblind", 4).as_hex()
#: Sizes are in inches. A text column is 3.3 to 5 wide; at 3.3 the smallest text is still 5.5 points high.
WIDTH, HEIGHT = 4.8, 3.0

_RC = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper"),
    **dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["axes.facecolor", "figure.facecolor", "savefig.facecolor"], "none"),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right"], False),
    **dict.fromkeys(["xtick.minor.width", "ytick.minor.width"], 0.5),
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "pyhessian-spectra",
    "savefig.dpi": 200,
}
#: An eigenvalue or a trace of a Hessian has these units: the loss is a number (nats for cross-entropy).
UNITS = "[loss / parameter$^2$]"
#: An axis of eigenvalues has this label.
EIGENVALUE = f"Eigenvalue $\\lambda$ {UNITS}"
#: Text that explains a figure from inside it looks like this.
REMARK: dict[str, Any] = {"fontsize": 7.5, "color": MUTED}


def shades(name: str) -> ListedColormap:
    """Return seaborn's palette of this name in 40 steps: colour bars of 50 and more are drawn as pixels."""
    return ListedColormap(sns.color_palette(name, 40))


def theme() -> AbstractContextManager[None]:
    """Return the look of the package's figures as a context manager, which ``savefig`` needs around it as well."""
    return mpl.rc_context(_RC)


@contextmanager
def drawing(ax: Axes | None, *, width: float = WIDTH, height: float = HEIGHT) -> Iterator[Axes]:
    """Draw with the package's look on ``ax``, else on a new figure: pyplot does not know it, and nothing pops up."""
    with theme():
        yield Figure(figsize=(width, height), layout="constrained").subplots() if ax is None else ax


def literal(name: str, *, length: int = 24) -> str:
    """Write a name as matplotlib text: it has no mathematics in it, and a long name keeps both its ends.

    >>> literal("$x$")
    '\\\\$x\\\\$'
    """
    shown = name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"
    return shown.replace("$", r"\$")


def name_rows(ax: Axes, names: Sequence[str], *, below: float = 0.0) -> None:
    """Lay out rows 0, 1, ... from top to bottom, with their names at the left, ``below`` the middle of each row."""
    ax.set_yticks(np.arange(len(names)) + below, [literal(name, length=20) for name in names], fontsize=7.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def mark_pairs(ax: Axes, pairs: Eigenpairs, places: Any, *, along: str, look: dict[str, Any], label: str = "") -> None:
    """Mark eigenvalues along "x" or "y", at ``places`` on the other axis, with error bars; hollow if not converged."""
    across, errors = "y" if along == "x" else "x", pairs.reach
    for converged in (True, False):
        chosen = pairs.converged == converged
        if chosen.any():
            at = {along: pairs.eigenvalues[chosen], across: np.broadcast_to(places, len(pairs))[chosen]}
            bars: dict[str, Any] = {**at, f"{along}err": errors[chosen], **look}
            name = label if converged or not label else f"{label}, not converged"
            ax.errorbar(**bars, markerfacecolor=look["color"] if converged else "none", label=name)


def legend_above(ax: Axes, *, columns: int) -> None:
    """Put a legend over the axes, where it can hide nothing."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, columnspacing=1.0, handletextpad=0.3)
