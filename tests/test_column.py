"""Figures at the width of a text column: nothing runs off, nothing drawn earlier is cropped, and text is text."""

from __future__ import annotations

import functools

import matplotlib as mpl
import numpy as np
import pytest
import torch
from analyses import exact_analysis, slq_analysis, training_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from problems import CASES

from pyhessian_spectra import (
    GaussNewton,
    HessianOperator,
    Partition,
    carriers,
    class_structure,
    data_curve,
    follow_checkpoints,
    ggn_gram,
    layer_coupling,
    plots,
    similarity_matrix,
)
from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.eigenspaces import Localisation
from pyhessian_spectra.optimisers import SolveRecord, StepRecord
from pyhessian_spectra.spectra.spectrum import Spectrum

COLUMN = 3.3  # inches


@functools.cache
def slq():
    return slq_analysis(n=400, probes=3, steps=30)


def seeds():
    return Checkpoints.of(
        [
            exact_analysis(f"out/{run}/step-{step}.pt", n=60, layers=False, scale=1.0 + step, step=step)
            for run in ("learning-rate-0.1/seed-0", "learning-rate-0.1/seed-1", "adam")
            for step in (0, 10)
        ]
    )


def similarity():
    return similarity_matrix(slq())


def where():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 5).T
    names = ("conv1", "layer1.0.conv1", "layer2.0.conv1", "linear")
    return Localisation(names, np.arange(5.0), shares, np.zeros(5))


def coupled():
    risk = CASES["mlp"]()
    return layer_coupling(HessianOperator(risk), Partition.by_module(risk.layout))


def records():
    solves = [
        SolveRecord(name, "converged", 3, 3, 10.0 ** -np.arange(4.0), -np.arange(4.0))
        for name in ("features.0.weight", "features.3.weight", "classifier.weight", "classifier.bias")
    ]
    return [StepRecord(i, 2.0, 1.0, 0.5 * i, 1.0, 1.0, 1.0, (0.1,) * 4, tuple(solves), None) for i in (1, 2, 3)]


def profiles(ax):
    """In a figure of as wide a column as the Axes', if they are given."""
    of = {name: np.linspace(-1, size, size) for name, size in (("narrow", 20), ("wide", 90))}
    axes = None if ax is None else Figure(figsize=(COLUMN, 5.0), layout="constrained").subplots(2, 1)
    return plots.plot_profiles(of, axes=axes)[0]


DRAWN = {
    "density": lambda ax: plots.plot_density(slq().full.spectrum, edges=slq().full.largest, ax=ax),
    "density, exact": lambda ax: plots.plot_density(exact_analysis().full.spectrum, ax=ax),
    "density rows": lambda ax: plots.plot_layer_densities(slq(), ax=ax),
    "cdf": lambda ax: plots.plot_cdf(slq().full.spectrum, exact=exact_analysis(n=400).full.spectrum, ax=ax),
    "eigenvalues": lambda ax: plots.plot_eigenvalues(slq().full, ax=ax),
    "layer traces": lambda ax: plots.plot_layer_traces(slq(), ax=ax),
    "trajectory": lambda ax: plots.plot_trajectory(training_run(), ax=ax),
    "trajectory, by name": lambda ax: plots.plot_trajectory([slq(), exact_analysis("a-long-name-of-a-file.pt")], ax=ax),
    "runs": lambda ax: plots.plot_runs(seeds(), ax=ax),
    "tracks": lambda ax: plots.plot_tracks(follow_checkpoints(training_run()), ax=ax),
    "similarity": lambda ax: plots.plot_similarity(similarity(), ax=ax),
    "clusters": lambda ax: plots.plot_clusters(similarity(), ax=ax),
    "depth": lambda ax: plots.plot_depth(similarity(), ax=ax),
    "coupling": lambda ax: plots.plot_coupling(coupled(), ax=ax),
    "localisation": lambda ax: plots.plot_localisation(where(), ax=ax),
    "weyl": lambda ax: plots.plot_weyl(
        GaussNewton(exact_analysis(n=400).full, 30, residual=(-0.1, 0.2)), slq().full, ax=ax
    ),
    "classes": lambda ax: plots.plot_class_structure(class_structure(CASES["tied_weights"]()), ax=ax),
    "carriers": lambda ax: plots.plot_carriers(carriers(CASES["mlp"]()), ax=ax),
    "data curve": lambda ax: plots.plot_data_curve(
        data_curve(ggn_gram(CASES["mlp"]()), generator=torch.Generator().manual_seed(0)), ax=ax
    ),
    "profiles": profiles,
    "matrix": lambda ax: plots.plot_matrix(HessianOperator(CASES["mlp"]()).to_dense(), CASES["mlp"]().layout, ax=ax),
    "reduction": lambda ax: plots.plot_reduction(records(), ax=ax),
    "cg": lambda ax: plots.plot_cg(records(), ax=ax),
    "residuals": lambda ax: plots.plot_residuals(records()[0], ax=ax),
}


