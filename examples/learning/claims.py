"""What decides the claims on block-diagonal Hessian-free, fixed before the runs; a function of the published numbers.

All quantities are logarithms of ratios but accuracies, and means over a course, from the first record after the start
to the last: curves are compared, not their ends. Three paired seeds are enough for a verdict here: Student's interval
of three pairs is 4.3 standard errors to each side, so that few runs cost power and not truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from examples.experiment import MOST, Criterion, Judgement
from examples.learning.trainers import (
    Setting,
    Task,
    adam,
    arms_of,
    block_diagonal,
    hessian_free,
    no_momentum,
    random_blocks,
)
from examples.paired import Paired, paired
from examples.store import Run

ENOUGH = 3
#: "Ends at the error of" another: at most this many times it.
REACHED = 1.1
#: "Similar", of numbers of updates, and "comparable", of time: within this factor.
SIMILAR = 2.0
#: "An order of magnitude": nearer to ten than to one.
ORDER = 10**0.5
#: "Substantially": at most this part of the variance.
SUBSTANTIALLY = 0.5
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
    """The judgement that blocks need fewer iterations to the fixed residual than the whole does."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        runs = counted(numbers, arm)
        solves = [each for run in runs.values() for each in run["solves"]]
        found = {
            seed: float(
                np.mean([math.log(of_blocks(n) / n["whole"]) for n in (s["iterations"] for s in run["solves"])])
            )
            for seed, run in runs.items()
        }
        apart = paired(found, dict.fromkeys(found, 0.0))
        medians = ", ".join(
            f"{label} {np.median([each['iterations'][label] for each in solves]):g}"
            for label in solves[0]["iterations"]
        )
        ended = sum(not done for each in solves for done in each["converged"].values())
        return apart.below, f"{ratio(apart)}; medians: {medians}; {ended} did not get there"

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


INTERVAL = "the 95 % interval over paired seeds"
MEAN = f"{INTERVAL} of the mean over the course"
THROUGHOUT = f"and the mean over seeds is better at {MOST:.0%} of the records or more".replace("%", " %")


def throughout(claim: str, task: Task, first: str, second: str) -> list[Criterion]:
    """Better over the whole course, on training and test data."""
    kinds = {"train_loss": "training loss", "test_loss": "test loss"}
    found = [
        Criterion(
            claim,
            f"{first}: a lower {words} than {second} over the whole course",
            f"{MEAN} of the log ratio lies below zero, {THROUGHOUT}",
            better_throughout(first, second, key),
        )
        for key, words in kinds.items()
    ]
    if task.classifies:
        found.append(
            Criterion(
                claim,
                f"{first}: a higher test accuracy than {second} over the whole course",
                f"{MEAN} of the difference lies above zero, {THROUGHOUT}",
                better_throughout(first, second, "test_accuracy"),
            )
        )
    return found


