"""Figures of the loss on lines and planes show the loss, its model and their errors, and nothing that is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import three_layers

from pyhessian_spectra import LossSurface, loss_surface, plots
from pyhessian_spectra.errors import InputError

STEPS = np.linspace(-1, 1, 5)


@pytest.fixture(scope="module")
def surfaces() -> dict[int, LossSurface]:
    risk = three_layers()
    v = torch.randn(risk.n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    return {d: loss_surface(risk, v[:, :d], positions=STEPS, labels=["a$", "b"][:d]) for d in (1, 2)}


def test_a_line_is_the_loss_and_its_model_with_bands_of_their_errors(surfaces):
    line = surfaces[1]
    ax = plots.plot_loss_line(line)
    _, loss, model = ax.lines
    assert np.array_equal(loss.get_ydata(), line.loss)
    assert np.array_equal(model.get_ydata(), line.centre + line.model) and model.get_linestyle() == "--"
    for band, middle, error in zip(
        ax.collections, (line.loss, line.centre + line.model), (line.rise_stderr, line.model_stderr), strict=True
    ):
        corners = band.get_paths()[0].vertices
        assert corners[:, 1].max() == pytest.approx((middle + error).max())
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told[0].startswith("loss, ") and "±" in told[0] and told[1].startswith("model: slope ")
    assert ax.get_xlabel() == r"Step along a\$"


def test_what_is_not_finite_is_marked_and_scales_nothing(surfaces):
    line = surfaces[1]
    broken = replace(line, loss=np.where(np.arange(5) == 1, np.inf, line.loss))
    ax = plots.plot_loss_line(broken)
    crosses = ax.lines[-1]
    assert crosses.get_label() == "not finite" and list(crosses.get_xdata()) == [STEPS[1]]
    low, high = ax.get_ylim()
    known = broken.loss[np.isfinite(broken.loss)]
    assert low < known.min() and known.max() < high < known.max() + 0.1 * np.ptp(known)
    holed = replace(surfaces[2], loss=np.where(np.eye(5) > 0, np.nan, surfaces[2].loss))
    for draw in (plots.plot_loss_contour, plots.plot_loss_landscape):
        draw(holed).figure.canvas.draw()
    with pytest.raises(InputError, match="finite nowhere"):
        plots.plot_loss_line(replace(line, loss=np.full(5, np.nan)))


def test_contours_of_loss_and_model_have_the_same_heights_and_the_axes_of_their_directions(surfaces):
    plane = surfaces[2]
    ax = plots.plot_loss_contour(plane)
    filled, lines = ax.collections[:2]
    assert np.array_equal(filled.levels, lines.levels)
    assert filled.levels[0] == plane.loss.min() and filled.levels[-1] == plane.loss.max()
    assert (ax.get_xlabel(), ax.get_ylabel()) == (r"Step along a\$", "Step along b")
    # the first index of the loss is the step along the first direction, which is drawn across
    tilted = replace(plane, loss=plane.loss + 100 * np.arange(5)[:, None])
    inside = plots.plot_loss_contour(tilted).collections[0].get_paths()[0].vertices
    assert inside[:, 0].max() < 0


def test_the_landscape_is_drawn_in_three_dimensions_only(surfaces):
    ax = plots.plot_loss_landscape(surfaces[2])
    low, high = ax.get_zlim()
    assert low < surfaces[2].loss.min() and surfaces[2].loss.max() < high
    with pytest.raises(InputError, match="three dimensions"):
        plots.plot_loss_landscape(surfaces[2], ax=Figure().subplots())


def test_many_lines_name_the_first_and_the_last_only(surfaces):
    few = plots.plot_loss_lines({f"step {i}": surfaces[1] for i in range(3)})
    assert len(few.get_legend().get_texts()) == 3
    many = plots.plot_loss_lines({f"step {i}": surfaces[1] for i in range(9)})
    assert [text.get_text() for text in many.get_legend().get_texts()] == ["step 0", "step 8"]
    assert len(many.lines) == 9
    with pytest.raises(InputError, match="empty"):
        plots.plot_loss_lines({})


def test_a_surface_of_other_dimension_is_refused_with_what_draws_it(surfaces):
    with pytest.raises(InputError, match="has 2 directions, not 1; draw it by plot_loss_contour"):
        plots.plot_loss_line(surfaces[2])
    with pytest.raises(InputError, match="has 1 directions, not 2; draw it by plot_loss_line"):
        plots.plot_loss_contour(surfaces[1])
