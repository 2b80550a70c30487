"""The page of the three tasks: written from the numbers, whichever of them there are."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from examples.learning import autoencoder, page, trainers

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results" / "learning", ROOT / "docs" / "reproductions" / "learning.rst"
SETTING = replace(autoencoder.TASK.fast, curvatures=(5, 10, 20))


def a_run(arm, seed, end):
    course = {"update": [0, 4], "train_loss": [1.0, end], "test_loss": [1.0, 2 * end]}
    course |= {"cpu_seconds": [0.0, 3.0], "seconds": [0.0, 6.0], "equivalents": [0.0, 1234.0]}
    run = {"arm": arm, "seed": seed, "counts": True, "course": course}
    return run | {"iterations": {"encoder": 7, "decoder": 9}, "residual": {"encoder": 0.25, "decoder": 0.5}}


def document():
    arm = trainers.block_diagonal(10)
    solves = [{"update": 2, "iterations": {"whole": 9, "encoder": 30}, "converged": {"whole": True, "encoder": False}}]
    some = [a_run(arm, 0, 0.1) | {"solves": solves}, a_run(arm, 1, 0.4), {"arm": arm, "seed": 2, "counts": False}]
    numbers = {
        "data": "DATA",
        "rule": "RULE.",
        "setting": asdict(SETTING),
        "parameters": 1234567,
        "costs": {
            "gradient_seconds": 2e-4,
            "loss": 0.3,
            "linearisation": {"5": 2.5, "10": 1.75},
            "product": {"whole": {"5": 3.0, "10": 1.25}},
        },
        "tuning": {"Adam 10": {"rate": 0.01, "at_the_edge": True, "losses": {"0.001": 0.5, "0.01": None}}},
        "set_aside": 1,
        "runs": some,
    }
    finding = {"claim": "c", "statement": "s", "rule": "r", "verdict": "came out", "evidence": "e"}
    return {"command": "python -m x", "shortened": "all", "numbers": numbers, "findings": [finding]}


def test_rows_are_means_over_the_runs_that_count():
    rows = {row["arm"]: row for row in page.arms(document()["numbers"])}
    row = rows[trainers.block_diagonal(10)]
    assert (row["counted"], row["runs"], row["updates"], row["seconds"], row["wall"]) == (2, 3, 4, 3.0, 6.0)
    assert math.isclose(row["train_loss"], 0.2) and row["test_accuracy"] is None  # the geometric mean of .1 and .4
    assert row["iterations"] == [7, 9] and row["residual"] == [0.25, 0.5]
    assert rows[trainers.adam(10)] == {"arm": "Adam 10", "counted": 0, "runs": 0}


def test_what_was_cut_off_is_marked_and_costs_are_of_each_curvature_batch():
    assert page.solves(document()["numbers"]) == [{"update": 2, "whole": ["9"], "encoder": ["> 30"]}]
    assert [row["products"] for row in page.costs(document()["numbers"])] == [[3.0], [1.25]]


def test_a_task_that_was_not_run_has_no_section(tmp_path):
    assert "-----" not in page.render(tmp_path)
    (tmp_path / "autoencoder.json").write_text(json.dumps(document()))
    told = page.render(tmp_path)
    assert "The deep autoencoder\n-----" in told and "LSTM, row" not in told and ".. image" not in told
    assert "1,234,567 parameters" in told and "> 30" in told and "diverged" in told and "1,234\n" in told
    assert "at an end of the grid" in told and "test accuracy\n" not in told
    (tmp_path / "autoencoder.png").touch()
    assert ".. image:: ../results/learning/autoencoder.png" in page.render(tmp_path)


@pytest.mark.skipif(not PAGE.exists(), reason="nothing has been published")
def test_the_page_is_what_the_published_numbers_give():
    assert PAGE.read_text() == page.render(RESULTS)
