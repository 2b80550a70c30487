"""Draws what a tracker recorded while a model trained: curvature beside the optimiser's edge of stability."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from pyhessian_spectra.analysis.table import RESIDUAL, UNPLACED
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import style
from pyhessian_spectra.tracking import SpectrumTracker, Track

# Of more records than these, so many are drawn as rows.
_ROWS = 12


def plot_track(
    track: Track | SpectrumTracker | Mapping[str, Track],
    quantity: str | None = None,
    *,
    block: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw one quantity along training, with its error, and the optimiser's edge of stability as a dashed line.

    Filled circles are values with a certificate of their rank, small points were followed from these; hollow ones did
    not converge. The band is the standard error of the data, where it is known. The edge is drawn for the eigenvalues
    that it is compared with, and where it is known.

    Parameters
    ----------
    track : Track, SpectrumTracker or mapping of str to Track
        One run, also while it goes on, or several by their labels.
    quantity : str, optional
        As in ``track.quantities()``; by default ``"sharpness_1"`` where it was measured, else the first.
    block : str, optional
        The layer that it belongs to; by default the whole.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        The quantity was not tracked.
    """
    one = track.track if isinstance(track, SpectrumTracker) else track
    runs = {"": one} if isinstance(one, Track) else dict(one)
    if not runs:
        raise InputError("there is no track to draw; pass one, or a mapping of labels to tracks")
    known = [name for each in runs.values() for name in each.quantities()]
    name = quantity or ("sharpness_1" if "sharpness_1" in known else next(iter(known), ""))
    colors = sns.color_palette("colorblind", len(runs)).as_hex()
    with style.drawing(ax) as ax:
        for (label, run), color in zip(runs.items(), colors, strict=True):
            _draw_run(ax, run, name, block, color, label)
            _draw_edge(ax, run, name, block, color if len(runs) > 1 else style.INK)
        ax.set_xlabel("Step")
        called = _called(name)
        ax.set_ylabel(f"{called} {style.units()}" if _is_curvature(name) else called)
        if ax.get_legend_handles_labels()[0]:
            style.legend_above(ax, columns=3)
    return ax


def plot_batch_eigenvalues(track: Track, *, bins: int = 12, ax: Axes | None = None) -> Axes:
    """Draw how the largest eigenvalues of single batches are distributed, and how that moved: a histogram a record.

    Records are rows, from the first at the top; bars of a row are drawn to one scale. The mark is the largest
    eigenvalue of all batches together, where it was tracked; the dashed line the optimiser's edge of stability. Of more
    than twelve records, twelve are drawn.

    Parameters
    ----------
    track : Track
        With :class:`BatchEigenvalues`.
    bins : int
        Of each histogram.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        No batch's eigenvalue was tracked.
    """
    found = [
        (record, [each.value for each in record.values if each.block.startswith("batch ")]) for record in track.records
    ]
    found = [(record, values) for record, values in found if values]
    if not found:
        raise InputError("no eigenvalue of a batch was tracked; give the tracker BatchEigenvalues()")
    rows = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(_ROWS, len(found))).round().astype(int))]
    every = np.concatenate([values for _, values in rows])
    edges = np.linspace(every.min(), every.max() + 1e-9 * max(1.0, abs(every.max())), bins + 1)
    with style.drawing(ax, height=0.8 + 0.28 * len(rows)) as ax:
        for place, (record, values) in enumerate(rows):
            counts = np.histogram(values, edges)[0]
            heights = 0.85 * counts / counts.max()
            ax.bar(edges[:-1], -heights, np.diff(edges), place + 0.45, align="edge", color=style.BLUE, alpha=0.55)
            if (top := record.get("lambda_1")) is not None:
                ax.plot(
                    top.value,
                    place + 0.3,
                    "o",
                    color=style.VERMILION,
                    markersize=3.5,
                    label=None if place else "all batches",
                )
            if record.threshold is not None and "preconditioned" not in record.formula:
                ax.plot([record.threshold] * 2, [place - 0.4, place + 0.45], "--", color=style.INK, linewidth=0.9,
                        label=None if place else record.formula)  # fmt: skip
        style.name_rows(ax, [f"step {record.step:,}" for record, _ in rows])
        ax.set_xlabel(rf"$\lambda_1$ of single batches {style.units()}")
        if ax.get_legend_handles_labels()[0]:
            style.legend_above(ax, columns=2)
    return ax


def _draw_run(ax: Axes, run: Track, name: str, block: str, color: str, label: str) -> None:
    steps, values, errors, data = run.series(name, block)
    found = [each for record in run.records if (each := record.get(name, block)) is not None]
    whole = np.array([each.value for each in found])
    if np.isfinite(data).any():
        ax.fill_between(steps, values - data, values + data, color=color, alpha=0.2, linewidth=0)
    ax.plot(steps, values, color=color, linewidth=1.1, label=style.literal(label) if label else None)
    certified = np.array([each.kind not in (RESIDUAL, UNPLACED) for each in found])
    kept = np.array([each.converged for each in found])
    for chosen, size, face in ((kept & certified, 3.5, color), (kept & ~certified, 1.5, color), (~kept, 3.5, "white")):
        if chosen.any():
            ax.errorbar(
                steps[chosen], whole[chosen], np.nan_to_num(errors[chosen]), fmt="o", color=color, markersize=size,
                markerfacecolor=face, elinewidth=0.8,
            )  # fmt: skip


def _draw_edge(ax: Axes, run: Track, name: str, block: str, color: str) -> None:
    preconditioned = any("preconditioned" in record.formula for record in run.records)
    compared = "sharpness_" if preconditioned else "lambda_"
    if block or not name.startswith(compared) or name.startswith("lambda_n"):
        return
    edge = [(record.step, np.nan if record.threshold is None else record.threshold) for record in run.records]
    steps, heights = np.array(edge, dtype=np.float64).T
    if np.isfinite(heights).any():
        formula = next(record.formula for record in run.records if record.threshold is not None)
        known = {text for _, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        label = formula.removesuffix(", preconditioned")
        ax.plot(steps, heights, "--", color=color, linewidth=0.9, label=None if label in known else label)


def _called(name: str) -> str:
    """A quantity's name with its symbols."""
    kind, _, rank = name.partition("_")
    if kind == "lambda":
        return rf"$\lambda_{{{rank}}}$"
    if kind == "sharpness":
        return rf"$\lambda_{{{rank}}}$ of $P^{{-1/2}} H P^{{-1/2}}$"
    return name[:1].upper() + name[1:]


def _is_curvature(name: str) -> bool:
    return name.startswith(("lambda_", "trace", "batch sharpness", "critical sharpness", "change of trace"))
