"""Where the eigenvalues are: densities of one spectrum, and of many above one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots.axis import EigenvalueAxis
from pyhessian_spectra.plots.numbers import eigenvalue_errors, format_number, format_with_error, trace_error
from pyhessian_spectra.plots.style import BLUE, INK, MUTED, ORANGE, UNITS, WIDTH, literal, new_axes, theme
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.results import Eigenpairs
from pyhessian_spectra.spectra.spectrum import Spectrum

# Lowest count drawn: a tenth of an eigenvalue when smoothed; a histogram never has less than one.
_FLOOR, _EXACT_FLOOR = 0.1, 0.5


def plot_density(
    spectrum: Spectrum,
    *,
    ax: Axes | None = None,
    edges: Eigenpairs | Sequence[Eigenpairs] | None = None,
    bulk: tuple[float, float] | None = None,
    axis: EigenvalueAxis | None = None,
    color: str = BLUE,
    label: str | None = None,
) -> Axes:
    """Number of eigenvalues along a symmetric-logarithmic axis, bulk and edges in one view.

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
    marked = _as_sequence(edges)
    points = np.concatenate([pairs.eigenvalues for pairs in marked]) if marked else np.empty(0)
    axis = axis or EigenvalueAxis.fit([spectrum], points=points)
    ax = new_axes() if ax is None else ax
    profile = axis.profile(spectrum)
    floor = _EXACT_FLOOR if spectrum.exact else _FLOOR
    with theme():
        axis.set_scale(ax)
        ax.set_yscale("log")
        title, top = describe(spectrum, axis), float(profile.upper.max(initial=1.0))
        if spectrum.exact:
            ax.fill_between(profile.values, floor / 100, profile.counts, color=color, alpha=0.18, linewidth=0)
        else:
            others = known_others(spectrum, marked)
            lower, upper = axis.bounds(spectrum, profile.values, level=1 - FAILURE, others=others)
            lower, upper = np.maximum(lower, floor / 100), np.maximum(upper, floor / 100)
            ax.fill_between(profile.values, lower, upper, color=color, alpha=0.14, linewidth=0)
            ax.fill_between(profile.values, profile.lower, profile.upper, color=color, alpha=0.4, linewidth=0)
            title = f"{title}\nlight: bounds ({confidence(others)} confidence); dark: one standard error over probes"
            top = max(top, float(upper.max()))
        ax.plot(profile.values, np.maximum(profile.counts, floor / 100), color=color, linewidth=1.1, label=label)
        top = 2 * top
        # The strip below the floor, a tenth of the height, is for the marks.
        ax.set_ylim(floor * (floor / top) ** (1 / 9) if marked else floor, top)
        if bulk is not None:
            _shade_bulk(ax, axis, bulk)
        for pairs in marked:
            _mark_edges(ax, pairs)
        ax.set_xlabel(f"Eigenvalue $\\lambda$ {UNITS}")
        ax.set_ylabel(f"Eigenvalues per {axis.width:g} decade")
        ax.set_title(title, fontsize=7.5, color=MUTED)
    return ax


def known_others(spectrum: Spectrum, pairs: Sequence[Eigenpairs]) -> tuple[float, float] | None:
    """An interval certified to hold all eigenvalues but the spectrum's atoms, where these are just the ``pairs``."""
    known = [each.others for each in pairs if each.others is not None]
    return known[0] if known and sum(map(len, pairs)) == spectrum.num_atoms else None


def confidence(others: tuple[float, float] | None) -> str:
    """The probability of bounds at level ``1 - FAILURE`` that rely on ``others``, which may fail as well."""
    return f"{100 * (1 - (1 if others is None else 2) * FAILURE):g} %"


def describe(spectrum: Spectrum, axis: EigenvalueAxis) -> str:
    """What a density is and how it was smoothed, in one line."""
    if spectrum.exact:
        how = f"all {spectrum.n:,} eigenvalues"
    else:
        probes = f"{spectrum.num_probes} probe{'s' * (spectrum.num_probes > 1)}"
        how = f"{probes}, Gaussian of $\\sigma$ = {axis.bandwidth:.2g} decades"
    return f"{how}; {linear_part(axis)}"


