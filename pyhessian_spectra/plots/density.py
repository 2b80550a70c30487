"""Figures of where the eigenvalues are show densities, alone or above one another, and the fraction below a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import style
from pyhessian_spectra.plots.axis import EigenvalueAxis
from pyhessian_spectra.plots.numbers import format_number, format_with_error, trace_error
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.results import Eigenpairs
from pyhessian_spectra.spectra.spectrum import Spectrum

# No lower count is drawn: a smoothed one may be a tenth of an eigenvalue, a histogram never has less than one.
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

    Exact spectra are histograms. Others are smoothed by a Gaussian of constant width in the coordinate of the axis,
    stated on the figure. An isolated eigenvalue has height 1 in both. The darker band is one standard error over the
    probes; the lighter one holds what the same smoothing would make of the eigenvalues themselves, at all points
    together, with the probability stated (:meth:`Spectrum.density_bounds`).

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
    axis = axis or EigenvalueAxis.fit([spectrum], points=np.concatenate([[], *(pairs.eigenvalues for pairs in marked)]))
    profile = axis.profile(spectrum)
    floor = _EXACT_FLOOR if spectrum.exact else _FLOOR
    foot = floor / 100  # Counts of zero have no logarithm; they are drawn here, out of sight.
    if spectrum.exact:
        bands = [(np.full_like(profile.counts, foot), profile.counts, 0.18)]
        title = f"all {spectrum.n:,} eigenvalues; {_linear_part(axis)}"
    else:
        others, confidence = known_others(spectrum, marked)
        bounds = axis.bounds(spectrum, profile.values, level=1 - FAILURE, others=others)
        bands = [(*np.maximum(bounds, foot), 0.14), (profile.lower, profile.upper, 0.4)]
        probes = f"{spectrum.num_probes} probe{'s' * (spectrum.num_probes > 1)}"
        title = f"{probes}, Gaussian of $\\sigma$ = {axis.bandwidth:.2g} decades; {_linear_part(axis)}\n"
        title += f"light: bounds ({confidence} confidence); dark: one standard error over probes"
    top = 2 * max(1.0, *(float(upper.max()) for _, upper, _ in bands))
    with style.drawing(ax) as ax:
        axis.set_scale(ax)
        ax.set_yscale("log")
        for lower, upper, alpha in bands:
            ax.fill_between(profile.values, lower, upper, color=color, alpha=alpha, linewidth=0)
        ax.plot(profile.values, np.maximum(profile.counts, foot), color=color, linewidth=1.1, label=label)
        # The strip below the floor, a tenth of the height, is for the marks.
        ax.set_ylim(floor * (floor / top) ** (1 / 9) if marked else floor, top)
        if bulk is not None:
            _shade_bulk(ax, axis, bulk)
        look = {"fmt": "^", "color": style.ORANGE, "markersize": 4, "markeredgewidth": 0.8, "elinewidth": 0.8}
        for pairs in marked:
            style.mark_pairs(ax, pairs, 0.045, along="x", look=look | {"transform": ax.get_xaxis_transform()})
        ax.set(xlabel=style.EIGENVALUE, ylabel=f"Eigenvalues per {axis.width:g} decade")
        ax.set_title(title, **style.REMARK)
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
    axis = EigenvalueAxis.fit([block.spectrum for block in blocks.values()])
    row_height = float(np.clip(5.5 / len(blocks), 0.22, 0.55))
    profiles = [axis.profile(block.spectrum) for block in blocks.values()]
    tallest = max(float(profile.counts.max(initial=1.0)) for profile in profiles)
    title = f"height: log of eigenvalues per {axis.width:g} decade, {_FLOOR:g} to {tallest:,.0f}\n{_linear_part(axis)}"
    with style.drawing(ax, height=0.9 + row_height * len(blocks)) as ax:
        axis.set_scale(ax)
        for row, (profile, block) in enumerate(zip(profiles, blocks.values(), strict=True)):
            height = np.log(np.maximum(profile.counts, _FLOOR) / _FLOOR) / np.log(tallest / _FLOOR)
            base, line = row + 0.45, row + 0.45 - 0.85 * height
            ax.fill_between(profile.values, base, line, color=style.BLUE, alpha=0.3, linewidth=0)
            ax.plot(profile.values, line, color=style.BLUE, linewidth=0.8)
            # Three digits of an exact trace are enough in a figure.
            value, error = block.trace.value, trace_error(block.trace)
            text = format_with_error(value, error) if error else format_number(value)
            ax.text(1.01, base - 0.1, text, transform=ax.get_yaxis_transform(), fontsize=7, color=style.INK)
        style.name_rows(ax, list(blocks), below=0.25)
        ax.set_xlabel(style.EIGENVALUE)
        ax.set_title(title, **style.REMARK)
        ax.text(1.01, 1.02, "trace", transform=ax.transAxes, **style.REMARK)
    return ax


def plot_cdf(
    spectrum: Spectrum, *, exact: Spectrum | None = None, edges: Sequence[Eigenpairs] = (), ax: Axes | None = None
) -> Axes:
    """Draw the fraction of eigenvalues at or below each value, beside the exact fraction where that is known.

    An estimate has two bands. The darker one is what the probes' quadratures leave open, with no probability in it; the
    lighter one adds that few probes were drawn, and holds the true fraction everywhere with the probability stated
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
    ends = axis.eigenvalues([axis.low, axis.high])
    grid = np.unique(np.concatenate([ends, *(each.nodes[each.weights > 0] for each in spectra)]))
    with style.drawing(ax) as ax:
        axis.set_scale(ax)
        if exact is not None:
            ax.step(grid, exact.cdf(grid), where="post", color=style.INK, linewidth=2.4, alpha=0.3, label="exact")
            distance = float(np.abs(exact.cdf(grid) - spectrum.cdf(grid)).max())
            ax.set_title(f"Kolmogorov distance {distance:.2g}", pad=34, **style.REMARK)  # over the legend
        ax.step(grid, spectrum.cdf(grid), where="post", color=style.BLUE, linewidth=1.1, label="estimate")
        if not spectrum.exact:
            others, confidence = known_others(spectrum, edges)
            fine = np.union1d(grid, axis.eigenvalues(np.linspace(axis.low, axis.high, _FINE)))
            levels = (None, 0.32, "bounds of the quadrature"), (1 - FAILURE, 0.16, f"with probes, {confidence}")
            for level, alpha, label in levels:
                # From a point of the grid to the next: the lower bound at its beginning and the upper one at its end.
                lower = spectrum.cdf_bounds(fine[:-1], level=level, others=others)[0]
                upper = spectrum.cdf_bounds(np.nextafter(fine[1:], -np.inf), level=level, others=others)[1]
                lower, upper = np.append(lower, lower[-1]), np.append(upper, upper[-1])
                band = ax.fill_between(fine, lower, upper, step="post", color=style.BLUE, linewidth=0)
                band.set(alpha=alpha, label=label)
        ax.set(ylim=(-0.02, 1.02), xlabel=style.EIGENVALUE, ylabel=r"Fraction of eigenvalues $\leq \lambda$")
        if exact is not None or not spectrum.exact:
            style.legend_above(ax, columns=2 if exact is not None else 3)
    return ax


def known_others(spectrum: Spectrum, pairs: Sequence[Eigenpairs]) -> tuple[tuple[float, float] | None, str]:
    """Return an interval that holds all but the atoms, if these are the ``pairs``, and how sure bounds by it are."""
    # Bounds hold at level ``1 - FAILURE``, but the interval that they rely on may fail as well.
    known = [each.others for each in pairs if each.others is not None]
    if known and sum(map(len, pairs)) == spectrum.num_atoms:
        return known[0], f"{100 * (1 - 2 * FAILURE):g} %"
    return None, f"{100 * (1 - FAILURE):g} %"


def _linear_part(axis: EigenvalueAxis) -> str:
    """Say where the axis turns from linear to logarithmic."""
    return f"axis linear within ±{format_number(axis.threshold, digits=2)}"
