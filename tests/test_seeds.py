"""Runs of checkpoints: told apart by their folders, and their means over seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pyhessian_spectra import tidy
from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.seeds import checkpoint_names, over_seeds, runs_of
from pyhessian_spectra.plots import plot_runs
from pyhessian_spectra.report import write_report
from tests.analyses import exact_analysis, training_run

SCALES = {"sgd/seed-0": 1.0, "sgd/seed-1": 2.0, "sgd/seed-2": 6.0, "adam": 3.0}


@pytest.fixture(scope="module")
def runs():
    return [
        exact_analysis(f"out/{run}/step-{step}.pt", scale=scale * (1 + step), step=step)
        for run, scale in SCALES.items()
        for step in (0, 10)
    ]


def test_checkpoints_of_several_folders_are_named_with_them_and_are_runs_of_their_own(runs):
    assert checkpoint_names(runs)[:3] == ("sgd/seed-0/step-0.pt", "sgd/seed-0/step-10.pt", "sgd/seed-1/step-0.pt")
    assert runs_of(runs) == {run: (2 * i, 2 * i + 1) for i, run in enumerate(SCALES)}
    found = Checkpoints.of(runs)
    assert set(found.trajectories) == set(SCALES)
    assert found.trajectories["adam"].labels == ("adam/step-0.pt", "adam/step-10.pt")


def test_one_folder_is_one_run_and_so_are_folders_of_one_checkpoint_each():
    run = training_run()
    moved = [
        dataclasses.replace(each, problem={**each.problem, "checkpoint": f"out/checkpoint-{i}/model.pt"})
        for i, each in enumerate(run)
    ]
    assert runs_of(run) == runs_of(moved) == {"": (0, 1, 2, 3)}
    assert checkpoint_names(run)[0] == "step-00000.pt"
    assert checkpoint_names(moved)[0] == "checkpoint-0/model.pt"


def test_a_mean_over_seeds_is_that_of_the_runs_of_one_setting_with_their_spread(runs):
    tops = np.array([next(iter(each.full.largest)).eigenvalue for each in runs]).reshape(4, 2)[:3]
    found = [mean for mean in over_seeds(runs) if mean.quantity == "lambda_1"]
    assert [(mean.setting, mean.step, mean.count) for mean in found] == [("sgd", 0.0, 3), ("sgd", 10.0, 3)]
    np.testing.assert_allclose([mean.mean for mean in found], tops.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose([mean.spread for mean in found], tops.std(axis=0, ddof=1), rtol=1e-12)


def test_folders_that_name_no_seed_have_no_mean(runs):
    other = [
        dataclasses.replace(
            each, problem={**each.problem, "checkpoint": each.problem["checkpoint"].replace("seed", "lr")}
        )
        for each in runs
    ]
    assert over_seeds(other) == []


def test_the_table_has_the_means_over_seeds_with_the_spread_for_error(runs):
    rows = [row for row in tidy(runs) if row.quantity == "lambda_1, mean over seeds"]
    assert {row.kind for row in rows} == {"standard deviation over 3 seeds"} and len(rows) == 2


def test_the_table_says_of_each_row_which_run_it_is_of(runs):
    found = {(row.run, row.checkpoint) for row in tidy(runs) if row.quantity in ("trace", "change of trace")}
    assert found == {(run, f"{run}/step-{step}.pt") for run in SCALES for step in (0, 10)}


def test_a_run_that_a_problem_names_goes_before_its_folder():
    named = [dataclasses.replace(each, problem={**each.problem, "run": i % 2}) for i, each in enumerate(training_run())]
    assert runs_of(named) == {"0": (0, 2), "1": (1, 3)}


def test_each_run_is_a_line_of_its_own_and_the_mean_another(runs):
    ax = plot_runs(Checkpoints.of(runs))
    labels = ax.get_legend_handles_labels()[1]
    assert sorted(labels) == sorted([*SCALES, "mean over seeds, ± spread"])


def test_the_mean_is_drawn_where_checkpoints_have_no_steps():
    runs = [
        exact_analysis(f"out/sgd/seed-{seed}/{name}.pt", n=60, layers=False, scale=1.0 + seed)
        for seed in (0, 1)
        for name in ("early", "late")
    ]
    ax = plot_runs(Checkpoints.of(runs))
    (mean,) = (line for line in ax.lines if line.get_label() == "mean over seeds, ± spread")
    tops = np.array([each.full.largest.eigenvalues[-1] for each in runs]).reshape(2, 2)
    np.testing.assert_allclose(mean.get_ydata(), tops.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(mean.get_xdata(), ax.lines[0].get_xdata())


def test_the_mean_of_checkpoints_at_other_places_of_their_runs_is_not_drawn():
    """Steps that one file knows are no places among checkpoints of which others have none."""
    names = {0: ("early", "late"), 1: ("late",)}
    runs = [
        exact_analysis(f"out/sgd/seed-{seed}/{name}.pt", n=60, layers=False, **({"step": 1} if name == "early" else {}))
        for seed, own in names.items()
        for name in own
    ]
    assert not [line for line in plot_runs(Checkpoints.of(runs)).lines if line.get_linestyle() == "--"]


def test_the_page_of_several_runs_has_their_names_their_means_and_the_title_given(runs, tmp_path):
    text = write_report(runs, tmp_path, title="Seeds & <rates>").read_text()
    assert "<title>Seeds &amp; &lt;rates&gt;</title>" in text
    assert "Means over runs that differ by their seed" in text
    assert all(f"From one checkpoint to the next: {run}" in text for run in SCALES)


def test_a_label_takes_the_place_of_a_file_name():
    named = [
        dataclasses.replace(each, problem={**each.problem, "label": label})
        for each, label in zip(training_run(), ("start", "10", "late", "late"), strict=True)
    ]
    assert checkpoint_names(named) == ("start", "10", "late (3)", "late (4)")
