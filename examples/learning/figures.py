"""The figures of a task: courses against updates, time and counted work; blocks against the whole; iterations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from examples.experiment import new_figure
from examples.learning.judgements import counted, curve, setting_of
from examples.learning.trainers import (
    Task,
    adam,
    block_diagonal,
    hessian_free,
    longer_steps,
    no_momentum,
    random_blocks,
)
from pyhessian_spectra.plots.style import BLUE, GREEN, ORANGE, VERMILION

AGAINST = {
    "update": "updates",
    "cpu_seconds": "CPU time of training  [s]",
    "equivalents": "work  [gradients of an example]",
}
LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}
GREY, PURPLE = "#6e7781", "#cc78bc"


def draw_course(task: Task, numbers: dict[str, Any]) -> Figure:
    """Losses, and test accuracy where there is one, against updates, CPU time and gradient equivalents."""
    setting = setting_of(numbers)
    middle, largest = setting.curvatures[1], setting.curvatures[-1]
    shown = {
        adam(setting.small_batch): (GREY, "-"),
        adam(setting.batch): (GREY, "--"),
        hessian_free(middle): (ORANGE, "-"),
        longer_steps(middle): (ORANGE, ":"),
        block_diagonal(middle): (BLUE, "-"),
        block_diagonal(largest): (BLUE, "--"),
        random_blocks(middle): (VERMILION, "-"),
        no_momentum(middle): (PURPLE, "-"),
    }
    rows = LOSSES | ({"test_accuracy": "test accuracy  [%]"} if task.classifies else {})
    figure, axes = new_figure(len(rows), len(AGAINST), width=9.5, height=2.4 * len(rows) + 0.6)
    for line, (key, label) in zip(axes, rows.items(), strict=True):
        for ax, against in zip(line, AGAINST, strict=True):
            for arm, (colour, dashes) in shown.items():
                band(ax, numbers, arm, against, key, color=colour, linestyle=dashes, label=arm)
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
            if key in LOSSES:
                logarithmic(ax)
            ax.sharey(line[0])
        line[0].set_ylabel(label)
    for ax, words in zip(axes[-1], AGAINST.values(), strict=True):
        ax.set_xlabel(words)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def draw_curvature(task: Task, numbers: dict[str, Any]) -> Figure:
    """Losses as parts of Hessian-free's, at each curvature batch, and iterations to a fixed residual along training.

    Ranges over seeds are drawn for the middle curvature batch only.
    """
    setting = setting_of(numbers)
    middle = setting.curvatures[1]
    figure, axes = new_figure(1, 3, width=9.5, height=3.4)
    for ax, (key, label) in zip(axes[0], LOSSES.items(), strict=False):
        for method, colour in ((block_diagonal, BLUE), (random_blocks, VERMILION)):
            for size, dashes in zip(setting.curvatures, (":", "--", "-"), strict=True):
                ratio(ax, numbers, method, size, key, color=colour, linestyle=dashes)
        for method, colour in ((longer_steps, ORANGE), (no_momentum, PURPLE)):
            ratio(ax, numbers, method, middle, key, color=colour, linestyle="--")
        ax.axhline(1.0, color=GREY, linewidth=0.8)
        ax.set(xlabel="updates", ylabel=f"{label} / Hessian-free's")
        logarithmic(ax)
    solves(axes[0, 2], numbers, block_diagonal(middle))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def band(ax: Axes, numbers: dict[str, Any], arm: str, against: str, key: str, **how: Any) -> None:
    """The mean over seeds, of logarithms for losses, and the range, at each record after the start."""
    runs = [*counted(numbers, arm).values()]
    if not runs:
        return
    x = np.mean([run["course"][against][1:] for run in runs], axis=0)
    filled(ax, x, np.array([curve(run, key) for run in runs]), np.exp if key in LOSSES else np.array, **how)


def ratio(ax: Axes, numbers: dict[str, Any], method: Callable[[int], str], size: int, key: str, **how: Any) -> None:
    """The same of a loss over that of Hessian-free with the same curvature batch and seed."""
    first, second = counted(numbers, method(size)), counted(numbers, hessian_free(size))
    seeds = sorted(first.keys() & second.keys())
    if seeds:
        apart = np.array([curve(first[seed], key) - curve(second[seed], key) for seed in seeds])
        shade = 0.15 if size == setting_of(numbers).curvatures[1] else 0.0
        at = np.array(first[seeds[0]]["course"]["update"][1:])
        filled(ax, at, apart, np.exp, shade=shade, label=method(size), **how)


def filled(
    ax: Axes, x: np.ndarray, y: np.ndarray, back: Callable[[Any], Any], *, shade: float = 0.15, **how: Any
) -> None:
    """The mean of curves (seeds, records) and their range, ``back`` from logarithms."""
    ax.plot(x, back(y.mean(axis=0)), linewidth=1.3, **how)
    ax.fill_between(x, back(y.min(axis=0)), back(y.max(axis=0)), color=how["color"], alpha=shade, linewidth=0)


def solves(ax: Axes, numbers: dict[str, Any], arm: str) -> None:
    """Iterations to a fixed residual at checkpoints, a point a seed, hollow where they did not get there."""
    runs = [*counted(numbers, arm).values()]
    labels = [*runs[0]["solves"][0]["iterations"]] if runs else []
    shift = 0.015 * runs[0]["course"]["update"][-1] if runs else 0.0
    for place, (label, colour) in enumerate(zip(labels, (ORANGE, BLUE, GREEN, PURPLE, GREY), strict=False)):
        for each in (each for run in runs for each in run["solves"]):
            x, fill = each["update"] + shift * place, colour if each["converged"][label] else "none"
            ax.plot(x, each["iterations"][label], "o", color=colour, markerfacecolor=fill, markersize=4)
        ax.plot([], [], "o", color=colour, markersize=4, label=label)
    ax.set(xlabel="updates", ylabel=f"CG iterations to {numbers['setting']['solve_rtol']:g} of the gradient")
    logarithmic(ax)
    ax.legend(fontsize=7.5, loc="lower right")


def logarithmic(ax: Axes) -> None:
    """A logarithmic axis of values with a few ticks, in plain numbers; evenly spaced ones where it is short."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    long = LogLocator(subs=(1, 2, 3, 5, 7) if high / low < 12 else (1, 2, 5))
    ax.yaxis.set_major_locator(long if high / low > 3 else MaxNLocator(7, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
