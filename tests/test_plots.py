"""Figures show what they claim to: positions, heights, marks and errors are read back from the artists."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import matplotlib as mpl
import numpy as np
import pytest
from analyses import (
    exact_analysis,
    lanczos_quadrature,
    network_eigenvalues,
    pairs,
    training_run,
)
from matplotlib.figure import Figure
from matplotlib.text import Text

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_with_error
from pyhessian_spectra.plots import (
    EigenvalueAxis,
    plot_cdf,
    plot_density,
    plot_density_rows,
    plot_eigenvalues,
    plot_layer_densities,
    plot_layer_traces,
    plot_trajectory,
)
from pyhessian_spectra.spectra.spectrum import Spectrum


@pytest.fixture(scope="module")
def exact():
    return exact_analysis()


def sampled(eigenvalues):
    """The same eigenvalues as a spectrum that has to be smoothed."""
    return dataclasses.replace(Spectrum.from_eigenvalues(eigenvalues), exact=False, num_atoms=0)


def density_line(ax):
    return ax.lines[0].get_xdata(), ax.lines[0].get_ydata()


def test_axis_positions_are_inverted_exactly():
    axis = EigenvalueAxis.fit([Spectrum.from_eigenvalues([-3.0, 1e-4, 2e-4, 100.0])])
    values = np.array([-3.0, -1e-5, 0.0, 1e-4, 100.0])
    np.testing.assert_allclose(axis.eigenvalues(axis.decades(values)), values, rtol=1e-12, atol=1e-18)


def test_a_unit_of_the_axis_is_a_decade_beyond_the_threshold():
    axis = EigenvalueAxis(1e-4, -1.0, 6.0, 0.1)
    np.testing.assert_allclose(np.diff(axis.decades([1.0, 10.0, 100.0])), 1.0, rtol=1e-7)


@pytest.mark.parametrize("width", [0.05, 1e-4, 1e-5])
def test_the_bulk_spans_many_bins_whatever_its_width_beside_outliers_at_100(width):
    values = network_eigenvalues(np.random.default_rng(0), 2000, width=width)
    axis = EigenvalueAxis.fit([Spectrum.from_eigenvalues(values)])
    spread = axis.decades(width) - axis.decades(-width)
    assert spread > 6 * axis.width
    assert axis.low <= axis.decades(values[0]) and axis.decades(values[-1]) <= axis.high


def test_numerical_zeros_do_not_set_the_threshold():
    values = np.concatenate([np.full(900, 1e-18), np.linspace(0.5, 1.5, 100)])
    assert 0.5 <= EigenvalueAxis.fit([Spectrum.from_eigenvalues(values)]).threshold <= 1.5


@pytest.mark.parametrize("values", [[0.0, 0.0], [2.0], [-1.0, -1.0], [5.0, 5.1, 5.2], [1e-30, 1e30]])
def test_degenerate_spectra_are_drawn(values):
    for spectrum in (Spectrum.from_eigenvalues(values), sampled(values)):
        ax = plot_density(spectrum)
        ax.figure.canvas.draw()
        low, high = ax.get_xlim()
        assert low < min(values) and max(values) < high


def test_an_isolated_eigenvalue_has_height_one_in_histogram_and_estimate():
    values = np.concatenate([np.linspace(-1e-3, 1e-3, 500), [30.0]])
    quadrature = lanczos_quadrature(np.random.default_rng(0), values[:-1], probes=2, steps=20)
    rows = list(zip(quadrature.nodes, quadrature.weights, strict=True))
    estimate = Spectrum.from_quadrature(values[-1:], rows, 501, dtype="float64")
    top = pairs(values[-1:], relative=1e-9, others=(-1.1e-3, 1.1e-3))
    for spectrum, edges in ((Spectrum.from_eigenvalues(values), []), (estimate, [top])):
        x, y = density_line(plot_density(spectrum, edges=edges))
        assert y[x > 3].max() == pytest.approx(1.0)


def test_what_is_not_resolved_is_one_block_and_no_peak_is_a_node():
    # nine in ten eigenvalues are zero: quadratures put them on one or two nodes, which are no place to draw a peak at
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(3600), rng.normal(0, 1e-2, 390), np.linspace(1, 10, 10)])
    spectrum = lanczos_quadrature(rng, values, probes=2, steps=40)
    profile = EigenvalueAxis.fit([spectrum]).profile(spectrum)
    block = profile.counts >= profile.counts.max() / 2
    left, right = profile.values[block].min(), profile.values[block].max()
    heavy = spectrum.nodes[spectrum.weights > 0.02]
    assert left < heavy.min() and heavy.max() < right
    assert np.unique(profile.counts[(profile.values > left) & (profile.values < right)]).size <= 1
    falls = np.diff(profile.counts[profile.values <= -right]) < -1e-9  # from the left the curve only rises to it
    assert not falls.any()


def test_the_density_integrates_to_the_number_of_eigenvalues(slq):
    axis = EigenvalueAxis.fit([slq.full.spectrum])
    profile = axis.profile(slq.full.spectrum)
    total = np.trapezoid(profile.counts, axis.decades(profile.values)) / axis.width
    assert total == pytest.approx(slq.full.n, rel=1e-3)


def test_exact_histogram_counts_every_eigenvalue(exact):
    profile = EigenvalueAxis.fit([exact.full.spectrum]).profile(exact.full.spectrum)
    counts = profile.counts[::2]
    assert counts.sum() == pytest.approx(exact.full.n)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)


def test_the_title_says_what_a_bar_means(slq, exact):
    title = plot_density(slq.full.spectrum).get_title(loc="left")
    assert "how many eigenvalues lie in them" in title and "99 % confidence" in title
    assert "all 2,000 eigenvalues" in plot_density(exact.full.spectrum).get_title(loc="left")


def marks(ax):
    """Filled and hollow marks: the eigenvalues of each, and their horizontal or vertical bars."""
    found = {"filled": [], "hollow": []}
    for container in ax.containers:
        line = container.lines[0]
        kind = "hollow" if line.get_markerfacecolor() == "none" else "filled"
        found[kind].append((line.get_xdata(), line.get_ydata(), container.lines[2][0].get_segments()))
    return found


def test_edge_marks_are_hollow_where_not_converged_and_bars_are_errors(slq):
    largest = slq.full.largest
    found = marks(plot_density(slq.full.spectrum, edges=largest))
    (hollow, _, bars), = found["hollow"]  # fmt: skip
    np.testing.assert_array_equal(hollow, largest.eigenvalues[~largest.converged])
    halves = [(segment[1, 0] - segment[0, 0]) / 2 for segment in bars]
    np.testing.assert_allclose(halves, largest.reach[~largest.converged])
    np.testing.assert_array_equal(found["filled"][0][0], largest.eigenvalues[largest.converged])


def test_eigenvalues_are_ranked_from_both_edges(slq):
    found = marks(plot_eigenvalues(slq.full))
    top = found["filled"][0]
    assert top[0][0] == 1 and top[1][0] == slq.full.largest.eigenvalues[-1]
    bottom = found["filled"][1]
    assert bottom[0][0] == 1 and bottom[1][0] == slq.full.smallest.eigenvalues[0]
    assert sum(len(x) for x, _, _ in found["hollow"]) == slq.full.unconverged


def test_layer_rows_are_named_and_state_their_traces(slq):
    ax = plot_layer_densities(slq)
    assert [text.get_text() for text in ax.get_yticklabels()] == list(slq.layers)
    texts = " ".join(text.get_text() for text in ax.texts)
    assert all(format_with_error(block.trace.value, block.trace.reach) in texts for block in slq.layers.values())


def test_layer_trace_bars_have_the_values_and_their_95_percent_intervals(slq):
    ax = plot_layer_traces(slq)
    values = [block.trace.value for block in slq.layers.values()]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], values)
    bars = ax.containers[-1].errorbar.lines[2][0].get_segments()
    halves = [(segment[1, 0] - segment[0, 0]) / 2 for segment in bars]
    intervals = [block.trace.interval(0.95) for block in slq.layers.values()]
    np.testing.assert_allclose(halves, [(high - low) / 2 for low, high in intervals])


def test_an_error_is_the_farther_end_of_the_interval_and_else_the_residual():
    found = pairs(np.array([1.0, 2.0]), relative=0.01)
    skewed = dataclasses.replace(found, lower=np.array([0.5, 1.9]), upper=np.array([1.1, 2.3]))
    np.testing.assert_allclose(skewed.reach, [0.5, 0.3])
    without = dataclasses.replace(found, lower=None, upper=None)
    np.testing.assert_array_equal(without.reach, found.residuals)


def test_the_bulk_is_shaded_from_end_to_end_and_never_invisible(slq):
    for bulk in ((-0.1, 0.2), (0.0, 0.0)):
        axis = EigenvalueAxis.fit([slq.full.spectrum])
        ax = plot_density(slq.full.spectrum, axis=axis, bulk=bulk)
        (span,) = ax.patches
        left, right = span.get_x(), span.get_x() + span.get_width()
        if bulk[0] < bulk[1]:
            assert (left, right) == pytest.approx(bulk)
        assert axis.decades(right) - axis.decades(left) >= axis.width * (1 - 1e-9)
        assert "bulk" in [text.get_text() for text in ax.texts]


def labelled(ax, start):
    handles, labels = ax.get_legend_handles_labels()
    return next(handle for handle, label in zip(handles, labels, strict=True) if label.startswith(start))


def test_trajectory_is_drawn_against_the_step():
    run = training_run((0, 10, 1000))
    ax = plot_trajectory(run)
    assert ax.get_xlabel() == "Optimisation step"
    trace = labelled(ax, "trace").lines[0]
    np.testing.assert_array_equal(trace.get_xdata(), [0, 10, 1000])
    np.testing.assert_allclose(trace.get_ydata(), [analysis.full.trace.value for analysis in run])
    top = labelled(ax, r"$\lambda_1$").get_offsets()
    np.testing.assert_allclose(top[:, 1], [analysis.full.largest.eigenvalues[-1] for analysis in run])


def test_trajectory_without_steps_is_drawn_by_checkpoint_name():
    ax = plot_trajectory([exact_analysis("a/first.pt"), exact_analysis("a/second.pt")])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["first.pt", "second.pt"]


def test_trajectory_is_hollow_where_not_converged():
    run = training_run((1, 2))
    full = dataclasses.replace(run[1].full, largest=pairs(run[1].full.largest.eigenvalues, relative=0.1, unconverged=8))
    ax = plot_trajectory([run[0], dataclasses.replace(run[1], full=full)])
    faces = labelled(ax, r"$\lambda_1$").get_facecolors()
    assert faces[0, 3] == 1 and faces[1, 3] == 0


def test_cdf_states_its_distance_from_the_exact_one():
    exact = Spectrum.from_eigenvalues([0.0, 1.0, 2.0, 3.0])
    assert "0.25" in plot_cdf(Spectrum.from_eigenvalues([0.0, 1.0, 3.0, 3.0]), exact=exact).get_title(loc="left")


def test_the_band_of_a_cdf_is_its_bounds_and_no_estimate_is_drawn_where_they_are_wide(slq):
    spectrum = slq.full.spectrum
    ax = plot_cdf(spectrum)
    (band,) = ax.collections
    axis = EigenvalueAxis.fit([spectrum])
    x, y = band.get_paths()[0].vertices.T
    for at in axis.eigenvalues(np.linspace(axis.low, axis.high, 40)[1:-1] + 1e-5):
        lower, upper = spectrum.cdf_bounds(at, level=0.99)
        crossed = (x[:-1] < at) & (x[1:] > at) | (x[:-1] > at) & (x[1:] < at)
        drawn = np.sort(y[:-1][crossed])
        assert drawn[0] <= lower + 1e-12 and upper <= drawn[-1] + 1e-12
        near = axis.eigenvalues(axis.decades(at) + np.array([-0.02, 0.02]))  # two points of the drawing
        wider = spectrum.cdf_bounds(near, level=0.99)
        assert wider[0][0] <= drawn[0] + 1e-12 and drawn[-1] <= wider[1][1] + 1e-12
    at, estimate = ax.lines[0].get_data()
    wide = np.subtract(*spectrum.cdf_bounds(at, level=0.99)[::-1]) > 0.11
    assert wide.any() and np.isnan(estimate[wide]).all() and not np.isnan(estimate).all()


def test_an_exact_cdf_has_no_band(exact):
    assert not plot_cdf(exact.full.spectrum).collections


def test_dollars_in_names_are_drawn_literally():
    analysis = dataclasses.replace(exact_analysis("a$_$.pt"), layers={r"$\nonsense$": exact_analysis().full})
    for ax in (plot_layer_densities(analysis), plot_layer_traces(analysis), plot_trajectory([analysis])):
        ax.figure.canvas.draw()


def test_everything_draws_on_given_axes_and_leaves_rcparams_and_pyplot_alone(slq, exact):
    before = dict(mpl.rcParams)
    figure = Figure()
    axes = figure.subplots(4, 2).ravel()
    drawn = [
        plot_density(slq.full.spectrum, ax=axes[0], edges=(slq.full.largest, slq.full.smallest)),
        plot_density(exact.full.spectrum, ax=axes[1]),
        plot_layer_densities(slq, ax=axes[2]),
        plot_density_rows({"a": slq.full, "b": exact.full}, ax=axes[3]),
        plot_eigenvalues(slq.full, ax=axes[4]),
        plot_layer_traces(slq, ax=axes[5]),
        plot_trajectory([slq, exact], ax=axes[6]),
        plot_cdf(slq.full.spectrum, ax=axes[7]),
    ]
    figure.canvas.draw()
    assert all(one is other for one, other in zip(drawn, axes, strict=True))
    assert dict(mpl.rcParams) == before
    plot_density(exact.full.spectrum)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_two_spectra_share_one_axis():
    a, b = Spectrum.from_eigenvalues([0.0, 1.0, 2.0]), Spectrum.from_eigenvalues([0.0, 50.0, 1e4])
    axis = EigenvalueAxis.fit([a, b])
    ax = plot_density(a, axis=axis, label="a")
    limits = ax.get_xlim()
    plot_density(b, ax=ax, axis=axis, label="b")
    assert ax.get_xlim() == limits and limits[1] > 1e4


@pytest.mark.parametrize("decades", [-8, -3, -1, 0, 1, 4])
@pytest.mark.parametrize("ends", [(-0.4, 0.8), (0.0, 1.0), (-1e-3, 1.0), (-1.0, -0.1), (3.0, 40.0), (5.0, 5.2)])
def test_tick_labels_are_several_and_do_not_overlap(ends, decades):
    ax = plot_density(Spectrum.from_eigenvalues(10.0**decades * np.linspace(*ends, 50)))
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    labels = [label for label in ax.get_xticklabels() if low <= label.get_position()[0] <= high and label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) >= 3
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_no_text_of_a_figure_lies_over_another_whatever_names_are(slq, exact):
    names = ["encoder." * 9 + "weight", "W" * 40, "$i$"]
    blocks = dict.fromkeys(names, slq.full)
    analysis = dataclasses.replace(slq, layers=blocks, problem={**slq.problem, "checkpoint": "W" * 80})
    edges = (slq.full.smallest, slq.full.largest)
    for ax in (
        plot_density(slq.full.spectrum, edges=edges, bulk=(-1e-3, 1e-3)),
        plot_density(exact.full.spectrum),
        plot_cdf(slq.full.spectrum, edges=edges),
        plot_layer_densities(analysis),
        plot_layer_traces(analysis),
        plot_eigenvalues(slq.full),
        plot_trajectory([analysis, slq]),
    ):
        ax.figure.draw_without_rendering()
        (left, right), (bottom, top) = (sorted(limits) for limits in (ax.get_xlim(), ax.get_ylim()))
        ticks = [(label, left <= label.get_position()[0] <= right) for label in ax.get_xticklabels()]
        ticks += [(label, bottom <= label.get_position()[1] <= top) for label in ax.get_yticklabels()]
        texts = [label for label, seen in ticks if seen and ax.bbox.padded(60).contains(*label.get_window_extent().p0)]
        texts += [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax._left_title, *(ax.get_legend() or ax).findobj(Text)]
        boxes = {
            id(text): text.get_window_extent() for text in texts if text.get_text() and not text.get_rotation() % 90
        }
        for (_, one), (_, other) in itertools.combinations(boxes.items(), 2):
            wide = min(one.x1, other.x1) - max(one.x0, other.x0)
            high = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert wide <= 1 or high <= 1
        for text in (*ax.texts, ax.xaxis.label, ax._left_title):
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= ax.figure.bbox.width + 1


def test_nothing_to_draw_is_said_in_a_sentence():
    analysis = exact_analysis(layers=False)
    for draw in (plot_layer_densities, plot_layer_traces):
        with pytest.raises(InputError, match="no layers"):
            draw(analysis)
    with pytest.raises(InputError, match="analyses is empty"):
        plot_trajectory([])
    with pytest.raises(InputError, match="blocks is empty"):
        plot_density_rows({})
    none = analysis.full.largest.take(slice(0, 0))
    with pytest.raises(InputError, match="no eigenpairs"):
        plot_eigenvalues(dataclasses.replace(analysis.full, largest=none, smallest=none))
