"""This module says how every figure looks and draws what several share. It never changes the user's own rcParams."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from pyhessian_spectra.spectra.results import Eigenpairs

#: Text and axes have the first ink; the two lighter ones are for remarks and grids.
INK, MUTED, GRID = "#24292f", "#6e7781", "#e1e4e8"
#: These are the first four colours of seaborn's colour-blind-safe palette (after Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION = sns.color_palette("colorblind", 4).as_hex()
#: Sizes are in inches. A text column is 3.3 to 5 wide; at 3.3 the smallest text is still 5.5 points high.
WIDTH, HEIGHT = 4.8, 3.0

# What the themes around a drawing change, from the outermost to the innermost.
_OWN: ContextVar[Mapping[str, Any]] = ContextVar("own", default={})  # noqa: B039 - it is never changed in place

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
# Inches left of the axes of a figure, and of a letter of a remark.
_LEFT, _LETTER = 0.75, 0.055
# Points between a remark and what is below it.
_PAD = 6.0
# Labels of the first part of the figure's length are broken; legends, centred on the axes, have the second at most.
_LONG, _WIDE = 0.75, 0.88
# An eigenvalue or a trace of a Hessian has these units: the loss is a number (nats for cross-entropy).
_MEASURED: ContextVar[str] = ContextVar("measured", default="loss / parameter^2")
#: Text that explains a figure from inside it looks like this.
REMARK: dict[str, Any] = {"fontsize": 7.5, "color": MUTED}


def shades(name: str) -> ListedColormap:
    """Return seaborn's palette of this name in 40 steps: colour bars of 50 and more are drawn as pixels."""
    return ListedColormap(sns.color_palette(name, 40))


