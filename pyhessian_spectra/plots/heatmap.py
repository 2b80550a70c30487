"""Draws a square table of numbers between labelled things as a heatmap, and finishes any heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.plots import style
from pyhessian_spectra.spectra.results import Floats

# Numbers stand in the cells of tables up to this size.
_LEGIBLE = 8


def is_legible(labels: Sequence[str]) -> bool:
    """Whether a table of so many labels has its numbers written into its cells."""
    return len(labels) <= _LEGIBLE


def square_heatmap(
    values: Floats, labels: Sequence[str], *, bar: Mapping[str, Any], room: float, ax: Axes | None, **look: Any
) -> Axes:
    """Draw values (p, p), with what the colour ``bar`` says, and ``room`` for it in inches."""
    names = [style.literal(label, length=16) for label in labels]
    few = is_legible(labels)
    size = 1.6 + (0.48 if few else 0.19) * len(names)
    numbers = np.array([[format_number(value, digits=2) for value in row] for row in values])
    with style.drawing(ax, width=size + room, height=size) as ax:
        sns.heatmap(
            values,
            ax=ax,
            square=True,
            annot=numbers if few else None,
            fmt="",
            annot_kws={"fontsize": 7},
            xticklabels=names,
            yticklabels=names,
            cbar_kws={"shrink": 0.8, **bar},
            **look,
        )
        finish(ax)
    return ax


def finish(ax: Axes) -> None:
    """Labels without ticks and grid, upright below and level at the left."""
    ax.tick_params(length=0, labelsize=7)
    ax.set_xticklabels(ax.get_xticklabels(), rotation=90)
    ax.set_yticklabels(ax.get_yticklabels(), rotation=0)
    ax.grid(visible=False)
