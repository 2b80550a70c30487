"""Saved analyses become files here: figures first, the page last, each whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from pyhessian_spectra import plots
from pyhessian_spectra.analysis.bulk import BulkEdge
from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.metrics import scaled_wasserstein
from pyhessian_spectra.analysis.result import GaussNewton, SpectralAnalysis
from pyhessian_spectra.analysis.similarity import SimilarityMatrix
from pyhessian_spectra.analysis.table import rows_of, to_csv
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.report.content import describe_checkpoint, describe_overview
from pyhessian_spectra.report.page import make_figures, render, write_texts
from pyhessian_spectra.report.training import describe_training, training_rows
from pyhessian_spectra.tracking import Track

# Readers who cannot see a figure read what it shows. Its role in the page also names its file.
_ALTS = {
    "trajectory": "Largest eigenvalues at each checkpoint",
    "densities": "Density of eigenvalues at each checkpoint, one row each",
    "density": "Density of the eigenvalues on a symmetric-logarithmic axis",
    "cdf": "Fraction of eigenvalues below each value, with its bounds",
    "eigenvalues": "Largest and smallest eigenvalues with errors",
    "layer_densities": "Density of eigenvalues of each layer's block",
    "layer_traces": "Trace of each layer's block",
    "tracks": "Largest eigenvalues through the checkpoints, each followed by its eigenvector",
    "similarity": "Distances between the spectra of the whole and of all layers, as a heatmap",
    "clusters": "The same distances in the order of clusters, with their dendrogram",
    "depth": "Distance of each layer's spectrum to that of the whole against depth",
    "coupling": "Norms of the blocks between layers, as a heatmap",
    "localisation": "Share of each of the largest eigenvectors in each layer, as a heatmap",
    "weyl": "Eigenvalues of the Gauss-Newton part by rank, and the band that holds those of the Hessian",
    "data_curve": "Largest eigenvalues of the Gauss-Newton part against the number of examples",
    "carriers": "Shares of single examples in the largest eigenvalue of the Gauss-Newton part",
    "classes": "Largest eigenvalues of the Gauss-Newton part, predicted by class means and measured",
}
# From so many layers on, clusters of them are drawn.
_CLUSTERED = 6
# A report may have written files of these names into ``figures/``.
_NAMES = re.compile(
    r"(trajectory|densities|tracks|training-[0-9]+|([0-9]{2,}-)?(density|cdf|eigenvalues|layer-(densities|traces)|similarity|depth|"
    r"clusters|coupling|localisation|weyl|data-curve|carriers|classes))\.svg"
)


def write_report(
    analyses: Sequence[SpectralAnalysis],
    out_dir: str | os.PathLike[str],
    *,
    reproduce: Sequence[str] = (),
    title: str | None = None,
    tracks: Mapping[str, Track] | None = None,
) -> Path:
    """Write ``report.html``, ``table.csv`` and ``figures/*.svg`` from finished analyses; no product is spent.

    Parameters
    ----------
    analyses : sequence of SpectralAnalysis
        One per checkpoint, in the order of training. To restyle a report, ``load_analyses`` reads them back from disk.
    out_dir : path
        Created if missing. In it, only files of these names and the figures of an earlier report are replaced.
    reproduce : sequence of str
        Commands, one a line, that lead to these analyses.
    title : str, optional
        The page's; by default the matrix, the model and the data.
    tracks : mapping of str to Track, optional
        What trackers recorded while these or other runs trained, by their names.

    Returns
    -------
    Path
        ``out_dir/report.html``: one file that needs no other and asks nothing of any network.

    Raises
    ------
    InputError
        ``analyses`` is empty or not a sequence, ``reproduce`` is one string, or ``out_dir`` cannot be written.
    """
    if isinstance(analyses, SpectralAnalysis) or not analyses:
        raise InputError("analyses must be a sequence of at least one SpectralAnalysis; put a single one in a list")
    if isinstance(reproduce, str):
        raise InputError("reproduce must be a sequence of commands, not one string; put a single one in a list")
    found = Checkpoints.of(analyses)
    several = len(analyses) > 1
    overview = {}
    if several:
        rows = {label: analysis.full for label, analysis in zip(found.labels, analyses, strict=True)}
        with plots.measured_in(analyses[0].problem.get("units")):
            moved = plots.plot_trajectory(analyses) if len(found.runs) == 1 else plots.plot_runs(found)
            axes = {"trajectory": moved, "densities": plots.plot_density_rows(rows)}
            if len(found.runs) == len(found.trajectories) == 1:
                axes["tracks"] = plots.plot_tracks(next(iter(found.trajectories.values())))
        overview = make_figures(axes, _ALTS)
    texts = {figure["path"]: figure["svg"] for figure in overview.values()}
    sections = []
    each = zip(found.analyses, found.labels, found.bulks, found.similarities, strict=True)
    for index, (analysis, label, bulk, similar) in enumerate(each, start=1):
        with plots.measured_in(analysis.problem.get("units")):
            axes = _draw(analysis, bulk) | _draw_structure(analysis, similar)
        figures = make_figures(axes, _ALTS, prefix=f"{index:02d}-" if several else "", suffix=f", {label}")
        texts |= {figure["path"]: figure["svg"] for figure in figures.values()}
        sections.append(
            describe_checkpoint(analysis, label, f"checkpoint-{index}", bulk, similar) | {"figures": figures}
        )
    tracked = describe_training(tracks) if tracks else None
    texts |= {figure["path"]: figure["svg"] for figure in (tracked or {}).get("figures", [])}
    texts["table.csv"] = to_csv(rows_of(found) + training_rows(tracks or {}))
    told = describe_overview(found, sections)
    texts["report.html"] = render(
        "report.html",
        title=told["title"] if title is None else title,
        conclusion=told["conclusion"],
        overview=told,
        overview_figures=overview,
        sections=sections,
        tracked=tracked,
        reproduce=[str(line) for line in reproduce],
    )
    out_dir = Path(out_dir)
    write_texts(out_dir, texts, figure_names=_NAMES)
    return out_dir / "report.html"


def _draw(analysis: SpectralAnalysis, bulk: BulkEdge) -> dict[str, Axes]:
    """Draw the figures of one checkpoint, by role."""
    full = analysis.full
    edges = (full.smallest, full.largest)
    axes = {"density": plots.plot_density(full.spectrum, edges=edges, bulk=bulk.bulk if bulk.separable else None)}
    if not full.spectrum.exact:
        axes["cdf"] = plots.plot_cdf(full.spectrum, edges=edges)
    if any(map(len, edges)):
        axes["eigenvalues"] = plots.plot_eigenvalues(full)
    if analysis.layers:
        axes["layer_densities"] = plots.plot_layer_densities(analysis)
    if analysis.layers or full.group_traces:
        axes["layer_traces"] = plots.plot_layer_traces(analysis)
    return axes | ({} if analysis.gauss_newton is None else _draw_part(analysis.gauss_newton, analysis))


def _draw_structure(analysis: SpectralAnalysis, similar: Mapping[str, SimilarityMatrix]) -> dict[str, Axes]:
    """Draw the figures of layers beside one another, by role."""
    axes, structure = {}, analysis.structure
    if similar:
        shown = similar[scaled_wasserstein.__name__]
        axes["similarity"] = plots.plot_similarity(shown)
        if len(analysis.layers) > 1:
            axes["depth"] = plots.plot_depth(shown)
        if len(analysis.layers) >= _CLUSTERED:
            axes["clusters"] = plots.plot_clusters(shown)
    if structure is not None and structure.coupling is not None:
        axes["coupling"] = plots.plot_coupling(structure.coupling)
    if structure is not None and structure.localisation is not None:
        axes["localisation"] = plots.plot_localisation(structure.localisation)
    return axes


def _draw_part(part: GaussNewton, analysis: SpectralAnalysis) -> dict[str, Axes]:
    """Draw the figures of the Gauss-Newton part, by role."""
    axes = {}
    if part.residual is not None:
        axes["weyl"] = plots.plot_weyl(part, analysis.full)
    if part.curve is not None:
        axes["data_curve"] = plots.plot_data_curve(part.curve)
    if part.carriers is not None:
        pictures = None if part.thumbnails is None else dict(zip(part.carriers.examples, part.thumbnails, strict=False))
        axes["carriers"] = plots.plot_carriers(part.carriers, pictures)
    if part.classes is not None:
        axes["classes"] = plots.plot_class_structure(part.classes)
    return axes
