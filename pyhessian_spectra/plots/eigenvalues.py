"""Figures of single eigenvalues and traces show their errors: in one block, in the layers, along training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RGBAColorType

from pyhessian_spectra.analysis.resolution import to_decades
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.analysis.seeds import checkpoint_names, checkpoint_step
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.axis import EigenvalueAxis, scale_values
from pyhessian_spectra.spectra.results import Eigenpairs, Floats

# As many of the largest eigenvalues are drawn along training.
_TOP = 5
_REVERSED = slice(None, None, -1)


def plot_eigenvalues(block: BlockAnalysis, *, ax: Axes | None = None) -> Axes:
    """Draw the largest and smallest eigenvalues by rank with bars for their errors, hollow where not converged."""
    values = np.concatenate([block.largest.eigenvalues, block.smallest.eigenvalues])
    if not values.size:
        raise InputError("the block has no eigenpairs; ask the analysis for at least one to draw them")
    largest, look = block.largest.take(_REVERSED), {"markersize": 4.5, "elinewidth": 0.9, "capsize": 2}
    sides = (largest, "^", style.BLUE, "largest"), (block.smallest, "v", style.ORANGE, "smallest")
    with style.drawing(ax) as ax:
        scale_values(ax, values)
        for pairs, marker, color, label in sides:
            ranks = np.arange(1, len(pairs) + 1)
            style.mark_pairs(ax, pairs, ranks, along="y", look=look | {"fmt": marker, "color": color}, label=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="Rank from the edge", ylabel=style.eigenvalue())
        style.legend_above(ax, columns=2)
    return ax


def plot_layer_traces(analysis: SpectralAnalysis, *, ax: Axes | None = None) -> Axes:
    """Draw the trace of each layer's diagonal block, with its 95 % confidence interval.

    Where layers were not analysed on their own, what the products of the whole matrix say of them is drawn.
    """
    traces = {name: block.trace for name, block in analysis.layers.items()} or analysis.full.group_traces
    if not traces:
        raise InputError("the analysis has no layers; run it with layers to draw their traces")
    row_height = float(np.clip(6 / len(traces), 0.18, 0.32))
    values = [trace.value for trace in traces.values()]
    # An error of 0 would show as the caps of its bar; NaN shows as nothing.
    errors = [trace.reach or np.nan for trace in traces.values()]
    bars: dict[str, Any] = {"xerr": errors, "ecolor": style.INK, "capsize": 2.5, "error_kw": {"elinewidth": 1}}
    units, height = analysis.problem.get("units"), 0.75 + row_height * len(traces)
    with style.measured_in(units), style.drawing(ax, height=height) as ax:
        ax.barh(np.arange(len(traces)), values, height=0.62, color=style.BLUE, alpha=0.55, linewidth=0, **bars)
        style.name_rows(ax, list(traces))
        ax.axvline(0, color=style.INK, linewidth=0.8)
        ax.set_xlabel(f"Trace of the block {style.units()}")
    return ax


def plot_trajectory(analyses: Sequence[SpectralAnalysis], *, ax: Axes | None = None) -> Axes:
    """Draw the largest and smallest eigenvalues and the trace along checkpoints, in the order given.

    They are drawn against the optimisation step where every ``problem`` has one of its own, else by checkpoint.
    """
    if not analyses:
        raise InputError("analyses is empty; a trajectory needs at least one checkpoint")
    largest = [analysis.full.largest.take(_REVERSED) for analysis in analyses]
    smallest = [analysis.full.smallest for analysis in analyses]
    traces = np.array([analysis.full.trace.value for analysis in analyses])
    errors = [analysis.full.trace.reach for analysis in analyses]
    look: dict[str, Any] = {"fmt": "s-", "color": style.GREEN, "markersize": 4, "linewidth": 1.1, "capsize": 2.5}
    units = analyses[0].problem.get("units")
    with style.measured_in(units), style.drawing(ax, height=style.HEIGHT + 0.3) as ax:
        scale_values(ax, np.concatenate([traces, *(pairs.eigenvalues for pairs in [*largest, *smallest])]))
        x = place_checkpoints(ax, [checkpoint_step(each) for each in analyses], checkpoint_names(analyses))
        ax.errorbar(x, traces, errors, label="trace", **look)
        _edge_line(ax, x, largest, 0, to_rgba(style.BLUE), r"$\lambda_1$ (largest)")
        for rank in range(1, _TOP):
            label = rf"$\lambda_2$ to $\lambda_{_TOP}$" if rank == 1 else ""
            _edge_line(ax, x, largest, rank, to_rgba(style.BLUE, 0.4), label)
        _edge_line(ax, x, smallest, 0, to_rgba(style.VERMILION), r"$\lambda_n$ (smallest)")
        ax.set_ylabel(f"$\\lambda$, trace {style.units()}")
        style.legend_above(ax, columns=4)
    return ax


def _edge_line(ax: Axes, x: Floats, edges: Sequence[Eigenpairs], rank: int, shade: RGBAColorType, label: str) -> None:
    """Draw the eigenvalue of this rank along the checkpoints, with errors; hollow where not converged."""
    present = [i for i, pairs in enumerate(edges) if len(pairs) > rank]
    if present:
        values = [edges[i].eigenvalues[rank] for i in present]
        errors = [edges[i].reach[rank] for i in present]
        ax.errorbar(x[present], values, yerr=errors, fmt="-", color=shade, linewidth=1.1)
        # Each mark has its own colour: one ``alpha`` for all would fill the hollow ones.
        faces = [shade if edges[i].converged[rank] else "none" for i in present]
        ax.scatter(x[present], values, s=16, facecolors=faces, edgecolors=[shade], zorder=3, label=label)


def place_checkpoints(ax: Axes, steps: Sequence[float | None], names: Sequence[str]) -> Floats:
    """Label the horizontal axis, and return the positions of the checkpoints along it."""
    known = [step for step in steps if step is not None]
    if len(set(known)) == len(steps) > 1:
        x = np.array(known, dtype=np.float64)
        threshold = float(x[x > 0].min(initial=np.inf))
        if x.max() > 30 * threshold:
            low, high = to_decades([x.min(), x.max()], threshold)
            EigenvalueAxis(threshold, low - 0.1, high + 0.1, 0.1).set_scale(ax)
        ax.set_xlabel("Optimisation step")
        return x
    x = np.arange(len(steps), dtype=np.float64)
    shown = [style.literal(name) for name in names]
    ax.set_xticks(x, shown, rotation=30, ha="right", fontsize=7.5)
    ax.set_xlabel("Checkpoint")
    return x