@contextmanager
def theme(own: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Give figures drawn within this context the package's look, with rcParams of one's own over it.

    ``savefig`` needs it around it as well. A context within another keeps what that one changed.

    >>> with theme({"font.family": "serif"}), theme():
    ...     mpl.rcParams["font.family"]
    ['serif']
    """
    token = _OWN.set({**_OWN.get(), **(own or {})})
    try:
        rc: dict[Any, Any] = {**_RC, **_OWN.get()}
        with mpl.rc_context(rc):
            yield
    finally:
        _OWN.reset(token)


@contextmanager
def measured_in(units: object) -> Iterator[None]:
    """Label eigenvalues and traces within this context with these units: those of ``analysis.problem["units"]``.

    None, as of analyses by earlier releases, changes nothing.

    >>> with measured_in("loss"):
    ...     units()
    '[loss]'
    """
    token = _MEASURED.set(_MEASURED.get() if units is None else str(units))
    try:
        yield
    finally:
        _MEASURED.reset(token)


def units() -> str:
    """Return the units of eigenvalues, as labels end with them.

    >>> units()
    '[loss / parameter$^2$]'
    """
    return f"[{_MEASURED.get().replace('^2', '$^2$')}]"


def eigenvalue() -> str:
    """Return the label of an axis of eigenvalues."""
    return f"Eigenvalue $\\lambda$ {units()}"


def save(ax: Axes, path: str | os.PathLike[str], *, width: float | None = None) -> None:
    """Write the figure of ``ax`` as its file's ending says (PDF, PNG, SVG), in which text is text.

    Parameters
    ----------
    ax : matplotlib Axes
    path : path-like
    width : float, optional
        Inches, such as those of a column; the height stays. Text keeps its size, so that a figure is not to be scaled.
        Best drawn at this width: on the Axes of ``Figure(figsize=(3.3, 2.6), layout="constrained").subplots()``.
    """
    figure = cast(Figure, ax.figure)
    with theme({"svg.fonttype": "none", "pdf.fonttype": 42}):
        if width is not None:
            figure.set_size_inches(width, figure.get_size_inches()[1])
            for each in figure.axes:
                _fit_legend(each)
                if title := each.get_title(loc="left"):
                    remark_above(each, title)
            _break_labels(figure)
        figure.savefig(path)


@contextmanager
def drawing(ax: Axes | None, *, width: float = WIDTH, height: float = HEIGHT) -> Iterator[Axes]:
    """Draw with the package's look on ``ax``, else on a new figure: pyplot does not know it, and nothing pops up.

    What ``ax`` shows already stays in view.
    """
    with theme():
        drawn = Figure(figsize=(width, height), layout="constrained").subplots() if ax is None else ax
        before = (drawn.get_xlim(), drawn.get_ylim()) if drawn.has_data() else ()
        yield drawn
        for which, ends in zip("xy", before, strict=False):
            _keep_in_view(drawn, which, ends)
        _break_labels(cast(Figure, drawn.figure))


def _keep_in_view(ax: Axes, which: str, ends: tuple[float, float]) -> None:
    """Widen the limits along "x" or "y" to hold these, as far as the scale has them."""
    axis, now = getattr(ax, f"{which}axis"), getattr(ax, f"get_{which}lim")()
    ends = axis.limit_range_for_scale(*sorted(ends))
    low, high = min(*now, *ends), max(*now, *ends)
    if (low, high) != tuple(sorted(now)):
        getattr(ax, f"set_{which}lim")(*((high, low) if axis.get_inverted() else (low, high)))


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


def legend_above(ax: Axes, *, columns: int, entries: Sequence[tuple[Any, str]] | None = None) -> None:
    """Put a legend over the axes, where it can hide nothing, in as many columns as the figure is wide enough for."""
    handles, labels = ax.get_legend_handles_labels() if entries is None else zip(*entries, strict=True)
    look: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 1.0}
    for count in range(columns, 0, -1):
        legend = ax.legend(handles, labels, ncols=count, handletextpad=0.3, **look)
        if legend.get_window_extent(_renderer(ax)).width <= _WIDE * cast(Figure, ax.figure).bbox.width:
            break


def _fit_legend(ax: Axes) -> None:
    """Lay a legend over the axes out again, for a figure that has another width."""
    legend = ax.get_legend()
    if legend is not None and legend.get_window_extent(_renderer(ax)).y0 >= ax.bbox.y1:
        texts = [text.get_text() for text in legend.get_texts()]
        handles, labels = ax.get_legend_handles_labels()  # with all that is drawn of each, its marks as well
        if labels != texts:  # the legend has entries of its own
            handles = [handle for handle in legend.legend_handles if handle is not None]
        legend_above(ax, columns=len(texts), entries=list(zip(handles, texts, strict=True)))


def remark_above(ax: Axes, text: str) -> None:
    """Write a remark over the axes and their legend, its lines broken where the figure ends."""
    figure = cast(Figure, ax.figure)
    most = max(20, int((figure.get_size_inches()[0] - _LEFT) / _LETTER))
    lines = [line for each in text.split("\n") for line in textwrap.wrap(each, most)]
    legend = ax.get_legend()
    top = ax.bbox.y1 if legend is None else legend.get_window_extent(_renderer(ax)).y1
    ax.set_title("\n".join(lines), pad=_PAD + (top - ax.bbox.y1) * 72 / figure.dpi, **REMARK)


def _break_labels(figure: Figure) -> None:
    """Break labels of axes that are nearly as long as the figure, before their units or in their middle."""
    width, height = figure.bbox.size
    for ax in figure.axes:
        for label, length in ((ax.xaxis.label, width), (ax.yaxis.label, height)):
            text, box = label.get_text(), label.get_window_extent(_renderer(ax))
            if "\n" in text or max(box.width, box.height) < _LONG * length:
                continue
            spaces = [i for i, letter in enumerate(text) if letter == " " and text[:i].count("$") % 2 == 0]
            spaces = [i for i in spaces if text[i + 1] == "["] or spaces
            if spaces:
                at = min(spaces, key=lambda i: abs(i - len(text) / 2))
                label.set_text(f"{text[:at]}\n{text[at + 1 :]}")


def _renderer(ax: Axes) -> Any:
    return FigureCanvasAgg(cast(Figure, ax.figure)).get_renderer()
