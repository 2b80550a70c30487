"""Draws what an optimiser with curvature recorded: whether its model held, and how its systems were solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.optimisers.records import SolveRecord, StepRecord
from pyhessian_spectra.plots import style

# Ratios beyond these are drawn at the edge: far out, how far does not matter, and the rest must stay legible.
_LOWEST, _HIGHEST = -1.0, 3.0
# Below the first and above the second Levenberg-Marquardt damping grows and falls (Martens 2010, section 4.1).
_TRUSTED = (0.25, 0.75)
# More blocks than this are drawn as their median and range.
_LEGIBLE = 8


def plot_reduction(records: Sequence[StepRecord], *, ax: Axes | None = None) -> Axes:
    """Draw how far the quadratic model held: the loss' actual reduction over the predicted one, step by step.

    At 1 the model was right; below 0 the minibatch's loss rose. The dashed lines are the limits of Levenberg-Marquardt
    damping. Steps of negative curvature are hollow, rejected ones crosses at the lower edge, and ratios outside -1 to 3
    triangles at the edge. A step whose prediction is NaN or not positive has no ratio, and is a tick at the lower edge.

    Parameters
    ----------
    records : sequence of StepRecord
        ``optimizer.records``, or a part of it.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        There are no records.
    """
    _require_steps(records)
    rejected = np.array([record.rejected is not None for record in records])
    predicted = np.array([record.predicted for record in records])
    bent = np.array([record.negative_curvature for record in records])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.array([record.actual for record in records]) / predicted
    told = np.isfinite(ratio) & (predicted > 0)  # after a rejected step the loss is not finite
    with style.drawing(ax) as ax:
        x = _steps_across(ax, records)
        ax.axhline(1, color=style.MUTED, linewidth=0.8, zorder=1)
        for limit in _TRUSTED:
            ax.axhline(limit, color=style.MUTED, linewidth=0.8, linestyle="--", zorder=1)
        ax.plot(x, np.where(told, ratio, np.nan).clip(_LOWEST, _HIGHEST), color=style.BLUE, linewidth=0.8, alpha=0.5)
        inside = told & (ratio >= _LOWEST) & (ratio <= _HIGHEST)
        for chosen, heights, marker, face, label in (
            (inside & ~bent, ratio, "o", style.BLUE, ""),
            (inside & bent, ratio, "o", "white", "negative curvature"),
            (told & (ratio > _HIGHEST), _HIGHEST, "^", style.BLUE, f"above {_HIGHEST:g}"),
            (told & (ratio < _LOWEST), _LOWEST, "v", style.BLUE, f"below {format_number(_LOWEST, digits=1)}"),
            (rejected, _LOWEST, "x", style.VERMILION, "taken back"),
            (~told & ~rejected, _LOWEST, "|", style.MUTED, "no prediction"),
        ):
            if chosen.any():
                edge = style.BLUE if marker in "o^v" else face
                y = np.broadcast_to(heights, len(records))[chosen]
                ax.plot(
                    x[chosen], y, marker, color=edge, markerfacecolor=face, markersize=4, label=label, clip_on=False
                )
        at_edge = bool((~told | (ratio < _LOWEST)).any())
        low = _LOWEST if at_edge else min(0.0, float(ratio.min()))
        high = min(_HIGHEST, max(1.2, float(ratio[told].max(initial=0.0))))
        ax.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        ax.set_ylabel("Actual / predicted reduction")
        _legend(ax)
    return ax


def plot_cg(records: Sequence[StepRecord], *, ax: Axes | None = None) -> Axes:
    """Draw the iterations of conjugate gradients that each block's system took, step by step.

    Hollow circles are systems that ended at a direction of negative curvature. Of more than eight blocks the median and
    the range are drawn.

    Parameters
    ----------
    records : sequence of StepRecord
        ``optimizer.records``, or a part of it in which the blocks stay the same.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        There are no records, blocks change between them, or a step decomposed its matrix.
    """
    _require_steps(records)
    labels = [solve.label for solve in records[0].solves]
    for record in records:
        if [solve.label for solve in record.solves] != labels:
            raise InputError(f"the blocks of step {record.step} are others than those of the first; draw them apart")
        _require_iterations(record.solves)
    iterations = np.array([[solve.iterations for solve in record.solves] for record in records])
    bent = np.array([[solve.status == "negative curvature" for solve in record.solves] for record in records])
    colors = _colors(labels) if len(labels) <= _LEGIBLE else [style.BLUE] * len(labels)
    with style.drawing(ax) as ax:
        x = _steps_across(ax, records)
        if len(labels) > _LEGIBLE:
            low, middle, high = np.quantile(iterations, [0.0, 0.5, 1.0], axis=1)
            ax.fill_between(x, low, high, color=style.BLUE, alpha=0.25, linewidth=0, label=f"{len(labels)} blocks")
            ax.plot(x, middle, color=style.BLUE, linewidth=1.4, label="median")
        else:
            for label, color, each in zip(labels, colors, iterations.T, strict=True):
                ax.plot(x, each, "o-", color=color, markersize=2.5, linewidth=1.2, label=style.literal(label))
        step, block = np.nonzero(bent)
        if len(step):
            look: dict[str, Any] = {"facecolor": "white", "linewidth": 1.2, "zorder": 3, "label": "negative curvature"}
            ax.scatter(x[step], iterations[step, block], s=22, edgecolor=[colors[b] for b in block.tolist()], **look)
        ax.set_ylim(0, 1.05 * max(1, int(iterations.max())))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel("CG iterations")
        _legend(ax)
    return ax


def plot_residuals(record: StepRecord, *, ax: Axes | None = None) -> Axes:
    """Draw how the systems of one step were solved: each block's residual norm after each iteration.

    A curve that ends hollow ended at a direction of negative curvature.

    Parameters
    ----------
    record : StepRecord
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        The step decomposed its matrix.
    """
    _require_iterations(record.solves)
    labels = [solve.label for solve in record.solves]
    with style.drawing(ax) as ax:
        for solve, color in zip(record.solves, _colors(labels), strict=True):
            ax.plot(solve.residuals, color=color, linewidth=1.2, label=style.literal(solve.label))
            face = "white" if solve.status == "negative curvature" else color
            ax.plot(solve.iterations, solve.residuals[-1], "o", color=color, markerfacecolor=face, markersize=4)
        ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(f"CG iteration in step {record.step}")
        ax.set_ylabel(r"Residual norm [loss / parameter]")
        _legend(ax)
    return ax


def _require_steps(records: Sequence[StepRecord]) -> None:
    if not len(records):
        raise InputError("there are no records to draw; take a step with the optimiser first")


def _require_iterations(solves: Sequence[SolveRecord]) -> None:
    if any(solve.status == "exact" for solve in solves):
        raise InputError("a matrix was decomposed, without conjugate gradients; draw steps of another solver")


def _steps_across(ax: Axes, records: Sequence[StepRecord]) -> np.ndarray:
    ax.set_xlabel("Step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return np.array([record.step for record in records])


def _colors(labels: Sequence[str]) -> list[Any]:
    return sns.color_palette("colorblind" if len(labels) <= _LEGIBLE else "viridis", len(labels))


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[1]:
        style.legend_above(ax, columns=min(4, len(ax.get_legend_handles_labels()[1])))
