"""How every figure looks. The user's own rcParams are never changed."""

from __future__ import annotations

from contextlib import AbstractContextManager

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Text and axes; the two lighter inks are for grids and remarks.
INK, MUTED, GRID = "#24292f", "#6e7781", "#e1e4e8"
#: The first four colours of seaborn's colour-blind-safe palette (after Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION = sns.color_palette("colorblind", 4).as_hex()

#: Inches. A text column is 3.3 to 5 wide; at 3.3 the smallest text is still 5.5 points high.
WIDTH, HEIGHT = 4.8, 3.0

_RC = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "pyhessian-spectra",
    "savefig.facecolor": "none",
    "savefig.dpi": 200,
}

#: Units of an eigenvalue or a trace of a Hessian: the loss is a number (nats for cross-entropy).
UNITS = "[loss / parameter$^2$]"


def theme() -> AbstractContextManager[None]:
    """The look of the package's figures as a context manager; also wanted around ``savefig``."""
    return mpl.rc_context(_RC)


def new_axes(width: float = WIDTH, height: float = HEIGHT) -> Axes:
    """Axes on a figure of their own, unknown to pyplot: nothing pops up and nothing is left to close."""
    with theme():
        return Figure(figsize=(width, height), layout="constrained").subplots()


def literal(name: str, *, length: int = 24) -> str:
    """A name as matplotlib text: no mathematics in it, and long names keep both their ends.

    >>> literal("$x$")
    '\\\\$x\\\\$'
    """
    shown = name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"
    return shown.replace("$", r"\$")
