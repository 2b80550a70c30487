"""The page and figures of a comparison: each figure is drawn, names are escaped, many checkpoints stay readable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from analyses import exact_analysis, training_run

from pyhessian_spectra import compare_checkpoints, correlate, plots
from pyhessian_spectra.analysis.table import compared_rows
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.report import write_comparison
from pyhessian_spectra.report.comparison import conclude
from tests.test_report import HOSTILE, Page


@pytest.fixture(scope="module")
def runs():
    return [
        exact_analysis(f"out/seed-{s}/step-{t}.pt", n=200, scale=(1 + s / 9) * (1 + t), step=t, test_error=1 / (1 + t))
        for s in range(5)
        for t in (0, 1, 5)
    ]


@pytest.fixture(scope="module")
def found(runs):
    return compare_checkpoints(runs)


def test_the_page_has_its_figures_table_failures_and_correlations(found, tmp_path):
    rows = compared_rows(found)
    correlation = correlate(rows, "test_error", "lambda_1")
    path = write_comparison(
        found, tmp_path, failed={HOSTILE: "it holds NaN"}, correlations=[correlation], remarks=[HOSTILE], title=HOSTILE
    )
    page = Page(path)
    names = {each.name for each in (tmp_path / "figures").iterdir()}
    assert names == {f"{role}.svg" for role in ("largest", "trace", "overlaid", "multiples", "layers", "correlation-0")}
    assert sum(tag == "img" for tag, _ in page.tags) == 6 and not any(tag == "script" for tag, _ in page.tags)
    assert all(each.startswith(("data:", "#")) for each in page.references())
    words = page.words()
    assert "Not analysed: 1" in words and "it holds NaN" in words and "15 checkpoints of 5 runs" in words
    low = correlation.interval[0]
    assert f"{low:.2f}".replace("-", "−")[:4] in words and correlation.settled
    assert (tmp_path / "table.csv").read_text().startswith("run,checkpoint,step,block,quantity,value,error,kind\n")


def test_the_conclusion_counts_what_exceeds_its_errors(found, runs):
    assert "λ₁ is larger in 14 and smaller in 0" in conclude(found)
    same = compare_checkpoints([runs[0], runs[0]])
    assert "λ₁ is larger in 0 and smaller in 0" in conclude(same) and "layer" not in conclude(same)


def test_differences_are_drawn_where_they_are_and_the_reference_at_zero(found):
    ax = plots.plot_differences(found, "trace")
    drawn = {round(float(y), 6) for line in ax.lines for y in line.get_ydata()}
    assert {round(each.changes["whole", "trace"].value, 6) for _, each in found.compared} <= drawn
    with pytest.raises(InputError, match="no checkpoint has a difference of 'norm'"):
        plots.plot_differences(found, "norm")


def test_small_multiples_have_a_panel_for_each_checkpoint(found):
    ax = plots.plot_multiples(found)
    names = [text.get_text() for text in ax.texts]
    assert all(label in names for label in found.labels)
    _, grey, lines = ax.collections
    assert len(lines.get_paths()) == len(grey.get_paths()) == 15
    assert np.array_equal(lines.get_paths()[0].vertices, grey.get_paths()[0].vertices)


def test_layers_that_not_all_have_are_not_drawn():
    one, other = exact_analysis("a.pt", n=200), exact_analysis("b.pt", n=200, scale=2.0)
    bare = compare_checkpoints([one, dataclasses.replace(other, layers={})])
    with pytest.raises(InputError, match="no layer was analysed at all checkpoints"):
        plots.plot_layer_differences(bare)
    assert "layers that only one of the two has: fc1, fc2, fc3" in bare.differences[1].left_out[0]


def test_more_checkpoints_than_can_be_told_apart_are_drawn_and_listed_all_the_same(tmp_path):
    many = [exact_analysis(f"s/step-{t}.pt", n=60, scale=1 + t / 9, step=t, layers=False) for t in range(45)]
    page = Page(write_comparison(compare_checkpoints(many), tmp_path))
    assert "All 44 differences" in page.words() and len([row for row in page.rows if "step-" in row]) == 44
    assert page.words().count("not compared") == 44 and "none beyond its errors" not in page.words()
    assert len(plots.plot_overlaid(compare_checkpoints(many)).lines) == 12


def test_figures_of_an_earlier_comparison_that_do_not_belong_are_removed(found, tmp_path):
    rows = compared_rows(found)
    write_comparison(found, tmp_path, correlations=[correlate(rows, "test_error", "trace")] * 2)
    (tmp_path / "figures" / "mine.svg").write_text("kept")
    write_comparison(compare_checkpoints(training_run((0, 1))), tmp_path)
    names = {each.name for each in (tmp_path / "figures").iterdir()}
    assert "correlation-1.svg" not in names and "mine.svg" in names
