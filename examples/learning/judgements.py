"""Quantities of runs and judgements of their paired differences, from which the claims of the three tasks are decided.

All quantities are logarithms of ratios but accuracies, and means over a course, from the first record after the start
to the last: curves are compared, not their ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from examples.experiment import MOST, Judgement
from examples.learning.trainers import Setting, arms_of, block_diagonal, hessian_free
from examples.paired import Paired, paired
from examples.store import Run

#: "Similar", of numbers of updates, and "comparable", of time: within this factor.
SIMILAR = 2.0
#: "An order of magnitude": nearer to ten than to one.
ORDER = 10**0.5
LATE = 0.1  # the end of a course: this part of its records
Quantity = Callable[[Run], float]


def setting_of(numbers: dict[str, Any]) -> Setting:
    """The setting that numbers are of."""
    stored = {key: tuple(value) if isinstance(value, list) else value for key, value in numbers["setting"].items()}
    return Setting(**stored)


def counted(numbers: dict[str, Any], arm: str) -> dict[int, Run]:
    """The runs of an arm that count, by seed."""
    return {run["seed"]: run for run in numbers["runs"] if run["arm"] == arm and run["counts"]}


def fewest(numbers: dict[str, Any]) -> int:
    """The smallest number of runs that count of any arm."""
    return min(len(counted(numbers, arm)) for arm in arms_of(setting_of(numbers)))


def of(numbers: dict[str, Any], arm: str, quantity: Quantity) -> dict[int, float]:
    """A quantity of an arm by seed."""
    return {seed: quantity(run) for seed, run in counted(numbers, arm).items()}


def curve(run: Run, key: str) -> np.ndarray:
    """A recorded quantity after the start; the logarithm of a loss."""
    values = np.array(run["course"][key][1:], dtype=float)
    return np.log(values) if key.endswith("loss") else values


def over_course(key: str) -> Quantity:
    """The mean over the course."""
    return lambda run: float(curve(run, key).mean())


def at_end(key: str) -> Quantity:
    """The mean over the end of the course."""

    def value(run: Run) -> float:
        values = curve(run, key)
        return float(values[-max(1, round(LATE * len(values))) :].mean())

    return value


def ratio(apart: Paired) -> str:
    """A difference of logarithms as a ratio."""
    low, middle, high = (math.exp(min(each, 700.0)) for each in (apart.lower, apart.mean, apart.upper))
    return f"ratio {middle:.3g} [{low:.3g}, {high:.3g}] in {apart.pairs} pairs"


def compared(numbers: dict[str, Any], first: str, second: str, quantity: Quantity) -> Paired:
    """Paired differences, first arm minus second."""
    return paired(of(numbers, first, quantity), of(numbers, second, quantity))


def better_throughout(first: str, second: str, key: str) -> Judgement:
    """The judgement that the first arm's mean over the course is better, and so is most of its mean curve."""
    sign = 1 if key.endswith("loss") else -1

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = compared(numbers, first, second, over_course(key))
        curves = [counted(numbers, arm) for arm in (first, second)]
        seeds = sorted(curves[0].keys() & curves[1].keys())
        means = [np.mean([curve(each[seed], key) for seed in seeds], axis=0) for each in curves]
        share = float(np.mean(sign * (means[0] - means[1]) < 0))
        told = ratio(apart) if key.endswith("loss") else f"{apart} (points)"
        return (apart.below if sign > 0 else apart.above) and share >= MOST, f"{told}; better at {share:.0%} of records"

    return decide


def better_at_equal_updates(first: str, second: str, key: str) -> Judgement:
    """The judgement that the first arm is better over its course than the second after as many updates.

    The second's records lie elsewhere; it is interpolated, losses in logarithms.
    """
    sign = 1 if key.endswith("loss") else -1

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        ours, theirs = counted(numbers, first), counted(numbers, second)
        found = {seed: 0.0 for seed in ours.keys() & theirs.keys()}
        for seed in found:
            run, other = ours[seed]["course"], theirs[seed]["course"]
            values = np.log(other[key]) if sign > 0 else np.array(other[key])
            at = np.array(run["update"][1:])
            apart = curve(ours[seed], key) - np.interp(at, other["update"], values)
            found[seed] = float(apart[at <= other["update"][-1]].mean())
        mean = paired(found, dict.fromkeys(found, 0.0))
        return (mean.below, ratio(mean)) if sign > 0 else (mean.above, f"{mean} (points)")

    return decide


def updates_to(run: Run, level: float) -> float:
    """Updates until the training loss is first at a level, in logarithms linear between records; else infinity."""
    losses, updates = np.log(run["course"]["train_loss"]), run["course"]["update"]
    for i, loss in enumerate(losses):
        if loss <= level:
            part = (losses[i - 1] - level) / (losses[i - 1] - loss) if i else 0.0
            return updates[i - 1] + part * (updates[i] - updates[i - 1]) if i else 0.0
    return math.inf