def criteria(task: Task, setting: Setting) -> list[Criterion]:
    """All that decides the claims on a task, in the order of the paper."""
    small, big = adam(setting.small_batch), adam(setting.batch)
    middle, largest = setting.curvatures[1], setting.curvatures[-1]
    best, blocks = block_diagonal(largest), block_diagonal(middle)
    found = [
        Criterion(
            "updates",
            f"{best} needs an order of magnitude fewer updates than {small}",
            f"{INTERVAL} of the ratio of updates to the lowest training loss that both reach lies above 10^(1/2)",
            order_of_magnitude(small, best),
        ),
        *(
            Criterion(
                "updates",
                f"{best} ends at the {words} of {small}, which had {setting.times} times the updates, or below",
                f"{INTERVAL} of the ratio at the end (the last tenth of the records) lies below {REACHED}",
                lower(best, small, at_end(key), factor=REACHED),
            )
            for key, words in (("train_loss", "training loss"), ("test_loss", "test loss"))
        ),
    ]
    for size in setting.curvatures:
        found += throughout("whole course", task, block_diagonal(size), hessian_free(size))
    found += [
        *(
            Criterion(
                "curvature batch",
                f"block-diagonal degrades less from {largest} to {setting.curvatures[0]} examples: {words}",
                f"{INTERVAL} of the difference of mean log ratios over the course, smallest batch to largest, "
                "block-diagonal - whole, lies below zero",
                degrades_less(key),
            )
            for key, words in (("train_loss", "training loss"), ("test_loss", "test loss"))
        ),
        Criterion(
            "Adam",
            f"Adam needs a similar number of updates at batches of {setting.small_batch} and {setting.batch}",
            f"{INTERVAL} of the ratio of updates to the lowest training loss that both reach lies within 1/2 and 2",
            similar_updates(small, big, (setting.small_batch, setting.batch)),
        ),
        Criterion(
            "Adam",
            "Adam's final test loss depends on the batch size",
            f"{INTERVAL} of the log ratio at the end lies on one side of zero",
            differ(big, small, at_end("test_loss")),
        ),
        *(
            Criterion(
                "iterations",
                f"fewer CG iterations per block than of the whole, to a relative residual of {setting.solve_rtol:g}",
                f"{INTERVAL} of the mean over checkpoints of the log ratio, {words}, lies below zero",
                iterations(blocks, quantity),
            )
            for quantity, words in (
                (slowest, "the slowest block to the whole"),
                (together, "blocks side by side until their joint residual is there to the whole"),
            )
        ),
        *(
            Criterion(
                "time",
                f"an update of {block_diagonal(size)} takes a time comparable with {hessian_free(size)}'s",
                f"{INTERVAL} of the ratio of CPU time lies below {SIMILAR:g}",
                lower(block_diagonal(size), hessian_free(size), seconds_per_update, factor=SIMILAR),
            )
            for size in setting.curvatures
        ),
        *throughout("momentum", task, blocks, no_momentum(middle)),
        *throughout("control", task, blocks, random_blocks(middle)),
        *(
            Criterion(
                "late rise",
                f"{arm}: the test loss rises late",
                f"{INTERVAL} of the log ratio of the last eighth of the course to the eighth before lies above zero",
                late_rise(arm),
            )
            for arm in (small, big, hessian_free(largest), best)
        ),
    ]
    return found + SPECIAL.get(task.name, _nothing)(setting)


def _nothing(setting: Setting) -> list[Criterion]:
    return []


def beats_adam(setting: Setting) -> list[Criterion]:
    """Of the LSTM: better than Adam at any batch size."""
    best = block_diagonal(setting.curvatures[-1])
    return [
        each
        for size in (setting.small_batch, setting.batch)
        for each in (
            Criterion(
                "beats Adam",
                f"{best} ends at a lower training loss than {adam(size)}",
                f"{INTERVAL} of the ratio at the end lies below one",
                lower(best, adam(size), at_end("train_loss")),
            ),
            Criterion(
                "beats Adam",
                f"{best} ends at a higher test accuracy than {adam(size)}",
                f"{INTERVAL} of the difference at the end lies above zero",
                higher(best, adam(size), at_end("test_accuracy")),
            ),
        )
    ]


def more_stable(setting: Setting) -> list[Criterion]:
    """Of the ResNet: the training loss falls more steadily; and averaged parameters are compared."""
    middle = setting.curvatures[1]
    first, others = block_diagonal(middle), (hessian_free(middle), adam(setting.small_batch), adam(setting.batch))
    return [
        each
        for second in others
        for each in (
            Criterion(
                "stable",
                f"{first}: the training loss rises less often than with {second}",
                f"{INTERVAL} of the difference of numbers of rises between records lies below zero",
                fewer_increases(first, second),
            ),
            Criterion(
                "stable",
                f"{first}: successive changes of the training loss vary substantially less than with {second}",
                f"{INTERVAL} of the ratio of the variances of their logarithms lies below {SUBSTANTIALLY}",
                lower(first, second, spread, factor=SUBSTANTIALLY),
            ),
            Criterion(
                "averaged",
                f"{first}: a higher test accuracy of averaged parameters than {second}'s",
                f"{INTERVAL} of the difference at the end lies above zero",
                higher(first, second, at_end("averaged_accuracy")),
            ),
        )
    ]


SPECIAL: dict[str, Callable[[Setting], Sequence[Criterion]]] = {
    "lstm_rows": beats_adam,
    "lstm_pixels": beats_adam,
    "resnet": more_stable,
}
