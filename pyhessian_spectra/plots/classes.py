"""Figures of classes and examples: outliers that class means predict beside those measured, and who carries them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from pyhessian_spectra.analysis.carriers import Carriers
from pyhessian_spectra.analysis.classes import ClassStructure
from pyhessian_spectra.analysis.result import NUM_THUMBNAILS
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_with_error
from pyhessian_spectra.plots import style
from pyhessian_spectra.spectra.results import Floats

# Eigenvalues below this part of the largest are not drawn: a class mean may have none.
_SMALLEST = 1e-4
# So many examples are drawn, each with an image of this size in inches.
_MOST, _THUMBNAIL = NUM_THUMBNAILS, 0.27


def plot_class_structure(structure: ClassStructure, *, ax: Axes | None = None) -> Axes:
    """Draw the outliers predicted by class means, those measured, and what is left without the means, by rank.

    Twice as many ranks as there are classes, on a logarithmic axis, with bars for the errors. The shade marks as many
    ranks as there are classes, which class means could explain.
    """
    k = len(structure.classes)
    own = np.full(len(structure.eigenvalues), structure.rounding)
    series = (
        (structure.eigenvalues, np.stack([own, own]), "o-", style.BLUE, "$G$: measured"),
        (structure.predicted, structure.errors(structure.predicted), "D-", style.ORANGE, "$G_1$: class means"),
        (structure.remaining, structure.errors(structure.remaining), "s:", style.GREEN, "$G - G_1$: what is left"),
        (
            structure.projected,
            structure.projected_errors(),
            "v:",
            style.VERMILION,
            "$G$ outside the span of class means",
        ),
    )
    top = float(structure.eigenvalues[-1])
    if not top > 0:
        raise InputError("all eigenvalues are zero; there is no class structure to draw")
    with style.drawing(ax, height=style.HEIGHT + 0.3) as ax:
        ax.axvspan(0.5, k + 0.5, color=style.GRID, alpha=0.5, linewidth=0, zorder=0)
        lowest = min(_draw_by_rank(ax, *one, count=2 * k, floor=_SMALLEST * top) for one in series)
        ax.set_yscale("log")
        ax.set_ylim(lowest / 1.5, top * 1.9)
        ax.set_xlim(0.5, 2 * k + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="Rank", ylabel=style.eigenvalue())
        style.legend_above(ax, columns=2)
        style.remark_above(ax, _explained(structure))
    return ax


def plot_carriers(
    carriers: Carriers, images: ArrayLike | Mapping[int, ArrayLike] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the largest shares in an eigenvalue, an example a bar, coloured by whether the model is right about it.

    Below each bar are the example's label, and what the model says instead if it is wrong. ``images`` (N, H, W),
    (N, 1, H, W) or (N, 3, H, W) are the inputs of all examples, of any range, or a mapping has those of the examples
    drawn by their number.
    """
    count = min(_MOST, len(carriers.examples))
    pictures = None if images is None else _pictures(images, carriers, count)
    wrong = np.array(_wrong(carriers, count))
    groups = ((~wrong, style.BLUE, "classified correctly"), (wrong, style.VERMILION, "misclassified"))
    shares, places = np.array(carriers.shares[:count]), np.arange(count)
    bars: dict[str, Any] = {"ecolor": style.INK, "capsize": 2, "error_kw": {"elinewidth": 0.9}}
    # An error that is too small to see would show as the caps of its bar; NaN shows as nothing.
    error = carriers.share_error if carriers.share_error > 0.005 * carriers.shares[0] else np.nan
    with style.drawing(ax, height=style.HEIGHT + (0 if pictures is None else 0.3)) as ax:
        for some, color, label in groups:
            if some.any():
                ax.bar(places[some], shares[some], width=0.72, yerr=error, color=color, alpha=0.75, label=label, **bars)
        ax.set_xticks(places, [_name(carriers, i) for i in range(count)], fontsize=7.5)
        ax.tick_params(axis="x", length=0, pad=3 if pictures is None else 72 * _THUMBNAIL + 5)
        for place, picture in enumerate(pictures or []):
            _show(ax, place, picture)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_ylim(0, 1.12 * (carriers.shares[0] + (0 if np.isnan(error) else error)))
        ax.grid(False, axis="x")
        ax.set_xlabel("Label, and prediction where it differs" if carriers.labels else "Example")
        ax.set_ylabel(f"Share in {_symbol(carriers)}")
        ax.text(1.0, 0.98, _remark(carriers, count), transform=ax.transAxes, ha="right", va="top", **style.REMARK)
        if carriers.labels:
            style.legend_above(ax, columns=2)
    return ax


