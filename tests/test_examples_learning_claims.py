"""What decides the claims on the three tasks: by numbers as claimed, by their opposite, and by closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from examples.learning import autoencoder, claims, judgements, lstm, resnet, trainers

TASKS = {task.name: task for task in (autoencoder.TASK, lstm.ROWS, lstm.PIXELS, resnet.TASK)}


def test_updates_to_a_common_level_are_those_of_exponentials():
    def falling(rate, updates):
        at = np.linspace(0, updates, 11)
        return {"counts": True, "course": {"update": at.tolist(), "train_loss": np.exp(-rate * at).tolist()}}

    slow, fast = falling(0.013, 1000), falling(0.13, 100)  # both end at the same loss
    assert judgements.updates_to(slow, -1.3) == pytest.approx(100)
    assert judgements.updates_to(slow, -100.0) == math.inf
    found = [{"arm": arm, "seed": seed, **run} for seed in range(3) for arm, run in (("slow", slow), ("fast", fast))]
    assert math.exp(judgements.fewer_updates({"runs": found}, "slow", "fast").mean) == pytest.approx(10)


def test_a_curve_that_crosses_is_not_better_over_the_whole_course():
    def runs_of(arm, losses):
        return [{"arm": arm, "seed": seed, "counts": True, "course": {"train_loss": losses}} for seed in range(3)]

    ahead, level = [1.0, 0.2, 0.2, 0.9, 0.9, 0.9], [1.0, 0.8, 0.8, 0.8, 0.8, 0.8]
    some = {"runs": runs_of("ahead", ahead) + runs_of("level", level)}
    assert judgements.compared(some, "ahead", "level", judgements.over_course("train_loss")).below
    holds, told = judgements.better_throughout("ahead", "level", "train_loss")(some)
    assert not holds and "better at 40%" in told


def test_runs_are_compared_after_as_many_updates():
    def run_of(arm, updates, rate):
        losses = [math.exp(-rate * each) for each in updates]
        return [
            {"arm": arm, "seed": s, "counts": True, "course": {"update": updates, "train_loss": losses}}
            for s in range(3)
        ]

    some = {"runs": run_of("few", [0, 1, 2, 3, 9], 0.5) + run_of("many", [0, 1.5, 4.5], 0.2)}
    holds, told = judgements.better_at_equal_updates("few", "many", "train_loss")(some)
    assert holds and told.startswith(f"ratio {math.exp(-0.3 * 2):.3g} ")  # at 1, 2 and 3, which both have seen
    assert not judgements.better_at_equal_updates("many", "few", "train_loss")(some)[0]


def test_iterations_are_of_the_slowest_block_and_of_checkpoints_that_say_something():
    def solve(whole, first, second, *converged):
        labels = ("whole", "a", "b", "together")
        return {
            "iterations": dict(zip(labels, (whole, first, second, second), strict=True)),
            "converged": dict(zip(labels, (*converged, True), strict=True)),
        }

    said = [solve(20, 5, 10, True, True, True), solve(20, 5, 20, False, True, True), solve(5, 5, 20, True, True, False)]
    silent = solve(20, 5, 20, False, True, False)
    found = {"runs": [{"arm": "B", "seed": s, "counts": True, "solves": [*said, silent]} for s in range(3)]}
    _, told = judgements.iterations("B", judgements.slowest)(found)
    # halves, the same, four times: the mean of the logarithms is that of 2^(1/3)
    assert told.startswith("ratio 1.26 ") and "3 of 12 checkpoints left out" in told


def numbers(task, sign):
    """Three runs an arm that behave as the paper says, or the other way round where ``sign`` is -1."""
    setting = replace(task.short, records=40)
    small, big = trainers.adam(setting.small_batch), trainers.adam(setting.batch)
    rates = {small: 0.8, big: 0.5}
    for place, size in enumerate(setting.curvatures):
        rates[trainers.hessian_free(size)] = 0.6 + 0.1 * place
        rates[trainers.block_diagonal(size)] = 1.0 + 0.05 * place
        rates[trainers.random_blocks(size)] = 0.6
    rates |= {each(setting.curvatures[1]): 0.6 for each in (trainers.no_momentum, trainers.longer_steps)}
    found = []
    for arm, rate in rates.items():
        blocks, updates = arm.startswith("block"), setting.updates * (setting.times if arm.startswith("Adam") else 1)
        rate = rate if sign > 0 else 20 * rate if arm in (small, big) else 2 - rate
        at = np.linspace(0, 1, setting.records + 1)
        for seed in range(3):
            how = rate * (1 + 0.001 * seed)
            wave = (0.0 if blocks == (sign > 0) else 0.5 + 0.01 * seed) * np.sin((60 + 9 * seed) * at)
            fall = np.exp(-how * (3 * at if arm != big or sign > 0 else 30 * at) + wave)
            late = np.where(at > 0.75, at - 0.75, 0.0) * sign
            course = {"update": (updates * at).tolist(), "train_loss": fall.tolist()}
            course["test_loss"] = (np.maximum(fall, 0.3 * (1.5 - how)) * np.exp(8 * late)).tolist()
            course["test_accuracy"] = course["averaged_accuracy"] = (100 - 90 * fall).tolist()
            course["cpu_seconds"] = ((1.5 if sign > 0 else 2.5) ** blocks * at + 0.01 * seed * at).tolist()
            needed = {"whole": 20, "one": 10, "together": 10} if sign > 0 else {"whole": 10, "one": 20, "together": 20}
            solves = [{"iterations": needed, "converged": dict.fromkeys(needed, True)}]
            found.append({"arm": arm, "seed": seed, "counts": True, "course": course, "solves": solves})
    setting_json = json.loads(json.dumps(vars(setting)))
    return {"runs": found, "setting": setting_json}


@pytest.mark.parametrize("name", TASKS)
def test_criteria_hold_for_numbers_as_claimed_and_not_for_their_opposite(name):
    task = TASKS[name]
    some = numbers(task, 1)
    all_of_them = claims.criteria(task, judgements.setting_of(some))
    assert judgements.setting_of(some) == replace(task.short, records=40) and judgements.fewest(some) == 3
    failing = {f"{each.claim}: {each.statement}" for each in all_of_them if not each.decide(some)[0]}
    assert not failing
    holding = {each.claim for each in all_of_them if each.decide(numbers(task, -1))[0]}
    assert holding <= {"Adam", "averaged", "stable"}
