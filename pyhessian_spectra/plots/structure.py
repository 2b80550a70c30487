"""Draws how layers, eigenvectors and the gradient lie to one another, and eigenvalues followed through checkpoints."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from pyhessian_spectra.analysis.coupling import LayerCoupling
from pyhessian_spectra.analysis.eigenspaces import Localisation
from pyhessian_spectra.analysis.trajectory import Trajectory
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.axis import scale_values
from pyhessian_spectra.plots.eigenvalues import place_checkpoints
from pyhessian_spectra.plots.heatmap import finish, square_heatmap

# Colours of norms reach this many powers of ten below the largest.
_DECADES = 3


def plot_coupling(coupling: LayerCoupling, *, ax: Axes | None = None) -> Axes:
    """Draw the Frobenius norm of every block as a heatmap, with logarithmic colours over at most three decades."""
    norms = np.sqrt(coupling.mass.clip(0.0))
    top = float(norms.max()) or 1.0
    low = max(top * 10.0**-_DECADES, 0.9 * float(norms.min(initial=top)))
    bar = {"label": r"$\|H_{lk}\|_F$ " + style.units(), "format": "%g"}
    look = {"cmap": style.shades("rocket_r"), "norm": LogNorm(low, top, clip=True)}
    ax = square_heatmap(norms, coupling.labels, bar=bar, room=1.4, ax=ax, **look)
    ax.figure.axes[-1].minorticks_off()
    return ax


def plot_localisation(where: Localisation, *, ax: Axes | None = None) -> Axes:
    """Draw where each of the largest eigenvectors lives: layers down, eigenvectors across; columns sum to 1 at most.

    A column whose vector has no certain place, since its eigenvalue is not apart from the next, is marked ``?``.
    """
    labels = [style.literal(label, length=16) for label in where.labels]
    names = [f"{i}{'' if error < 0.5 else '?'}" for i, error in enumerate(where.errors, start=1)]
    height = 1.3 + 0.21 * len(labels)
    with style.drawing(ax, width=1.9 + 0.3 * len(names), height=max(2.0, height)) as ax:
        sns.heatmap(
            where.shares,
            ax=ax,
            cmap=style.shades("mako_r"),
            vmin=0,
            vmax=1,
            xticklabels=names,
            yticklabels=labels,
            linewidths=0.5,
            linecolor="white",
            cbar_kws={"label": "Share of the eigenvector"},
        )
        finish(ax)
        ax.set_xticklabels(ax.get_xticklabels(), rotation=0)
        ax.set_xlabel("Eigenvector, from the largest eigenvalue")
    return ax


def plot_tracks(found: Trajectory, *, ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalues through checkpoints, each followed by its vector and not by its rank.

    A line ends where no vector of the next checkpoint has more than half of its squared length along it. The dashed
    line is the curvature above which the optimiser is unstable, where its rate is known.
    """
    colors = sns.color_palette("colorblind", 10)
    with style.drawing(ax, height=style.HEIGHT + 0.2) as ax:
        scale_values(ax, np.concatenate([*found.values, [limit for limit in found.thresholds if limit is not None]]))
        x = place_checkpoints(ax, found.steps, found.labels)
        followed = 0
        for track in found.tracks:
            at = np.flatnonzero(track >= 0)
            y = [found.values[t][track[t]] for t in at]
            line = len(at) > 1
            color = colors[followed % len(colors)] if line else style.MUTED
            followed += line
            ax.plot(x[at], y, "o-", color=color, markersize=3, linewidth=1.2)
        edges = [(place, limit) for place, limit in zip(x, found.thresholds, strict=True) if limit is not None]
        if edges:
            ax.plot(*zip(*edges, strict=True), "--", color=style.VERMILION, linewidth=1.2, label="edge of stability")
            style.legend_above(ax, columns=1)
        ax.set_ylabel(style.eigenvalue())
    return ax