def linear_part(axis: EigenvalueAxis) -> str:
    """Where the axis turns from linear to logarithmic."""
    return f"axis linear within ±{format_number(axis.threshold, digits=2)}"


def plot_layer_densities(analysis: SpectralAnalysis, *, ax: Axes | None = None) -> Axes:
    """Densities of the diagonal blocks of all layers on one eigenvalue axis, with their traces."""
    if not analysis.layers:
        raise InputError("the analysis has no layers; run it with layers to draw their densities")
    return plot_density_rows(analysis.layers, ax=ax)


def plot_density_rows(blocks: Mapping[str, BlockAnalysis], *, ax: Axes | None = None) -> Axes:
    """Densities above one another on one eigenvalue axis, with the traces at the right.

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
    ax = new_axes(WIDTH, 0.9 + row_height * len(blocks)) if ax is None else ax
    profiles = [axis.profile(block.spectrum) for block in blocks.values()]
    tallest = max(float(profile.counts.max(initial=1.0)) for profile in profiles)
    floor = _FLOOR
    with theme():
        axis.set_scale(ax)
        for row, (profile, block) in enumerate(zip(profiles, blocks.values(), strict=True)):
            height = np.log(np.maximum(profile.counts, floor) / floor) / np.log(tallest / floor)
            base = -row - 0.45
            ax.fill_between(profile.values, base, base + 0.85 * height, color=BLUE, alpha=0.3, linewidth=0)
            ax.plot(profile.values, base + 0.85 * height, color=BLUE, linewidth=0.8)
            ax.text(1.01, base + 0.1, _trace_text(block), transform=ax.get_yaxis_transform(), fontsize=7, color=INK)
        ax.set_yticks(-np.arange(len(blocks)) - 0.25, [literal(name) for name in blocks], fontsize=7.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.set_ylim(-len(blocks) + 0.5, 0.5)
        ax.set_xlabel(f"Eigenvalue $\\lambda$ {UNITS}")
        ax.set_title(
            f"height: log of eigenvalues per {axis.width:g} decade, {floor:g} to {tallest:,.0f}\n{linear_part(axis)}",
            fontsize=7.5,
            color=MUTED,
        )
        ax.text(1.01, 1.02, "trace", transform=ax.transAxes, fontsize=7.5, color=MUTED)
    return ax


def _shade_bulk(ax: Axes, axis: EigenvalueAxis, bulk: tuple[float, float]) -> None:
    """A band from foot to top behind everything, at least a bin wide, named at its head."""
    low, high = axis.decades(bulk)
    widen = max(axis.width - (high - low), 0.0) / 2
    low, middle, high = (float(x) for x in axis.eigenvalues([low - widen, (low + high) / 2, high + widen]))
    ax.axvspan(low, high, color=MUTED, alpha=0.14, linewidth=0, zorder=0)
    foot_to_top = ax.get_xaxis_transform()
    ax.text(middle, 0.985, "bulk", transform=foot_to_top, ha="center", va="top", fontsize=7.5, color=MUTED)


def _mark_edges(ax: Axes, pairs: Eigenpairs) -> None:
    """Triangles in the strip at the foot of the axes, horizontal bars for the errors."""
    errors = eigenvalue_errors(pairs)
    for converged in (True, False):
        chosen = pairs.converged == converged
        ax.errorbar(
            pairs.eigenvalues[chosen],
            np.full(chosen.sum(), 0.045),
            xerr=errors[chosen],
            transform=ax.get_xaxis_transform(),
            fmt="^",
            markersize=4,
            color=ORANGE,
            markerfacecolor=ORANGE if converged else "none",
            markeredgewidth=0.8,
            elinewidth=0.8,
        )


def _trace_text(block: BlockAnalysis) -> str:
    """The trace with its 95 % interval; three digits are enough in a figure when it is exact."""
    trace = block.trace
    return format_with_error(trace.value, trace_error(trace)) if trace.stderr else format_number(trace.value)


def _as_sequence(edges: Eigenpairs | Sequence[Eigenpairs] | None) -> Sequence[Eigenpairs]:
    if edges is None:
        return ()
    return (edges,) if isinstance(edges, Eigenpairs) else edges