def runs_off(figure):
    """By how many inches the tight bounding box of all artists lies beyond the figure; and the texts that do."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox(canvas.get_renderer())
    return max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_runs_off_axes_of_a_column(name):
    ax = Figure(figsize=(COLUMN, 3.0), layout="constrained").subplots()
    assert runs_off(DRAWN[name](ax).figure) < 0.02


@pytest.mark.parametrize("name", ["density", "trajectory", "cdf", "profiles", "classes", "weyl", "residuals"])
def test_nothing_runs_off_a_figure_that_is_saved_at_the_width_of_a_column(name, tmp_path):
    ax = DRAWN[name](None)
    plots.save(ax, tmp_path / "figure.pdf", width=COLUMN)
    assert ax.figure.get_size_inches()[0] == COLUMN
    assert runs_off(ax.figure) < 0.02


def test_a_density_over_another_crops_neither():
    narrow, wide = (Spectrum.from_eigenvalues(scale * np.linspace(-1, 1, 200)) for scale in (0.1, 10.0))
    for first, second in ((narrow, wide), (wide, narrow)):
        ax = plots.plot_density(second, ax=plots.plot_density(first))
        low, high = ax.get_xlim()
        bottom, top = ax.get_ylim()
        assert low < -10 and high > 10
        for line in ax.lines:
            assert line.get_ydata().max() < top and bottom <= 0.5


@pytest.mark.parametrize("name", ["cdf", "classes"])
@pytest.mark.parametrize("way", ["axes", "saved"])
def test_a_remark_lies_over_the_legend_and_that_over_the_axes(name, way, tmp_path):
    ax = DRAWN[name](Figure(figsize=(COLUMN, 3.0), layout="constrained").subplots() if way == "axes" else None)
    if way == "saved":
        plots.save(ax, tmp_path / "figure.png", width=COLUMN)
    ax.figure.draw_without_rendering()
    remark, legend = ax._left_title.get_window_extent(), ax.get_legend().get_window_extent()
    assert ax.bbox.y1 <= legend.y0 and legend.y1 <= remark.y0 < legend.y1 + 20
    assert not ax.texts  # over the curves


def test_a_legend_keeps_its_marks_when_it_is_laid_out_again(tmp_path):
    ax = DRAWN["classes"](None)
    plots.save(ax, tmp_path / "figure.png", width=COLUMN)
    assert {line.get_marker() for line in ax.get_legend().findobj(Line2D)} >= {"o", "D", "s", "v"}


def scaled(scale):
    return exact_analysis(n=60, layers=False, scale=scale)


def solved(steps, *, first, predicted):
    solves = (SolveRecord("a", "converged", steps, steps, 10.0 ** -np.arange(steps + 1.0), -np.arange(steps + 1.0)),)
    return [StepRecord(first + i, 2.0, 1.0, predicted, 1.0, 1.0, 1.0, (0.1,), solves, None) for i in range(3)]


# Of a small thing and of a large one.
PAIRS = {
    "cdf": [lambda ax, scale=scale: plots.plot_cdf(scaled(scale).full.spectrum, ax=ax) for scale in (0.01, 100.0)],
    "eigenvalues": [lambda ax, scale=scale: plots.plot_eigenvalues(scaled(scale).full, ax=ax) for scale in (0.01, 100)],
    "trajectory": [lambda ax, scale=scale: plots.plot_trajectory([scaled(scale)] * 2, ax=ax) for scale in (0.01, 100)],
    "cg": [lambda ax, n=n: plots.plot_cg(solved(n, first=n, predicted=1.0), ax=ax) for n in (3, 30)],
    "residuals": [lambda ax, n=n: plots.plot_residuals(solved(n, first=1, predicted=1.0)[0], ax=ax) for n in (3, 30)],
    "reduction": [
        lambda ax, p=p: plots.plot_reduction(solved(3, first=1, predicted=p), ax=ax) for p in (1.0, -1.0, 0.4)
    ],
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_figure_over_another_crops_neither(name):
    for drawings in (PAIRS[name], PAIRS[name][::-1]):
        ax = Figure(layout="constrained").subplots()
        for draw in drawings:
            draw(ax)
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        for line in (line for line in ax.lines if line.get_transform() == ax.transData):
            x, y = np.asarray(line.get_xydata(), float).T
            seen = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
            assert seen[np.isfinite(y)].all()


def test_saved_text_is_text_and_the_formats_are_those_of_the_endings(tmp_path):
    ax = plots.plot_eigenvalues(slq().full)
    for ending in ("svg", "pdf", "png"):
        plots.save(ax, tmp_path / f"figure.{ending}")
    assert ">Rank from the edge</text>" in (tmp_path / "figure.svg").read_text()
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF") and b"/Type3" not in (
        tmp_path / "figure.pdf"
    ).read_bytes()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_style_of_ones_own_lies_over_that_of_the_package_and_ends_with_its_context():
    before = dict(mpl.rcParams)
    with plots.theme({"axes.labelsize": 5.0}):
        ax = plots.plot_eigenvalues(slq().full)
        assert ax.xaxis.label.get_fontsize() == 5.0
    assert plots.plot_eigenvalues(slq().full).xaxis.label.get_fontsize() != 5.0
    assert dict(mpl.rcParams) == before
