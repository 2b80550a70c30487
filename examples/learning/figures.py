"""The figures of a task: courses against updates, time and counted work, and what curvature batches do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.experiment import new_figure
from examples.learning.judgements import counted, setting_of
from examples.learning.trainers import Task, adam, block_diagonal, hessian_free, no_momentum, random_blocks
from pyhessian_spectra.plots.style import BLUE, GREEN, ORANGE, VERMILION

AXES = (("update", "updates"), ("cpu_seconds", "CPU seconds of training"), ("equivalents", "gradients of one example"))
GREY, PURPLE = "#6e7781", "#cc78bc"


def draw_course(task: Task, numbers: dict[str, Any]) -> Figure:
    """Losses, and test accuracy where there is one, against updates, CPU time and gradient equivalents."""
    setting = setting_of(numbers)
    middle, largest = setting.curvatures[1], setting.curvatures[-1]
    shown = {
        adam(setting.small_batch): (GREY, "-"),
        adam(setting.batch): (GREY, "--"),
        hessian_free(middle): (ORANGE, "-"),
        block_diagonal(middle): (BLUE, "-"),
        block_diagonal(largest): (BLUE, "--"),
        random_blocks(middle): (VERMILION, "-"),
        no_momentum(middle): (PURPLE, "-"),
    }
    rows = [("train_loss", "training loss"), ("test_loss", "test loss")]
    rows += [("test_accuracy", "test accuracy  [%]")] * task.classifies
    figure, axes = new_figure(len(rows), len(AXES), width=10.0, height=2.5 * len(rows) + 0.5)
    for line, (key, label) in zip(axes, rows, strict=True):
        for ax, (against, words) in zip(line, AXES, strict=True):
            for arm, (colour, dashes) in shown.items():
                band(ax, numbers, arm, against, key, color=colour, linestyle=dashes, label=arm)
            ax.set(xscale="log", yscale="log" if key.endswith("loss") else "linear")
            if line is axes[-1]:
                ax.set_xlabel(words)
        line[0].set_ylabel(label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    return figure


def draw_curvature(task: Task, numbers: dict[str, Any]) -> Figure:
    """Both methods at each curvature batch, and iterations to a fixed residual along training."""
    setting = setting_of(numbers)
    figure, axes = new_figure(1, 3, width=10.0, height=3.0)
    for ax, key, label in zip(axes[0], ("train_loss", "test_loss"), ("training loss", "test loss"), strict=False):
        for method, colour in ((hessian_free, ORANGE), (block_diagonal, BLUE)):
            for size, dashes in zip(setting.curvatures, (":", "--", "-"), strict=True):
                band(ax, numbers, method(size), "update", key, color=colour, linestyle=dashes, label=method(size))
        ax.set(yscale="log", xlabel="updates", ylabel=label)
    solves(axes[0, 2], numbers, block_diagonal(setting.curvatures[1]))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7.5)
    return figure


def band(ax: Axes, numbers: dict[str, Any], arm: str, against: str, key: str, **how: Any) -> None:
    """The mean over seeds, of logarithms for losses, and the range, at each record after the start."""
    courses = [run["course"] for run in counted(numbers, arm).values()]
    if not courses:
        return
    x = np.mean([course[against][1:] for course in courses], axis=0)
    y = np.array([course[key][1:] for course in courses])
    middle = np.exp(np.log(y).mean(axis=0)) if key.endswith("loss") else y.mean(axis=0)
    ax.plot(x, middle, linewidth=1.3, **how)
    ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=how["color"], alpha=0.15, linewidth=0)


def solves(ax: Axes, numbers: dict[str, Any], arm: str) -> None:
    """Iterations to a fixed residual at checkpoints, a point a seed."""
    runs: Sequence[dict[str, Any]] = [*counted(numbers, arm).values()]
    labels = [*runs[0]["solves"][0]["iterations"]] if runs else []
    for place, (label, colour) in enumerate(zip(labels, (ORANGE, BLUE, GREEN, PURPLE, GREY), strict=False)):
        for run in runs:
            x = np.array([each["update"] for each in run["solves"]]) + 0.6 * place
            y = [each["iterations"][label] for each in run["solves"]]
            ax.plot(x, y, "o", color=colour, markersize=3.5, label=label if run is runs[0] else None)
    rtol = numbers["setting"]["solve_rtol"]
    ax.set(yscale="log", xlabel="updates", ylabel=f"CG iterations to a residual of {rtol:g}")
    ax.legend(fontsize=7.5)
