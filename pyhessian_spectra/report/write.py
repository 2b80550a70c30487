"""From saved analyses to files: figures first, the page last, each whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from pyhessian_spectra._version import __version__
from pyhessian_spectra.analysis.bulk import BulkEdge, split_bulk
from pyhessian_spectra.analysis.fits import BulkFit, fit_marchenko_pastur, fit_semicircle
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.report.content import checkpoint_labels, describe_checkpoint, describe_overview
from pyhessian_spectra.report.figures import FigureFile, checkpoint_figures, is_figure_name, overview_figures


def write_report(
    analyses: Sequence[SpectralAnalysis], out_dir: str | os.PathLike[str], *, reproduce: Sequence[str] = ()
) -> Path:
    """Write ``report.html`` and ``figures/*.svg`` from finished analyses; no product is spent.

    Parameters
    ----------
    analyses : sequence of SpectralAnalysis
        One per checkpoint, in the order of training; ``load_analyses`` reads them back from disk.
    out_dir : path
        Created if missing. Files of these names in it are replaced, figures of an earlier report removed, others
        left alone.
    reproduce : sequence of str
        Commands, one a line, that lead to these analyses.

    Returns
    -------
    Path
        ``out_dir/report.html``: one file that needs no other and asks nothing of any network.

    Raises
    ------
    InputError
        ``analyses`` is empty or not a sequence, ``reproduce`` is one string, or ``out_dir`` cannot be written.

    Notes
    -----
    To restyle a report: ``write_report(load_analyses(json_path=..., npz_path=...), out_dir)``.
    """
    if isinstance(analyses, SpectralAnalysis) or not analyses:
        raise InputError("analyses must be a sequence of at least one SpectralAnalysis; put a single one in a list")
    if isinstance(reproduce, str):
        raise InputError("reproduce must be a sequence of commands, not one string; put a single one in a list")
    labels = checkpoint_labels(analyses)
    several = len(analyses) > 1
    overview = overview_figures(analyses, labels) if several else {}
    sections = []
    for index, (analysis, label) in enumerate(zip(analyses, labels, strict=True), start=1):
        bulks = _bulks(analysis)
        figures = checkpoint_figures(analysis, label, f"{index:02d}-" if several else "", bulks[None])
        content = describe_checkpoint(analysis, label, f"checkpoint-{index}", bulks, _fits(analysis.full))
        sections.append({**content, "figures": figures})
    page = _render(
        overview=describe_overview(analyses, sections),
        overview_figures=overview,
        sections=sections,
        reproduce=[str(line) for line in reproduce],
        version=__version__,
    )
    out_dir = Path(out_dir)
    try:
        (out_dir / "figures").mkdir(parents=True, exist_ok=True)
        current = _all_figures(overview, sections)
        for figure in current:
            _write(out_dir / "figures" / figure.name, figure.svg)
        _write(out_dir / "report.html", page)
        _remove_stale(out_dir / "figures", {figure.name for figure in current})
    except OSError as error:
        raise InputError(f"the report cannot be written to {out_dir}: {error}; choose another directory") from None
    return out_dir / "report.html"


def _bulks(analysis: SpectralAnalysis) -> dict[str | None, BulkEdge]:
    """Bulk and edges of the whole network, under None, and of each layer."""
    dtype = analysis.problem.get("dtype")
    bulks: dict[str | None, BulkEdge] = {None: split_bulk(analysis.full, dtype=dtype)}
    bulks.update((name, split_bulk(block, dtype=dtype)) for name, block in analysis.layers.items())
    return bulks


def _fits(block: BlockAnalysis) -> dict[str, BulkFit | str]:
    """Laws of random matrices fitted to the bulk, or the reason why one cannot be."""
    fits: dict[str, BulkFit | str] = {}
    for name, fit in (("Marchenko-Pastur", fit_marchenko_pastur), ("Semicircle", fit_semicircle)):
        try:
            fits[name] = fit(block)
        except InputError as error:
            fits[name] = str(error)
    return fits


def _remove_stale(directory: Path, current: set[str]) -> None:
    """Remove figures that an earlier report with more checkpoints or layers left, and nothing else."""
    for path in directory.iterdir():
        if is_figure_name(path.name) and path.name not in current and path.is_file():
            path.unlink()


def _all_figures(overview: dict[str, FigureFile], sections: list[dict]) -> list[FigureFile]:
    return [*overview.values(), *(figure for section in sections for figure in section["figures"].values())]


def _render(**content: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyhessian_spectra.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = files("pyhessian_spectra.report").joinpath("report.css").read_text(encoding="utf-8")
    # The page may apply this one style sheet and show images it holds itself: nothing else, whatever a name contains.
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.get_template("report.html").render(css=Markup(css), policy=policy, **content)


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda handle: handle.write(text.encode()))
