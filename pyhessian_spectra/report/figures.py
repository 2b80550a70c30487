"""The figures of a report: drawn once, saved as SVG, and embedded so that they follow the page's light or dark."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyhessian_spectra.analysis.bulk import BulkEdge
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.plots import (
    plot_cdf,
    plot_density,
    plot_density_rows,
    plot_eigenvalues,
    plot_layer_densities,
    plot_layer_traces,
    plot_trajectory,
    theme,
)
from pyhessian_spectra.plots.style import BLUE, GRID, INK, MUTED

# What an ink becomes on a dark page. The other colours are legible on both.
_DARK = {INK: "#e6e9ed", MUTED: "#a3acb6", GRID: "#363c45", BLUE: "#4da6e0"}


_NAMES = re.compile(
    r"(trajectory|densities|(\d{2,}-)?(density|cdf|eigenvalues|layer-densities|layer-traces))\.svg", re.ASCII
)


@dataclass(frozen=True)
class FigureFile:
    """A drawn figure: ``name`` is its file in ``figures/``, ``alt`` says what it shows to who cannot see it."""

    name: str
    svg: str
    alt: str

    @property
    def data_uri(self) -> str:
        """The figure as an address that holds its content, following the page's colour scheme."""
        return "data:image/svg+xml;base64," + base64.b64encode(_adaptive(self.svg).encode()).decode()


def overview_figures(analyses: Sequence[SpectralAnalysis], labels: Sequence[str]) -> dict[str, FigureFile]:
    """How the spectrum moved: for two checkpoints or more."""
    blocks = {label: analysis.full for label, analysis in zip(labels, analyses, strict=True)}
    return {
        "trajectory": _draw(
            plot_trajectory(analyses), "trajectory.svg", "Largest and smallest eigenvalues and trace at each checkpoint"
        ),
        "densities": _draw(
            plot_density_rows(blocks), "densities.svg", "Density of eigenvalues at each checkpoint, one row each"
        ),
    }


def checkpoint_figures(analysis: SpectralAnalysis, label: str, prefix: str, bulk: BulkEdge) -> dict[str, FigureFile]:
    """The figures of one checkpoint, by role; ``prefix`` starts their file names."""
    full = analysis.full
    edges = (full.smallest, full.largest)
    drawn = {
        "density": (
            plot_density(full.spectrum, edges=edges, bulk=bulk.bulk if bulk.separable else None),
            "Density of the eigenvalues on a symmetric-logarithmic axis",
        )
    }
    if not full.spectrum.exact:
        alt = "Fraction of eigenvalues below each value, with its bounds"
        drawn["cdf"] = (plot_cdf(full.spectrum, edges=edges), alt)
    if len(full.largest) + len(full.smallest):
        drawn["eigenvalues"] = (plot_eigenvalues(full), "Largest and smallest eigenvalues with errors")
    if analysis.layers:
        drawn["layer_densities"] = (plot_layer_densities(analysis), "Density of eigenvalues of each layer's block")
    if analysis.layers or full.group_traces:
        drawn["layer_traces"] = (plot_layer_traces(analysis), "Trace of each layer's block")
    return {
        role: _draw(ax, f"{prefix}{role.replace('_', '-')}.svg", f"{alt}, {label}") for role, (ax, alt) in drawn.items()
    }


def is_figure_name(name: str) -> bool:
    """Whether a report may have written a file of this name into ``figures/``."""
    return _NAMES.fullmatch(name) is not None


def _draw(ax: Axes, name: str, alt: str) -> FigureFile:
    buffer = io.StringIO()
    with theme():
        cast(Figure, ax.figure).savefig(buffer, format="svg", metadata={"Date": None, "Title": alt})
    return FigureFile(name, buffer.getvalue(), alt)


def _adaptive(svg: str) -> str:
    """The SVG with its inks as CSS variables that a dark page redefines (plain viewers read the saved file instead)."""
    names = {ink: f"--ink-{index}" for index, ink in enumerate(_DARK)}
    for ink, name in names.items():
        svg = svg.replace(ink, f"var({name})")
    light = ";".join(f"{names[ink]}:{ink}" for ink in _DARK)
    dark = ";".join(f"{names[ink]}:{color}" for ink, color in _DARK.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"{style}<defs>", 1)
