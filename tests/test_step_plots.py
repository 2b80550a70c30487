"""What an optimiser recorded of its steps, drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers import HessianFree, Newton, SolveRecord, StepRecord
from pyhessian_spectra.plots import plot_cg, plot_reduction, plot_residuals


def solve(label="a", iterations=3, status="converged"):
    residuals = 10.0 ** -np.arange(iterations + 1.0)
    return SolveRecord(label, status, iterations, iterations, residuals, -np.arange(iterations + 1.0))


def step(number, *, ratio=1.0, predicted=0.5, rejected=None, solves=None):
    solves = (solve(),) if solves is None else tuple(solves)
    after = math.inf if rejected else 2.0 - ratio * predicted
    return StepRecord(number, 2.0, after, predicted, 1.0, 1.0, 1.0, (0.1,) * len(solves), solves, rejected)


def marked(ax):
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def test_the_ratio_of_each_step_is_drawn_at_its_step():
    ax = plot_reduction([step(4, ratio=0.5), step(5, ratio=1.25), step(6, ratio=-0.25)])
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xydata(), [[4, 0.5], [5, 1.25], [6, -0.25]])
    assert not marked(ax) and ax.get_legend() is None
    assert ax.get_ylim()[0] < -0.25 and ax.get_ylim()[1] > 1.25


def test_what_has_no_ratio_or_lies_far_out_is_marked_at_the_edge_and_named():
    bent = [solve(status="negative curvature")]
    records = [
        step(1, ratio=50.0),
        step(2, ratio=-50.0),
        step(3, rejected="the loss after it is NaN or infinite"),
        step(4, predicted=math.nan),
        step(5, ratio=1.0, predicted=-0.1),
        step(6, ratio=0.5, solves=bent),
    ]
    ax = plot_reduction(records)
    seen = {label: line.get_xydata().tolist() for label, line in marked(ax).items()}
    assert seen == {
        "negative curvature": [[6.0, 0.5]],
        "above 3": [[1.0, 3.0]],
        "below −1": [[2.0, -1.0]],
        "taken back": [[3.0, -1.0]],
        "no prediction": [[4.0, -1.0], [5.0, -1.0]],
    }
    low, high = ax.get_ylim()
    assert low < -1 and high > 3


def test_every_step_is_marked_once():
    records = [step(i, ratio=r) for i, r in enumerate((0.2, 7.0, 1.1, -9.0), start=1)]
    records += [step(5, rejected="why"), step(6, predicted=math.nan)]
    ax = plot_reduction(records)
    drawn = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert sorted(x for line in drawn for x in line.get_xdata()) == [1, 2, 3, 4, 5, 6]


def test_a_run_of_rejected_steps_alone_is_drawn():
    plot_reduction([step(1, rejected="why")]).figure.canvas.draw()


def test_iterations_are_drawn_a_line_a_block_with_negative_curvature_in_its_colour():
    records = [
        step(i, solves=[solve("first", 3 + i), solve("$second$", 9, "negative curvature" if i == 2 else "converged")])
        for i in (1, 2, 3)
    ]
    ax = plot_cg(records)
    first, second = ax.lines
    np.testing.assert_array_equal(first.get_xydata(), [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(second.get_ydata(), [9, 9, 9])
    (circles,) = ax.collections
    np.testing.assert_array_equal(circles.get_offsets(), [[2, 9]])
    np.testing.assert_allclose(circles.get_edgecolor()[0, :3], second.get_color())
    assert list(marked(ax)) == ["first", r"\$second\$", "negative curvature"]
    assert ax.get_ylim()[0] == 0


def test_of_many_blocks_the_median_and_the_range_are_drawn():
    records = [step(i, solves=[solve(f"b{k}", k + i) for k in range(9)]) for i in (1, 2)]
    ax = plot_cg(records)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), [5, 6])
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1, 10)
    assert list(marked(ax)) == ["9 blocks", "median"]


def test_residuals_are_drawn_by_iteration_and_end_hollow_at_negative_curvature():
    ax = plot_residuals(step(7, solves=[solve("a", 4), solve("b", 2, "negative curvature")]))
    curves, ends = ax.lines[::2], ax.lines[1::2]
    np.testing.assert_allclose(curves[0].get_ydata(), [1, 0.1, 0.01, 1e-3, 1e-4])
    assert [len(curve.get_ydata()) for curve in curves] == [5, 3]
    assert [end.get_markerfacecolor() == "white" for end in ends] == [False, True]
    assert "step 7" in ax.get_xlabel() and ax.get_yscale() == "log"


def test_the_records_of_a_run_are_drawn_on_the_axes_given():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([w], lr=1.0, cg_rtol=1e-8)
    for _ in range(2):
        optimizer.step(lambda: ((w**2 * torch.tensor([1.0, 3.0])).mean(), w))
    ax, other, last = Figure().subplots(1, 3)
    assert plot_reduction(optimizer.records[:1], ax=ax) is ax and plot_cg(optimizer.records, ax=other) is other
    assert plot_residuals(optimizer.records[0], ax=last) is last
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    assert dots.get_ydata() == pytest.approx([1.0])  # a quadratic loss falls as its model says
    assert other.lines[0].get_ydata()[0] == 2  # as many as there are curvatures
    ax.figure.canvas.draw()


def test_what_cannot_be_drawn_is_refused_in_a_sentence():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    newton = Newton([w])
    newton.step(lambda: (w**2).sum())
    for refused, words in (
        (lambda: plot_reduction([]), "no records"),
        (lambda: plot_cg([]), "no records"),
        (lambda: plot_cg(newton.records), "decomposed"),
        (lambda: plot_residuals(newton.records[0]), "decomposed"),
        (lambda: plot_cg([step(1), step(2, solves=[solve("other")])]), "step 2"),
    ):
        with pytest.raises(InputError, match=words):
            refused()
