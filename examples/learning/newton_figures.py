"""Draws what examples/learning/newton.py found."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.experiment import new_figure
from examples.learning.newton_claims import CALLED, IS
from pyhessian_spectra.plots.style import BLUE, GREEN, INK, MUTED, VERMILION

#: Updates whose points can be told apart in a figure.
FEW = 14
COLOURS = {"gradient descent": BLUE, "Newton": VERMILION, "Newton, |H|": GREEN}


def draw_example(numbers: dict[str, Any]) -> Figure:
    """Losses from the document's start, with its row at the iteration that it is and at the one that it is called."""
    figure, ((ax,),) = new_figure(1, 1, width=5.6, height=3.4)
    run, lr = numbers["runs"][0], numbers["lr"]
    floor = run["Newton"][-1] / 6
    for name in ("gradient descent", "Newton"):
        losses, colour = np.array(run[name]), COLOURS[name]
        ax.plot(losses, color=colour, lw=1.6)
        told = f"{name}, lr {lr:g}: $\\times$ {losses[1] / losses[0]:.6g} an iteration"
        _write(ax, told, (12, losses[12]), (4, 6), color=colour, ha="left")
        for place, face in ((IS, colour), (CALLED, "white")):
            ax.plot(place, losses[place], "o", ms=5.5, mfc=face, mec=colour, mew=1.4, zorder=3)
            down = 100 * (1 - losses[place] / losses[0])
            _write(ax, f"$-${down:.1f} %" if down < 99 else f"$-${down:.2f} %", (place, losses[place]), (-3, -13))
    first, left = run["one_step"]
    ax.plot([0, 1], [first, left or np.finfo(float).tiny], color=INK, lw=1.0, ls=(0, (4, 2)))
    _write(ax, f"Newton, lr 1:\nleaves {left:.0e}\nafter one step", (1.4, floor * 1.3), (0, 0), ha="left")
    ax.plot([], [], "o", ms=5.5, color=MUTED, label=f"called iteration {CALLED} in the document: is {IS}")
    ax.plot([], [], "o", ms=5.5, mfc="white", mec=MUTED, mew=1.4, label=f"iteration {CALLED}")
    ax.set(yscale="log", xlabel="Iteration", ylabel="Mean squared error", xlim=(-0.8, CALLED + 2.5), ylim=(floor, 0.5))
    ax.legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(0.2, 0.0))
    return figure


def _write(ax: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Words beside a point, ``offset`` points away."""
    look = {"fontsize": 7.5, "color": INK, "ha": "center", **look}
    ax.annotate(text, place, offset, textcoords="offset points", **look)


def draw_conditioning(numbers: dict[str, Any]) -> Figure:
    """Paths on the quadratic of condition 100, their losses, and the updates needed against the condition number."""
    figure, ((paths, losses, needed),) = new_figure(1, 3, width=9.6, height=3.0)
    shown, solved = numbers["shown"], numbers["solved"]
    names = {"gradient descent": "gradient descent, best step", "Newton": f"Newton, lr {numbers['lr']:g}"}
    x, y = np.meshgrid(np.linspace(-1.02, 0.12, 200), np.linspace(-0.31, 0.31, 200))
    contours(paths, x, y, (x**2 + shown * y**2) / 2, 10.0 ** np.arange(-2, 1.01, 0.33))
    for name, label in names.items():
        points = np.array(numbers[name]["path"])
        paths.plot(*points.T, "o-", ms=3.0, lw=1.0, color=COLOURS[name], label=label)
        losses.plot(np.array(numbers[name]["losses"]) / numbers[name]["losses"][0], color=COLOURS[name], lw=1.6)
    paths.plot(0, 0, "+", ms=8, mew=1.4, color=INK)
    paths.set(xlabel="$w_1$, curvature 1", ylabel=f"$w_2$, curvature {shown:g}")
    paths.set_title(f"condition {shown:g}, the first {FEW} updates", fontsize=8.5)
    losses.set(yscale="log", xlabel="Update", ylabel="Loss / first loss")
    losses.set_title(f"condition {shown:g}", fontsize=8.5)
    conditions = [float(key) for key in numbers["updates"]]
    for name, label in names.items():
        rows = np.array([each[name] for each in numbers["updates"].values()])
        needed.fill_between(conditions, rows.min(axis=1), rows.max(axis=1), color=COLOURS[name], alpha=0.2, lw=0)
        needed.plot(conditions, np.median(rows, axis=1), "o-", ms=3.5, lw=1.4, color=COLOURS[name], label=label)
    needed.set(
        xscale="log",
        yscale="log",
        xlabel="Condition number",
        ylabel=f"Updates to $10^{{{np.log10(solved):.0f}}}$ of the loss",
    )
    needed.set_title(f"median and range over {rows.shape[1]} starts", fontsize=8.5)
    figure.legend(*needed.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def draw_saddle(numbers: dict[str, Any]) -> Figure:
    """Paths from the same starts on the unit circle by each method, and their distances from the saddle."""
    figure, (axes,) = new_figure(1, 4, width=10.4, height=2.9)
    reach = 1.9
    x, y = np.meshgrid(np.linspace(-reach, reach, 200), np.linspace(-reach, reach, 200))
    for ax, (name, colour) in zip(axes, COLOURS.items(), strict=False):
        contours(ax, x, y, x**2 - y**2, [-3, -2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2, 3])
        for path in np.array(numbers[name]):
            ax.plot(*path.T, "-", lw=1.0, color=colour)
            ax.plot(*path[0], "o", ms=2.6, color=INK, zorder=3)
            middle = int(np.flatnonzero(np.abs(path).max(axis=1) <= reach)[-1]) // 2
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.0, "mutation_scale": 7}
            ax.annotate("", path[middle + 1], path[middle], arrowprops=arrow)
            axes[-1].plot(np.linalg.norm(path, axis=1), color=colour, lw=0.9, alpha=0.7)
        ax.plot(0, 0, "+", ms=9, mew=1.5, color=INK, zorder=4)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="$x$", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        ax.set_box_aspect(1)
        ax.set_title(f"{name}, lr {numbers['lr']:g}", fontsize=8.5, color=colour)
    axes[0].set_ylabel("$y$")
    axes[-1].set(yscale="log", xlabel="Update", ylabel="Distance from the saddle")
    axes[-1].set_box_aspect(1)
    axes[-1].set_title("in the same colours", fontsize=8.5)
    return figure


def contours(ax: Axes, x: Any, y: Any, values: Any, levels: Any) -> None:
    """Level lines of a loss, behind everything."""
    ax.contour(x, y, values, levels=levels, colors=[MUTED], linewidths=0.5, alpha=0.6, linestyles="solid")
    ax.grid(visible=False)
