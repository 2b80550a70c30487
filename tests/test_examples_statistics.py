"""What the reproductions share: paired differences, rank correlations and the store of finished runs."""

import json

import numpy as np
import pytest
import scipy.stats

from examples.experiment import Criterion, judge
from examples.paired import paired, rank_correlation
from examples.store import run_all


def test_the_interval_of_a_paired_difference_is_students():
    first, second = {0: 1.0, 1: 2.0, 2: 4.0, 7: 9.0}, {0: 0.5, 1: 1.0, 2: 1.0, 9: 0.0}
    found, expected = paired(first, second), scipy.stats.ttest_1samp([0.5, 1.0, 3.0], 0.0).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high))
    assert found.pairs == 3 and found.mean == pytest.approx(1.5)


def test_what_all_seeds_share_drops_out_of_a_paired_difference():
    shift = {seed: 100.0 * seed for seed in range(8)}
    noise = np.random.default_rng(0).normal(size=8)
    found = paired({s: shift[s] + 5 + noise[s] for s in shift}, shift)
    assert found.above and found.mean == pytest.approx(5 + noise.mean())


def test_one_pair_decides_nothing():
    found = paired({3: 5.0}, {3: 1.0})
    assert not found.above and not found.below


def test_a_rank_correlation_covers_independence_and_sees_dependence():
    generator, seeds = np.random.default_rng(1), np.repeat(np.arange(12), 4)
    x = generator.normal(size=48)
    assert rank_correlation(x, np.exp(x), seeds).value == pytest.approx(1.0)
    misses = 0
    for trial in range(20):
        x, y = generator.normal(size=(2, 48))
        found = rank_correlation(x, y, seeds, seed=trial)
        misses += not found.lower <= 0 <= found.upper
    assert misses <= 5  # 5 % are expected, and the bootstrap of 12 seeds is a little narrow


def test_runs_of_one_seed_are_not_independent():
    """A correlation that lies between two seeds is far less certain than as many independent runs say."""
    generator = np.random.default_rng(2)
    seeds = np.repeat(np.arange(4), 10)
    x = seeds + 0.1 * generator.normal(size=40)
    y = np.array([0.0, 2.0, 1.0, 3.0])[seeds] + 0.1 * generator.normal(size=40)
    together, apart = rank_correlation(x, y, seeds), rank_correlation(x, y, np.arange(40))
    assert together.upper - together.lower > 1.5 * (apart.upper - apart.lower)


def _doubled(run: dict) -> dict:
    return {"value": 2 * run["seed"]}


def test_finished_runs_are_not_repeated_and_a_line_cut_off_is(tmp_path):
    path, runs = tmp_path / "runs.jsonl", [{"seed": seed} for seed in range(3)]
    assert run_all(_doubled, runs[:2], path) == [{"value": 0}, {"value": 2}]
    path.write_text(path.read_text() + '{"run": {"seed": 2}, "fou')  # killed while it wrote

    def only_the_third(run):
        assert run["seed"] == 2
        return _doubled(run)

    assert run_all(only_the_third, runs, path)[2] == {"value": 4}
    assert [json.loads(line)["run"]["seed"] for line in path.read_text().splitlines() if line.endswith("}")] == [
        0,
        1,
        2,
    ]


def test_runs_in_several_processes_are_those_of_one(tmp_path):
    runs = [{"seed": seed} for seed in range(4)]
    assert run_all(_doubled, runs, tmp_path / "a.jsonl", processes=2) == [_doubled(run) for run in runs]


def test_a_fast_run_and_too_few_runs_give_no_verdict():
    criteria = [Criterion("a", "it holds", "the number is positive", lambda numbers: (numbers["x"] > 0, "seen"))]
    verdicts = [judge(criteria, {"x": 1}, fast=fast, fewest=few)[0].verdict for fast, few in ((1, 9), (0, 2), (0, 9))]
    assert verdicts == ["no verdict from a fast run", "no verdict: only 2 runs of one condition count", "came out"]
