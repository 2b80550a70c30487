"""Rank correlations: their value by scipy's, their intervals by how often these hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from analyses import training_run

from pyhessian_spectra import tidy
from pyhessian_spectra.analysis.correlation import correlate, rank_correlation
from pyhessian_spectra.analysis.table import Row
from pyhessian_spectra.errors import InputError


@pytest.mark.parametrize("method, oracle", [("spearman", scipy.stats.spearmanr), ("kendall", scipy.stats.kendalltau)])
def test_the_value_is_that_of_scipy_with_ties(method, oracle):
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y = rng.integers(0, 6, (2, 15))
        found = rank_correlation(x, y, [f"{i}" for i in range(15)], method=method)
        assert found.value == pytest.approx(oracle(x, y).statistic, abs=1e-12)
        assert found.interval[0] < found.value < found.interval[1]


def sample(rng, runs: int, each: int, between: float, within: float):
    """Checkpoints of runs whose effects correlate, skewed so that only ranks see it."""

    def pairs(shape, rho):
        one, other = rng.standard_normal((2, *shape))
        return np.stack([one, rho * one + (1 - rho**2) ** 0.5 * other])

    x, y = 0.8 * pairs((runs, 1), between) + 0.6 * pairs((runs, each), within)
    return np.exp(x).ravel(), (y**3).ravel(), np.repeat(np.arange(runs), each).astype(str)


@pytest.mark.parametrize("method", ["spearman", "kendall"])
@pytest.mark.parametrize("runs, each, between, within", [(6, 5, 0.8, -0.5), (6, 1, 0.95, 0.95), (12, 4, 0.0, 0.9)])
def test_intervals_over_runs_cover_what_infinitely_many_runs_would_give(method, runs, each, between, within):
    """250 samples: where 94 % are held, fewer than 90 % are in one of two hundred."""
    rng = np.random.default_rng(1)
    oracle = {"spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}[method]
    x, y, _ = sample(rng, 20_000, each, between, within)
    truth = oracle(x, y).statistic
    held = 0
    for _ in range(250):
        low, high = rank_correlation(*sample(rng, runs, each, between, within), method=method).interval
        held += low <= truth <= high
    assert held / 250 > 0.9


def test_checkpoints_taken_for_independent_would_cover_too_rarely():
    """What the interval over runs is for: runs correlate, checkpoints of a run are nearly copies."""
    rng, naive = np.random.default_rng(2), 0
    for _ in range(200):
        effects = rng.standard_normal((2, 6, 1)) + 0.01 * rng.standard_normal((2, 6, 20))
        x, y = effects.reshape(2, -1)
        low, high = rank_correlation(x, y, np.arange(120).astype(str)).interval
        naive += low <= 0.0 <= high
    assert naive / 200 < 0.6


def test_fewer_than_five_runs_give_a_value_without_an_interval():
    found = rank_correlation([1, 2, 3, 4], [1, 3, 2, 4], ["a", "a", "b", "c"])
    assert found.value == pytest.approx(0.8) and found.interval is None and not found.settled
    assert rank_correlation(range(5), range(5), "abcde").interval[0] > -1


def test_a_quantity_goes_with_a_column_of_the_checkpoints_that_have_both():
    rows = tidy(training_run())
    rows += [Row("", row.checkpoint, None, "given", "test_error", -row.value, None, "as given") for row in rows[:80]
             if row.quantity == "lambda_1" and row.block == "whole"]  # fmt: skip
    rows = [row for row in rows if row.checkpoint != "step-00010.pt" or row.block != "given"]
    with pytest.raises(InputError, match="three or more"):
        correlate(rows[:80] + rows[-1:], "test_error", "trace")
    with pytest.raises(InputError, match="no checkpoint has a 'accuracy' of 'given'; there are test_error"):
        correlate(rows, "accuracy", "trace")


def test_what_cannot_be_correlated_gets_a_sentence():
    with pytest.raises(InputError, match="'error' is 2 in all 3 checkpoints"):
        rank_correlation([2, 2, 2], [1, 2, 3], "abc", names=("error", "trace"))
    with pytest.raises(InputError, match="not finite"):
        rank_correlation([1, 2, np.nan], [1, 2, 3], "abc")
    with pytest.raises(InputError, match="spearman, kendall"):
        rank_correlation([1, 2, 3], [1, 2, 3], "abc", method="pearson")


@pytest.mark.parametrize("values", [["a", "b", "c"], None, [1j, 2j, 3j]])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(InputError, match=r"real numbers|three or more"):
        rank_correlation(values, [1.0, 2.0, 3.0], ["a", "b", "c"])
