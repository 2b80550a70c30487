"""Eigenvalue profiles: all eigenvalues of several networks in order of rank, and counted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots.style import HEIGHT, UNITS, literal, theme

# Eigenvalues below this part of the largest are drawn on a linear scale about zero.
_LINEAR = 1e-4
_BINS = 60


def plot_profiles(spectra: Mapping[str, ArrayLike], *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """All eigenvalues of several matrices: sorted, over the rank divided by ``n``, and as histograms.

    Parameters
    ----------
    spectra : mapping of str to array_like, shape (n,)
        Eigenvalues in any order, by the name the legend shows; lighter to darker colours in their order.
    axes : (Axes, Axes), optional
        For the sorted eigenvalues and for the histograms; by default those of a figure of its own.

    Returns
    -------
    (Axes, Axes)

    Raises
    ------
    InputError
        There is no spectrum, or one that is empty or not finite.
    """
    profiles = {name: np.sort(np.asarray(values, dtype=np.float64).ravel()) for name, values in spectra.items()}
    if not profiles:
        raise InputError("spectra is empty; a figure of profiles needs at least one list of eigenvalues")
    for name, values in profiles.items():
        if not (values.size and np.isfinite(values).all()):
            raise InputError(f"the eigenvalues of {name!r} are empty or not finite; leave that network out")
    everything = np.concatenate(list(profiles.values()))
    top = float(np.abs(everything).max()) or 1.0
    bins = np.linspace(everything.min(), everything.max() or 1.0, _BINS + 1)
    colors = colormaps["viridis_r"](0.15 + 0.8 * np.arange(len(profiles)) / max(1, len(profiles) - 1))
    with theme():
        if axes is None:
            axes = tuple(Figure(figsize=(8.0, HEIGHT), layout="constrained").subplots(1, 2))
        ranked, counted = axes
        for (name, values), color in zip(profiles.items(), colors, strict=True):
            rank = (np.arange(len(values)) + 0.5) / len(values)
            ranked.plot(rank, values, color=color, linewidth=1.2, label=literal(name))
            ranked.plot(rank[-2:], values[-2:], ".", color=color, markersize=4)
            counts = np.maximum(np.histogram(values, bins)[0], 0.5)
            counted.stairs(counts, bins, color=color, linewidth=1.2, baseline=0.5)
        ranked.set_yscale("symlog", linthresh=_LINEAR * top, linscale=1.2)
        crowded = [t for t in ranked.get_yticks() if t and abs(t) < 3 * _LINEAR * top]
        limits = ranked.get_ylim()
        ranked.set_yticks([t for t in ranked.get_yticks() if t not in crowded and limits[0] <= t <= limits[1]])
        ranked.set(xlabel="Rank / n", ylabel=f"Eigenvalue {UNITS}", title="Sorted eigenvalues")
        ranked.legend(fontsize=7, loc="upper left")
        counted.set_yscale("log")
        counted.set_ylim(0.5, None)
        counted.set(xlabel=f"Eigenvalue {UNITS}", ylabel="Eigenvalues in a bin", title="Histogram")
        counted.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    return ranked, counted
