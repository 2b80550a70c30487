"""A figure of several training runs beside one another, with their mean where they differ by the seed."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.seeds import checkpoint_step
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.axis import scale_values
from pyhessian_spectra.plots.eigenvalues import place_checkpoints


def plot_runs(found: Checkpoints, *, ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalue along each run, a line of its own, with its error.

    The dashed line and the band around it are the mean over the seeds of a setting and the standard deviation of one
    run. Raises InputError if no eigenvalues were computed.
    """
    shown = {run: [i for i in at if len(found.analyses[i].full.largest)] for run, at in found.runs.items()}
    tops = {i: next(iter(found.analyses[i].full.largest)) for at in shown.values() for i in at}
    if not tops:
        raise InputError("no eigenvalues were computed; ask the analyses for at least one to draw runs")
    # checkpoints of the same step share a place; without steps, those that are as far along in their runs
    steps = {i: checkpoint_step(found.analyses[i]) for i in tops}
    timed = all(step is not None for step in steps.values())
    order = {i: float(steps[i] or 0.0) if timed else float(rank) for at in shown.values() for rank, i in enumerate(at)}
    places = sorted(set(order.values()))
    colors = dict(zip(shown, sns.color_palette("colorblind", len(shown)), strict=True))
    units = found.analyses[0].problem.get("units")
    with style.measured_in(units), style.drawing(ax, height=style.HEIGHT + 0.3) as ax:
        scale_values(ax, np.array([top.eigenvalue for top in tops.values()]))
        names = [str(int(place) + 1) for place in places]
        x = dict(zip(places, place_checkpoints(ax, [p if timed else None for p in places], names), strict=True))
        for run, at in shown.items():
            bars = [tops[i].reach for i in at]
            label = style.literal(run or "checkpoints")
            ax.errorbar(
                [x[order[i]] for i in at], [tops[i].eigenvalue for i in at], bars,
                fmt="o-", color=colors[run], markersize=3, linewidth=0.9, elinewidth=0.9, label=label,
            )  # fmt: skip
        # a mean of checkpoints that are not at one place in their runs has none of its own
        means = {
            mean: x[order[mean.members[0]]]
            for mean in found.seeds
            if mean.quantity == "lambda_1" and len({order[i] for i in mean.members}) == 1
        }
        for number, setting in enumerate(dict.fromkeys(mean.setting for mean in means)):
            own = sorted((mean for mean in means if mean.setting == setting), key=lambda mean: means[mean])
            across, middle = [means[mean] for mean in own], np.array([mean.mean for mean in own])
            spread = np.array([mean.spread for mean in own])
            label = "" if number else "mean over seeds, ± spread"
            ax.plot(across, middle, "--", color=style.INK, linewidth=1.4, label=label)
            ax.fill_between(across, middle - spread, middle + spread, color=style.MUTED, alpha=0.25, linewidth=0)
        ax.set_ylabel(r"$\lambda_1$ " + style.units())
        style.legend_above(ax, columns=2)
    return ax
