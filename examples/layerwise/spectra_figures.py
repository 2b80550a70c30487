"""Draws what examples/layerwise/spectra.py found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.experiment import new_figure
from examples.layerwise.spectra_claims import counted, layers_of
from examples.layerwise.trained import GRID, JUDGED, NETWORKS
from pyhessian_spectra.analysis.similarity import WHOLE
from pyhessian_spectra.plots.style import BLUE, INK, VERMILION, units

COLOURS = (BLUE, VERMILION)  # of the small and the large step
TITLES = {
    "wasserstein": "Wasserstein-1",
    "scaled_wasserstein": "Wasserstein-1, scale-free",
    "jensen_shannon": "Jensen-Shannon [nats]",
    "kolmogorov": "Kolmogorov",
    "htr_compat": "as published (heights)",
}


def draw_spectra(profiles: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Figure | None:
    """How many eigenvalues lie above a value, in the whole and in each layer; bands span the subsets of images.

    A panel a network: its first run of the largest step.
    """
    chosen: list[str] = []
    for name, network in NETWORKS.items():
        of = [run for run in profiles if run.startswith(f"{name}, step {network.rates[-1]:g},")]
        chosen += of[:1]
    if not chosen:
        return None
    figure, axes = new_figure(1, len(chosen), width=1.0 + 3.4 * len(chosen), height=3.6)
    for ax, run in zip(axes[0], chosen, strict=True):
        layers = [label for label in profiles[run] if label != WHOLE]
        colours = {WHOLE: INK} | dict(zip(layers, sns.color_palette("viridis_r", len(layers)), strict=True))
        for label, colour in colours.items():
            rows = np.array(profiles[run][label])
            middle = np.where(rows.mean(axis=0) < 0.3, np.nan, rows.mean(axis=0))
            ax.plot(GRID, middle, color=colour, lw=1.8 if label == WHOLE else 1.1, label=label)
            ax.fill_between(
                GRID, rows.min(axis=0).clip(0.3), rows.max(axis=0).clip(0.3), color=colour, alpha=0.25, lw=0
            )
        ax.set(xscale="log", yscale="log", xlabel=f"x {units()}", title=run)
        ax.legend(fontsize=6, loc="lower left")
    axes[0, 0].set_ylabel("Eigenvalues above x")
    return figure


def draw_depth(numbers: dict[str, Any], metrics: Sequence[str]) -> Figure | None:
    """Distance from the whole against depth by each metric: every run, the median, and the median null as a band."""
    names = [name for name in JUDGED if counted(numbers, name)]
    if not names:
        return None
    figure, axes = new_figure(len(names), len(metrics), width=2.3 * len(metrics), height=0.6 + 2.1 * len(names))
    for row, name in zip(axes, names, strict=True):
        depth = np.linspace(0, 1, len(layers_of(numbers, name)))
        for ax, metric in zip(row, metrics, strict=True):
            for rate, colour in zip(NETWORKS[name].rates, COLOURS, strict=True):
                _depth(ax, depth, [r["last"]["hessian"][metric] for r in counted(numbers, name, rate)], rate, colour)
            ax.set_ylim(0, None)
            ax.set_title(f"{name}\n{TITLES[metric]}", fontsize=7.5)
            ax.tick_params(labelsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("Depth, first to last layer", fontsize=7.5)
    for ax in axes[:, 0]:
        ax.set_ylabel("Distance from the whole", fontsize=7.5)
    axes[0, 0].legend(fontsize=6, loc="best")
    return figure


def _depth(ax: Axes, depth: Any, found: Sequence[Mapping[str, Any]], rate: float, colour: str) -> None:
    if not found:
        return
    distances, null = (np.array([each[key] for each in found]) for key in ("distances", "null"))
    ax.plot(depth, distances.T, color=colour, lw=0.5, alpha=0.4)
    ax.plot(depth, np.median(distances, axis=0), "o-", color=colour, ms=3, lw=1.5, label=f"step {rate:g}")
    ax.fill_between(depth, 0, np.median(null[:, 1:], axis=0), color=colour, alpha=0.2, lw=0, label="null of the layer")


def draw_training(numbers: dict[str, Any]) -> Figure | None:
    """The largest eigenvalue and the trace of the whole at each checkpoint, and of the layers at the large step."""
    names = [name for name in NETWORKS if len(NETWORKS[name].kept) > 1 and counted(numbers, name)]
    if not names:
        return None
    figure, axes = new_figure(len(names), 4, width=11.5, height=0.5 + 2.4 * len(names))
    words = {"lambda_1": r"$\lambda_1$", "trace": "Trace"}
    for row, name in zip(axes, names, strict=True):
        for ax, (quantity, label) in zip(row, words.items(), strict=False):
            for rate, colour in zip(NETWORKS[name].rates, COLOURS, strict=True):
                for place, run in enumerate(counted(numbers, name, rate)):
                    epochs, values, errors = _course(run, quantity)
                    legend = f"step {rate:g}" if place == 0 else None
                    ax.errorbar(
                        epochs, values, yerr=errors, fmt="o-", color=colour, ms=2.5, lw=0.9, alpha=0.8, label=legend
                    )
            ax.set(title=f"{name}, whole", ylabel=f"{label} {units()}", yscale="log", xlabel="Epoch")
        runs = counted(numbers, name, NETWORKS[name].rates[-1]) or counted(numbers, name)
        layers = layers_of(numbers, name)
        for ax, (quantity, label) in zip(row[2:], words.items(), strict=True):
            for layer, colour in zip(layers, sns.color_palette("viridis_r", len(layers)), strict=True):
                values = [[each["layers"][layer][quantity] for each in run["checkpoints"]] for run in runs]
                epochs = [each["epoch"] for each in runs[0]["checkpoints"]]
                ax.plot(epochs, np.median(values, axis=0), "o-", color=colour, ms=2.5, lw=1.1, label=layer)
            ax.set(title=f"{name}, layers, step {runs[0]['rate']:g}", ylabel=f"{label} {units()}", yscale="log")
            ax.set_xlabel("Epoch")
        row[0].legend(fontsize=6.5, loc="best")
        row[3].legend(fontsize=5.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _course(run: Mapping[str, Any], quantity: str) -> tuple[list[int], list[float], list[float]]:
    rows = run["checkpoints"]
    return (
        [each["epoch"] for each in rows],
        [each[quantity] for each in rows],
        [each[f"{quantity}_error"] for each in rows],
    )
