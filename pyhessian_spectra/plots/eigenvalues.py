"""Single eigenvalues and traces with their errors: of one block, of the layers, along training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RGBAColorType

from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots.axis import EigenvalueAxis
from pyhessian_spectra.plots.density import confidence, known_others
from pyhessian_spectra.plots.numbers import eigenvalue_errors, trace_error
from pyhessian_spectra.plots.style import (
    BLUE,
    GREEN,
    HEIGHT,
    INK,
    MUTED,
    ORANGE,
    UNITS,
    VERMILION,
    WIDTH,
    literal,
    new_axes,
    theme,
)
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.results import Eigenpairs, Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

# Eigenvalues below the largest one that are drawn along training.
_TOP = 5

# Points along the axis at which bounds of a CDF are drawn, beside the nodes.
_FINE = 600


def plot_eigenvalues(block: BlockAnalysis, *, ax: Axes | None = None) -> Axes:
    """The largest and smallest eigenvalues by rank, bars for their errors, hollow marks where not converged."""
    ax = new_axes() if ax is None else ax
    both = (block.largest, block.smallest)
    values = np.concatenate([pairs.eigenvalues for pairs in both])
    if not values.size:
        raise InputError("the block has no eigenpairs; ask the analysis for at least one to draw them")
    with theme():
        _scale_values(ax, values)
        sides = [
            (block.largest.take(slice(None, None, -1)), "^", BLUE, "largest"),
            (block.smallest, "v", ORANGE, "smallest"),
        ]
        for pairs, marker, color, label in sides:
            rank, errors = np.arange(1, len(pairs) + 1), eigenvalue_errors(pairs)
            for converged in (True, False):
                chosen = pairs.converged == converged
                if chosen.any():
                    ax.errorbar(
                        rank[chosen],
                        pairs.eigenvalues[chosen],
                        yerr=errors[chosen],
                        fmt=marker,
                        markersize=4.5,
                        color=color,
                        markerfacecolor=color if converged else "none",
                        elinewidth=0.9,
                        capsize=2,
                        label=label if converged else f"{label}, not converged",
                    )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("Rank from the edge")
        ax.set_ylabel(f"Eigenvalue $\\lambda$ {UNITS}")
        _legend_above(ax, columns=2)
    return ax


def plot_layer_traces(analysis: SpectralAnalysis, *, ax: Axes | None = None) -> Axes:
    """The trace of each layer's diagonal block, with its 95 % confidence interval.

    Where layers were not analysed on their own, what the products of the whole matrix say of them is drawn.
    """
    by_layer = {name: block.trace for name, block in analysis.layers.items()} or dict(analysis.full.group_traces)
    if not by_layer:
        raise InputError("the analysis has no layers; run it with layers to draw their traces")
    row_height = float(np.clip(6 / len(by_layer), 0.18, 0.32))
    ax = new_axes(WIDTH, 0.75 + row_height * len(by_layer)) if ax is None else ax
    traces = list(by_layer.values())
    rows = np.arange(len(traces))
    with theme():
        ax.barh(rows, [trace.value for trace in traces], height=0.62, color=BLUE, alpha=0.55, linewidth=0)
        errors = np.array([trace_error(trace) for trace in traces])
        ax.errorbar(
            np.array([trace.value for trace in traces])[errors > 0],
            rows[errors > 0],
            xerr=errors[errors > 0],
            fmt="none",
            color=INK,
            elinewidth=1,
            capsize=2.5,
        )
        ax.set_yticks(rows, [literal(name) for name in by_layer], fontsize=7.5)
        ax.set_ylim(len(traces) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_xlabel(f"Trace of the layer's block {UNITS}")
    return ax


def plot_trajectory(analyses: Sequence[SpectralAnalysis], *, ax: Axes | None = None) -> Axes:
    """Largest and smallest eigenvalues and the trace along checkpoints, in the order given.

    Against the optimisation step where every ``problem`` has a distinct one, else against the checkpoints by name.
    """
    if not analyses:
        raise InputError("analyses is empty; a trajectory needs at least one checkpoint")
    ax = new_axes(WIDTH, HEIGHT + 0.3) if ax is None else ax
    blocks = [analysis.full for analysis in analyses]
    traces = np.array([block.trace.value for block in blocks])
    edges = [np.r_[block.largest.eigenvalues, block.smallest.eigenvalues] for block in blocks]
    with theme():
        _scale_values(ax, np.concatenate([*edges, traces]))
        x = _place_checkpoints(ax, analyses)
        ax.errorbar(
            x,
            traces,
            yerr=[trace_error(block.trace) for block in blocks],
            fmt="s-",
            color=GREEN,
            markersize=4,
            linewidth=1.1,
            capsize=2.5,
            label="trace",
        )
        largest = [block.largest.take(slice(None, None, -1)) for block in blocks]
        smallest = [block.smallest for block in blocks]
        _edge_line(ax, x, largest, 0, to_rgba(BLUE), r"$\lambda_1$ (largest)")
        for rank in range(1, _TOP):
            label = rf"$\lambda_2$ to $\lambda_{_TOP}$" if rank == 1 else None
            _edge_line(ax, x, largest, rank, to_rgba(BLUE, 0.4), label)
        _edge_line(ax, x, smallest, 0, to_rgba(VERMILION), r"$\lambda_n$ (smallest)")
        ax.set_ylabel(f"$\\lambda$, trace {UNITS}")
        _legend_above(ax, columns=4)
    return ax


def plot_cdf(
    spectrum: Spectrum,
    *,
    exact: Spectrum | None = None,
    edges: Sequence[Eigenpairs] = (),
    ax: Axes | None = None,
) -> Axes:
    """Fraction of eigenvalues at or below each value, beside the exact fraction where that is known.

    Of an estimate, the darker band is what the probes' quadratures leave open, with no probability in it; the lighter
    one adds that few probes were drawn, and holds the true fraction everywhere with the probability stated
    (:meth:`Spectrum.cdf_bounds`). The title states the Kolmogorov distance to the exact fraction.

    Parameters
    ----------
    spectrum : Spectrum
    exact : Spectrum, optional
    edges : sequence of Eigenpairs, optional
        The spectrum's atoms, where they come with an interval certified to hold all other eigenvalues.
    ax : Axes, optional
    """
    spectra = [spectrum] if exact is None else [spectrum, exact]
    axis = EigenvalueAxis.fit(spectra)
    ax = new_axes() if ax is None else ax
    nodes = np.unique(np.concatenate([each.nodes[each.weights > 0] for each in spectra]))
    ends = axis.eigenvalues([axis.low, axis.high])
    grid = np.concatenate([ends[:1], nodes, ends[1:]])
    with theme():
        axis.set_scale(ax)
        if exact is not None:
            ax.plot(grid, exact.cdf(grid), drawstyle="steps-post", color=INK, linewidth=2.4, alpha=0.3, label="exact")
            distance = float(np.abs(exact.cdf(grid) - spectrum.cdf(grid)).max())
            ax.set_title(f"Kolmogorov distance {distance:.2g}", fontsize=7.5, color=MUTED, pad=34)  # over the legend
        ax.plot(grid, spectrum.cdf(grid), drawstyle="steps-post", color=BLUE, linewidth=1.1, label="estimate")
        if not spectrum.exact:
            fine = axis.eigenvalues(np.linspace(axis.low, axis.high, _FINE))
            _draw_bounds(ax, spectrum, np.union1d(grid, fine), edges)
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel(f"Eigenvalue $\\lambda$ {UNITS}")
        ax.set_ylabel(r"Fraction of eigenvalues $\leq \lambda$")
        if exact is not None or not spectrum.exact:
            _legend_above(ax, columns=2 if exact is not None else 3)
    return ax


def _draw_bounds(ax: Axes, spectrum: Spectrum, grid: Floats, edges: Sequence[Eigenpairs]) -> None:
    """What the quadratures leave open, and beyond it what the probes do."""
    others = known_others(spectrum, edges)
    bands = [
        (None, 0.32, "bounds of the quadrature"),
        (1 - FAILURE, 0.16, f"with probes, {confidence(others)}"),
    ]
    for level, alpha, label in bands:
        # from a point of the grid to the next: the lower bound at its beginning and the upper one at its end
        lower = spectrum.cdf_bounds(grid[:-1], level=level, others=others)[0]
        upper = spectrum.cdf_bounds(np.nextafter(grid[1:], -np.inf), level=level, others=others)[1]
        lower, upper = np.append(lower, lower[-1]), np.append(upper, upper[-1])
        ax.fill_between(grid, lower, upper, step="post", color=BLUE, linewidth=0, alpha=alpha, label=label)


def _legend_above(ax: Axes, *, columns: int) -> None:
    """A legend over the axes, where it can hide nothing."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, columnspacing=1.2, handletextpad=0.4)


