"""Figures of where the eigenvalues are show densities, alone or above one another, and the fraction below a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from pyhessian_spectra.analysis.resolution import WIDEST_SHARE, confidence, known_others
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.axis import EigenvalueAxis
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.results import Eigenpairs
from pyhessian_spectra.spectra.spectrum import Spectrum

# No lower count is drawn: a wide bar may have a tenth of an eigenvalue per bin, a histogram never has less than one.
_FLOOR, _EXACT_FLOOR = 0.1, 0.5
# Bounds of a CDF are drawn at so many points along the axis, beside the nodes.
_FINE = 600


def plot_density(
    spectrum: Spectrum,
    *,
    ax: Axes | None = None,
    edges: Eigenpairs | Sequence[Eigenpairs] | None = None,
    bulk: tuple[float, float] | None = None,
    axis: EigenvalueAxis | None = None,
    color: str = style.BLUE,
    label: str | None = None,
) -> Axes:
    """Draw the number of eigenvalues along a symmetric-logarithmic axis, bulk and edges in one view.

    Bars hold eigenvalues whose number is known: of an exact spectrum they are a bin wide; of an estimate as wide as it
    takes to know that number to a factor of ten, with the probability stated, and the lighter band is what is open
    about it. So what the probes do not resolve is one block, whose area is right and whose shape is not known. An
    isolated eigenvalue has height 1.

    Parameters
    ----------
    spectrum : Spectrum
    ax : Axes, optional
        Where to draw; by default a figure of its own (``ax.figure.savefig`` saves it).
    edges : Eigenpairs or sequence of Eigenpairs, optional
        Single eigenvalues to mark below the density with their errors; hollow marks did not converge.
    bulk : (float, float), optional
        Smallest and largest eigenvalue of the bulk, which is shaded.
    axis : EigenvalueAxis, optional
        The axis to draw on; ``EigenvalueAxis.fit([a, b])`` serves two spectra drawn over one another.
    color, label : str, optional
        Colour of the density and its name in a legend.
    """
    marked = [] if edges is None else [edges] if isinstance(edges, Eigenpairs) else list(edges)
    others = known_others(spectrum, marked)
    points = np.concatenate([others or [], *(pairs.eigenvalues for pairs in marked)])
    axis = axis or EigenvalueAxis.fit([spectrum], points=points)
    profile = axis.profile(spectrum, others=others)
    floor = _EXACT_FLOOR if spectrum.exact else _FLOOR
    foot = floor / 100  # Counts of zero have no logarithm; they are drawn here, out of sight.
    counts, lower, upper = (np.maximum(x, foot) for x in (profile.counts, profile.lower, profile.upper))
    top = 2 * max(1.0, float(upper.max()))
    title = f"all {spectrum.n:,} eigenvalues; {_linear_part(axis)}"
    if not spectrum.exact:
        title = "bars: how many eigenvalues lie in them, not where in a wide one\n"
        title += f"light: bounds, {confidence(others)} confidence; {_linear_part(axis)}"
    with style.drawing(ax) as ax:
        axis.set_scale(ax)
        ax.set_yscale("log")
        ax.fill_between(profile.values, foot, lower, color=color, alpha=0.3, linewidth=0)
        ax.fill_between(profile.values, lower, upper, color=color, alpha=0.14, linewidth=0)
        ax.plot(profile.values, counts, color=color, linewidth=1.1, label=label)
        # The strip below the floor, a tenth of the height, is for the marks.
        bottom = floor * (floor / top) ** (1 / 9) if marked else floor
        ax.set_ylim(bottom, top)
        if bulk is not None:
            _shade_bulk(ax, axis, bulk)
        look = {"fmt": "^", "color": style.ORANGE, "markersize": 4, "markeredgewidth": 0.8, "elinewidth": 0.8}
        for pairs in marked:
            style.mark_pairs(ax, pairs, 0.045, along="x", look=look | {"transform": ax.get_xaxis_transform()})
        ax.set(xlabel=style.eigenvalue(), ylabel=f"Eigenvalues per {axis.width:g} decade")
        style.remark_above(ax, title)
    return ax


def _shade_bulk(ax: Axes, axis: EigenvalueAxis, bulk: tuple[float, float]) -> None:
    """Shade a band from foot to top behind everything, at least a bin wide, and name it at its head."""
    low, high = axis.decades(bulk)
    widen = max(axis.width - (high - low), 0.0) / 2
    low, middle, high = (float(x) for x in axis.eigenvalues([low - widen, (low + high) / 2, high + widen]))
    ax.axvspan(low, high, color=style.MUTED, alpha=0.14, linewidth=0, zorder=0)
    ax.text(middle, 0.985, "bulk", transform=ax.get_xaxis_transform(), ha="center", va="top", **style.REMARK)


def plot_layer_densities(analysis: SpectralAnalysis, *, ax: Axes | None = None) -> Axes:
    """Draw the densities of the diagonal blocks of all layers on one eigenvalue axis, with their traces."""
    if not analysis.layers:
        raise InputError("the analysis has no layers; run it with layers to draw their densities")
    with style.measured_in(analysis.problem.get("units")):
        return plot_density_rows(analysis.layers, ax=ax)


def plot_density_rows(blocks: Mapping[str, BlockAnalysis], *, ax: Axes | None = None) -> Axes:
    """Draw densities above one another on one eigenvalue axis, with the traces at the right.

    Heights are logarithms of eigenvalues per bin and have one scale in all rows, from the row's baseline.

    Parameters
    ----------
    blocks : mapping of str to BlockAnalysis
        Rows from top to bottom: layers, or the whole Hessian at several checkpoints.
    ax : Axes, optional
    """
    if not blocks:
        raise InputError("blocks is empty; a figure of densities needs at least one block")
    others = [known_others(block.spectrum, (block.smallest, block.largest)) for block in blocks.values()]
    axis = EigenvalueAxis.fit(
        [block.spectrum for block in blocks.values()], points=[x for ends in others for x in ends or ()]
    )
    row_height = float(np.clip(5.5 / len(blocks), 0.22, 0.55))
    profiles = [axis.profile(each.spectrum, others=ends) for each, ends in zip(blocks.values(), others, strict=True)]
    tallest = max(float(profile.counts.max(initial=1.0)) for profile in profiles)
    title = f"log of eigenvalues per {axis.width:g} decade,\n{_FLOOR:g} to {tallest:,.0f}; {_linear_part(axis)}"
    with style.drawing(ax, height=0.9 + row_height * len(blocks)) as ax:
        axis.set_scale(ax)
        for row, (profile, block) in enumerate(zip(profiles, blocks.values(), strict=True)):
            height = np.log(np.maximum(profile.counts, _FLOOR) / _FLOOR) / np.log(tallest / _FLOOR)
            base, line = row + 0.45, row + 0.45 - 0.85 * height
            ax.fill_between(profile.values, base, line, color=style.BLUE, alpha=0.3, linewidth=0)
            ax.plot(profile.values, line, color=style.BLUE, linewidth=0.8)
            text = str(block.trace)
            ax.text(1.01, base - 0.1, text, transform=ax.get_yaxis_transform(), fontsize=7, color=style.INK)
        style.name_rows(ax, list(blocks), below=0.25)
        ax.set_xlabel(style.eigenvalue())
        style.remark_above(ax, title)
        ax.text(1.01, 1.0, "trace", transform=ax.transAxes, va="top", **style.REMARK)
    return ax


def plot_cdf(
    spectrum: Spectrum, *, exact: Spectrum | None = None, edges: Sequence[Eigenpairs] = (), ax: Axes | None = None
) -> Axes:
    """Draw the fraction of eigenvalues at or below each value, beside the exact fraction where that is known.

    The band of an estimate holds the true fraction everywhere with the probability stated: it covers what the
    quadratures leave open between their nodes, and that few probes were drawn (:meth:`Spectrum.cdf_bounds`). Where it
    is wider than a tenth, no estimate is drawn. The title states the Kolmogorov distance to the exact fraction.

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
    ends = axis.eigenvalues([axis.low, axis.high])
    grid = np.unique(np.concatenate([ends, *(each.nodes[each.weights > 0] for each in spectra)]))
    with style.drawing(ax) as ax:
        axis.set_scale(ax)
        if exact is not None:
            ax.step(grid, exact.cdf(grid), where="post", color=style.INK, linewidth=2.4, alpha=0.3, label="exact")
        others = known_others(spectrum, edges)
        fine = np.union1d(grid, axis.eigenvalues(np.linspace(axis.low, axis.high, _FINE)))
        # From a point of the grid to the next: the lower bound at its beginning and the upper one at its end.
        lower = spectrum.cdf_bounds(fine[:-1], level=1 - FAILURE, others=others)[0]
        upper = spectrum.cdf_bounds(np.nextafter(fine[1:], -np.inf), level=1 - FAILURE, others=others)[1]
        lower, upper = np.append(lower, lower[-1]), np.append(upper, upper[-1])
        known = np.where(upper - lower <= WIDEST_SHARE, spectrum.cdf(fine), np.nan)
        ax.step(fine, known, where="post", color=style.BLUE, linewidth=1.1, label="estimate")
        if not spectrum.exact:
            band = ax.fill_between(fine, lower, upper, step="post", color=style.BLUE, linewidth=0)
            band.set(alpha=0.25, label=f"bounds, {confidence(others)} confidence")
        ax.set(ylim=(-0.02, 1.02), xlabel=style.eigenvalue(), ylabel=r"Fraction of eigenvalues $\leq \lambda$")
        if exact is not None or not spectrum.exact:
            style.legend_above(ax, columns=3)
        if exact is not None:
            distance = float(np.abs(exact.cdf(grid) - spectrum.cdf(grid)).max())
            style.remark_above(ax, f"Kolmogorov distance {distance:.2g}")
    return ax


def _linear_part(axis: EigenvalueAxis) -> str:
    """Say where the axis turns from linear to logarithmic."""
    return f"axis linear within ±{format_number(axis.threshold, digits=2)}"