def fewer_updates(numbers: dict[str, Any], slow: str, fast: str) -> Paired:
    """By how many times fewer updates one arm reaches the lowest training loss that both reach; a logarithm."""
    first, second = counted(numbers, slow), counted(numbers, fast)
    found = {}
    for seed in first.keys() & second.keys():
        level = max(float(np.log(run["course"]["train_loss"]).min()) for run in (first[seed], second[seed]))
        found[seed] = math.log(updates_to(first[seed], level) / updates_to(second[seed], level))
    return paired(found, dict.fromkeys(found, 0.0))


def order_of_magnitude(slow: str, fast: str) -> Judgement:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = fewer_updates(numbers, slow, fast)
        return apart.lower > math.log(ORDER), ratio(apart)

    return decide


def similar_updates(first: str, second: str, batches: tuple[int, int]) -> Judgement:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = fewer_updates(numbers, first, second)
        holds = -math.log(SIMILAR) < apart.lower and apart.upper < math.log(SIMILAR)
        epochs = math.exp(apart.mean) * batches[0] / batches[1]
        return holds, f"updates: {ratio(apart)}; epochs: {epochs:.3g} times"

    return decide


def lower(first: str, second: str, quantity: Quantity, *, factor: float = 1.0) -> Judgement:
    """The judgement that the interval of the first arm's ratio to the second lies below ``factor``."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = compared(numbers, first, second, quantity)
        return apart.upper < math.log(factor), ratio(apart)

    return decide


def higher(first: str, second: str, quantity: Quantity) -> Judgement:
    """The judgement that the interval of differences lies above zero."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = compared(numbers, first, second, quantity)
        return apart.above, f"{apart} (points)"

    return decide


def differ(first: str, second: str, quantity: Quantity) -> Judgement:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = compared(numbers, first, second, quantity)
        return apart.below or apart.above, ratio(apart)

    return decide


def degradation(numbers: dict[str, Any], method: Callable[[int], str], key: str) -> dict[int, float]:
    """Mean over the course of the log ratio of a loss at the smallest curvature batch to that at the largest."""
    smallest, *_, largest = setting_of(numbers).curvatures
    small, large = (of(numbers, method(size), over_course(key)) for size in (smallest, largest))
    return {seed: small[seed] - large[seed] for seed in small.keys() & large.keys()}


def degrades_less(key: str) -> Judgement:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        blocks, whole = (degradation(numbers, method, key) for method in (block_diagonal, hessian_free))
        apart = paired(blocks, whole)
        each = " and ".join(f"{math.exp(np.mean([*found.values()])):.3g}" for found in (blocks, whole))
        return apart.below, f"{each} times, block-diagonal and whole; {ratio(apart)}"

    return decide


def slowest(needed: dict[str, int]) -> int:
    """Iterations of the block that needs most."""
    return max(count for label, count in needed.items() if label not in ("whole", "together"))


def together(needed: dict[str, int]) -> int:
    """Iterations of the blocks side by side, until their joint residual is small enough."""
    return needed["together"]


def iterations(arm: str, of_blocks: Callable[[dict[str, int]], int]) -> Judgement:
    """The judgement that blocks need fewer iterations to the fixed residual than the whole does.

    A checkpoint at which neither the whole nor some block got there says nothing, and is left out.
    """

    def says(solve: Run) -> bool:
        done = solve["converged"]
        return done["whole"] or all(got_there for label, got_there in done.items() if label != "whole")

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        runs = counted(numbers, arm)
        solves = {seed: [each for each in run["solves"] if says(each)] for seed, run in runs.items()}
        found = {
            seed: float(
                np.mean([math.log(of_blocks(each["iterations"]) / each["iterations"]["whole"]) for each in some])
            )
            for seed, some in solves.items()
            if some
        }
        apart = paired(found, dict.fromkeys(found, 0.0))
        every = [each["iterations"] for run in runs.values() for each in run["solves"]]
        medians = ", ".join(f"{label} {np.median([each[label] for each in every]):g}" for label in every[0])
        left_out = len(every) - sum(len(some) for some in solves.values())
        return apart.below, f"{ratio(apart)}; medians: {medians}; {left_out} of {len(every)} checkpoints left out"

    return decide


def late_rise(arm: str) -> Judgement:
    """The judgement that test loss rises in the last quarter, from its first half to its second."""

    def rise(run: Run) -> float:
        values = curve(run, "test_loss")
        quarter = values[-max(2, len(values) // 4) :]
        return float(quarter[len(quarter) // 2 :].mean() - quarter[: len(quarter) // 2].mean())

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        found = of(numbers, arm, rise)
        apart = paired(found, dict.fromkeys(found, 0.0))
        return apart.above, ratio(apart)

    return decide


def increases(run: Run) -> float:
    """How many times the training loss rises from one record to the next."""
    return float((np.diff(np.log(run["course"]["train_loss"])) > 0).sum())


def spread(run: Run) -> float:
    """The logarithm of the variance of successive changes of the training loss' logarithm."""
    return math.log(np.diff(np.log(run["course"]["train_loss"])).var() + 1e-300)


def fewer_increases(first: str, second: str) -> Judgement:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = compared(numbers, first, second, increases)
        return apart.below, str(apart)

    return decide


def seconds_per_update(run: Run) -> float:
    """The logarithm of the CPU time of an update."""
    return math.log(run["course"]["cpu_seconds"][-1] / run["course"]["update"][-1])