def _scale_values(ax: Axes, values: Floats) -> None:
    """A symmetric-logarithmic axis for a few values: linear only below the smallest of them that matters."""
    magnitudes = np.abs(values[values != 0])
    scale = magnitudes.max(initial=0.0) or 1.0
    threshold = float(np.clip(magnitudes.min(initial=scale), 1e-4 * scale, scale))
    ends = np.arcsinh(np.append(values, 0.0) / threshold) / np.log(10)
    margin = 0.08 * float(np.ptp(ends)) + 1e-3
    EigenvalueAxis(threshold, float(ends.min()) - margin, float(ends.max()) + margin, margin).set_scale(ax, which="y")


def _edge_line(
    ax: Axes, x: Floats, edges: Sequence[Eigenpairs], rank: int, shade: RGBAColorType, label: str | None
) -> None:
    """The eigenvalue of this rank from the edge along the checkpoints, with errors; hollow where not converged."""
    present = [i for i, pairs in enumerate(edges) if len(pairs) > rank]
    ranked = [edges[i].take([rank]) for i in present]
    if not ranked:
        return
    values = [float(pair.eigenvalues[0]) for pair in ranked]
    errors = [float(eigenvalue_errors(pair)[0]) for pair in ranked]
    ax.errorbar(x[present], values, yerr=errors, fmt="-", color=shade, linewidth=1.1)
    # Each mark has its own colour: one ``alpha`` for all would fill the hollow ones.
    faces = [shade if pair.converged[0] else to_rgba("none") for pair in ranked]
    ax.scatter(x[present], values, s=16, facecolors=faces, edgecolors=[shade], zorder=3, label=label)


def _place_checkpoints(ax: Axes, analyses: Sequence[SpectralAnalysis]) -> Floats:
    """Positions of the checkpoints along the x axis, which is labelled."""
    steps = [analysis.problem.get("step") for analysis in analyses]
    if all(isinstance(step, (int, float)) for step in steps) and len(set(steps)) == len(steps) > 1:
        x = np.array(steps, dtype=np.float64)
        positive = np.sort(x[x > 0])
        if positive[-1] > 30 * positive[0]:
            margin = 0.1
            axis = EigenvalueAxis(float(positive[0]), 0.0, 1.0, 1.0)
            ends = axis.decades([x.min(), x.max()])
            EigenvalueAxis(axis.threshold, ends[0] - margin, ends[1] + margin, margin).set_scale(ax)
        ax.set_xlabel("Optimisation step")
        return x
    names = [literal(PurePath(str(analysis.problem.get("checkpoint", i))).name) for i, analysis in enumerate(analyses)]
    ax.set_xticks(np.arange(len(names)), names, rotation=30, ha="right", fontsize=7.5)
    ax.set_xlabel("Checkpoint")
    return np.arange(len(names), dtype=np.float64)