def _explained(structure: ClassStructure) -> str:
    """What class means explain, in percent: of directions and of the trace."""
    aligned = _percent(structure.alignment, structure.alignment_error)
    carried = _percent(structure.fractions["between"], structure.fraction_errors["between"])
    told = f"$G_1$ spans {aligned} of the top {len(structure.overlaps)} eigenvectors"
    return f"{told}\n({structure.chance.mean():.0%} by chance), and has {carried} of the trace"


def _percent(value: float, error: float) -> str:
    """A fraction in percent, with its error unless that is below the digits shown."""
    return f"{value:.1%}" if error < 5e-4 else f"({format_with_error(100 * value, 100 * error)})%"


def _draw_by_rank(
    ax: Axes, values: Floats, errors: Floats, look: str, color: str, label: str, *, count: int, floor: float
) -> float:
    """Draw the largest values from the largest on; return the smallest that is drawn."""
    values, errors = values[::-1][:count], errors[:, ::-1][:, :count]
    shown = values > floor
    ranks = np.arange(1, len(values) + 1)[shown]
    # a bar that reaches zero has no end on this axis
    bars = np.minimum(errors[:, shown], np.stack([values[shown] * (1 - 1e-9), np.full(shown.sum(), np.inf)]))
    ax.errorbar(
        ranks, values[shown], bars, fmt=look, color=color, label=label, markersize=4, linewidth=1.0, elinewidth=0.9
    )
    return float(values[shown].min(initial=np.inf))


def _wrong(carriers: Carriers, count: int) -> list[bool]:
    if carriers.labels is None or carriers.predictions is None:
        return [False] * count
    return [label != said for label, said in zip(carriers.labels[:count], carriers.predictions[:count], strict=True)]


def _name(carriers: Carriers, place: int) -> str:
    """The label of an example, and the prediction if it is another; its number where it has no label."""
    if carriers.labels is None or carriers.predictions is None:
        return str(carriers.examples[place])
    label, said = carriers.labels[place], carriers.predictions[place]
    return str(label) if label == said else f"{label}\n→ {said}"


def _symbol(carriers: Carriers) -> str:
    first, last = carriers.ranks[0], carriers.ranks[-1]
    return rf"$\lambda_{{{first}}}$" if first == last else rf"$\lambda_{{{first}}} + … + \lambda_{{{last}}}$"


def _remark(carriers: Carriers, count: int) -> str:
    """What is in the figure as a whole: the eigenvalue, the examples drawn, and all that are misclassified."""
    value = format_with_error(sum(carriers.eigenvalues), len(carriers.ranks) * carriers.rounding)
    lines = [
        f"{_symbol(carriers)} = {value}",
        f"{count} of {len(carriers.examples)} examples carry {sum(carriers.shares[:count]):.0%}",
    ]
    if carriers.misclassified_share is not None and carriers.misclassified_fraction:
        share, fraction = carriers.misclassified_share, carriers.misclassified_fraction
        lines.append(f"the {fraction:.1%} misclassified carry {share:.1%}")
    return "\n".join(lines)


def _pictures(images: ArrayLike | Mapping[int, ArrayLike], carriers: Carriers, count: int) -> list[Floats]:
    """The images (H, W) or (H, W, 3) of the examples drawn, each with values from 0 to 1."""
    if not isinstance(images, Mapping):
        images = np.asarray(images)
        channels = 1 if images.ndim == 3 else images.shape[1] if images.ndim == 4 else 0
        if len(images) != len(carriers.examples) or channels not in (1, 3):
            raise InputError(
                f"images must be (N, H, W), (N, 1, H, W) or (N, 3, H, W) for all {len(carriers.examples)} examples, "
                f"got shape {images.shape}"
            )
    chosen = [np.asarray(images[i], np.float64) for i in carriers.examples[:count]]
    chosen = [picture[0] if picture.ndim == 3 and len(picture) == 1 else picture for picture in chosen]
    chosen = [picture.transpose(1, 2, 0) if picture.ndim == 3 else picture for picture in chosen]
    return [(picture - picture.min()) / (np.ptp(picture) or 1.0) for picture in chosen]


def _show(ax: Axes, place: int, picture: Floats) -> None:
    """Put an image just below the bar at ``place``, dark on light if it is grey."""
    image = OffsetImage(picture, zoom=72 * _THUMBNAIL / max(picture.shape[:2]), cmap="gray_r")
    frame = {"edgecolor": style.GRID, "linewidth": 0.6}
    box = AnnotationBbox(
        image, (place, -0.015), xycoords=("data", "axes fraction"), box_alignment=(0.5, 1.0), pad=0.1, bboxprops=frame
    )
    ax.add_artist(box)
