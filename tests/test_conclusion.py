"""What a page concludes follows from its numbers, and no change is told that its errors could explain."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.trajectory import exceeds
from pyhessian_spectra.report import write_report
from pyhessian_spectra.report.conclusion import conclude, leading_numbers
from pyhessian_spectra.spectra import TraceEstimate
from tests.analyses import exact_analysis


def run(scales, *, data: float | None = None, folder="run"):
    """Checkpoints whose largest eigenvalue is 100 times each scale, with an error of the data."""
    found = []
    for step, scale in enumerate(scales):
        each = exact_analysis(f"{folder}/step-{29 * step}.pt", n=60, layers=False, scale=scale, step=29 * step)
        if data is not None:
            errors = np.full(len(each.full.largest), data)
            largest = dataclasses.replace(each.full.largest, data_stderr=errors)
            trace = dataclasses.replace(each.full.trace, data_stderr=data)
            each = dataclasses.replace(each, full=dataclasses.replace(each.full, largest=largest, trace=trace))
        found.append(each)
    return found


def told(analyses) -> str:
    return conclude(Checkpoints.of(analyses)).replace("\N{NO-BREAK SPACE}", " ")


def test_a_rise_and_a_fall_beyond_both_errors_are_told_with_the_step_between():
    sentence = told(run([0.2, 0.5, 0.9, 0.4], data=1.0)).split(". The trace")[0]
    assert sentence == (
        "The sharpness λ₁ was highest at step 58: 70.0 ± 1.4 above step 0 and 50.0 ± 1.4 above step 87; both "
        "differences exceed both errors, of computation and data (95 % for 3 comparisons together)"
    )
    assert "was lowest at step 29: 70.0 ± 1.4 below step 0 and 60.0 ± 1.4 below step 58" in told(
        run([0.9, 0.2, 0.8], data=1.0)
    )


def test_a_run_that_falls_before_it_rises_is_not_said_to_rise_from_the_start():
    sentence = told(run([0.5, 0.2, 0.9, 0.4], data=1.0)).split(". The trace")[0]
    assert "was highest at step 58: 40.0 ± 1.4 above step 0" in sentence and "rose" not in sentence


def test_where_nothing_changes_a_change_is_told_in_one_case_of_twenty_at_most():
    """Errors are drawn as large as they are said to be; at 95 % for each comparison it is one of eight."""
    checkpoints, names, seeds = Checkpoints.of(run([0.5] * 12, data=1.0)), ("sharpness", "trace"), 400
    rng, wrong = np.random.default_rng(0), np.zeros(2)
    for _ in range(seeds):
        analyses = []
        for each, off in zip(checkpoints.analyses, rng.normal(0, 1.0, (12, 2)), strict=True):
            values = each.full.largest.eigenvalues.copy()
            values[-1] += off[0]
            largest = dataclasses.replace(each.full.largest, eigenvalues=values, lower=values, upper=values)
            trace = dataclasses.replace(each.full.trace, value=each.full.trace.value + off[1])
            analyses.append(
                dataclasses.replace(each, full=dataclasses.replace(each.full, largest=largest, trace=trace))
            )
        said = conclude(dataclasses.replace(checkpoints, analyses=tuple(analyses)))
        wrong += [f"The change of the {name}" not in said.replace("\N{NO-BREAK SPACE}", " ") for name in names]
    assert (wrong <= 0.05 * seeds).all()


def test_a_turn_within_the_error_of_the_data_is_not_told():
    """From 0.9 to 0.88 the eigenvalue falls by 2, and the error of that is the root of two times 1.5."""
    sentence = told(run([0.2, 0.5, 0.9, 0.88], data=1.5)).split(" The trace")[0]
    assert "rose from step 0 to step 87, by 68.0 ± 2.1; the change exceeds both errors" in sentence
    assert "after it" not in sentence


def test_a_change_that_its_errors_could_explain_is_said_to_be_one():
    assert "does not exceed both errors" in told(run([0.5, 0.52], data=5.0))


def test_an_unknown_error_of_the_data_is_said_to_be_unknown():
    assert "that of the data is unknown" in told(run([0.2, 0.5]))


@pytest.mark.parametrize("value", [1.0, 1.9, 2.1, 3.0])
def test_a_change_must_exceed_its_errors_together(value):
    assert exceeds(TraceEstimate(value, 0.0, 0, rounding=0.04, data_stderr=1.0)) == (value > 2)


def test_of_several_runs_it_is_told_in_how_many_each_number_rose():
    runs = [
        *run([0.2, 0.5], data=1.0, folder="a"),
        *run([0.5, 0.2], data=1.0, folder="b"),
        *run([0.2, 0.9], data=1.0, folder="c"),
    ]
    assert told(runs).startswith(
        "The sharpness λ₁ rose from the first checkpoint to the last in 2 of 3 runs and fell in 1"
    )


def test_of_one_checkpoint_it_is_told_whether_it_can_be_a_minimum():
    assert "no minimum" in told(run([0.5]))
    (convex,) = run([0.5])
    smallest = dataclasses.replace(convex.full.smallest, eigenvalues=np.abs(convex.full.smallest.eigenvalues))
    assert "not ruled out" in told(
        [dataclasses.replace(convex, full=dataclasses.replace(convex.full, smallest=smallest))]
    )
    fisher = dataclasses.replace(convex, problem={**convex.problem, "matrix": "EmpiricalFisher"})
    assert told([fisher]) == ""


def test_the_error_of_the_data_leads_and_that_of_the_computation_follows():
    (analysis,) = run([0.5], data=1.0)
    largest, smallest, trace = leading_numbers(analysis)
    assert (largest["value"], largest["data"]) == ("50.0 ± 1.0", "error of the data")
    assert largest["own"].startswith("computation: ± ")
    assert "that of the data is unknown" in smallest["data"]
    assert trace["own"] == "computation: exact"


def test_the_page_begins_with_conclusion_numbers_and_figures_in_this_order(tmp_path):
    page = write_report(run([0.2, 0.9, 0.4], data=1.0), tmp_path).read_text()
    places = [page.index(mark) for mark in ("<h1>", 'id="conclusion"', 'class="numbers"', "<figure>", "<table")]
    assert places == sorted(places)
