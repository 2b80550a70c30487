"""What decides the claims on trace regularisation, fixed before the runs: each a function of the published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from examples.experiment import Criterion, Judgement
from examples.layerwise.htr_runs import ARMS, LAYERS, TRACED
from examples.paired import Paired, paired, rank_correlation
from examples.store import Run

Quantity = Callable[[Run], float]


def accuracy_gap(run: Run) -> float:
    return run["train_accuracy"] - run["test_accuracy"]


def loss_gap(run: Run) -> float:
    return run["test_loss"] - run["train_loss"]


def log_of(name: str) -> Quantity:
    """The logarithm of a quantity, whose paired differences are logarithms of ratios."""
    return lambda run: math.log(run[name])


def counted(numbers: dict[str, Any]) -> list[Run]:
    return [run for run in numbers["runs"] if run["counts"]]


def of_arm(numbers: dict[str, Any], arm: str, quantity: Quantity) -> dict[int, float]:
    """The quantity by seed."""
    return {run["seed"]: quantity(run) for run in counted(numbers) if run["arm"] == arm}


def fewest(numbers: dict[str, Any]) -> int:
    """The smallest number of runs that count of any arm."""
    return min(len(of_arm(numbers, arm, accuracy_gap)) for arm in ARMS)


def against(numbers: dict[str, Any], first: str, second: str, quantity: Quantity) -> Paired:
    """Paired differences, first arm minus second."""
    return paired(of_arm(numbers, first, quantity), of_arm(numbers, second, quantity))


def lower(first: str, second: str, quantity: Quantity) -> Judgement:
    """The judgement that the interval of the paired differences lies below zero."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = against(numbers, first, second, quantity)
        return apart.below, str(apart)

    return decide


def higher(first: str, second: str, quantity: Quantity) -> Judgement:
    """The judgement that it lies above zero."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = against(numbers, first, second, quantity)
        return apart.above, str(apart)

    return decide


def ordered(quantity: Quantity) -> Judgement:
    """The judgement that the means are in the published order, HTR < L2 < SGD, over the seeds that all three have."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        values = [of_arm(numbers, arm, quantity) for arm in ("HTR", "L2", "SGD")]
        seeds = set.intersection(*(set(each) for each in values))
        means = [float(np.mean([each[seed] for seed in seeds])) for each in values]
        told = " < ".join(f"{mean:.3f}" for mean in means) if means == sorted(means) else "not so:"
        if means != sorted(means):
            told += " " + ", ".join(f"{mean:.3f}" for mean in means)
        return means[0] < means[1] < means[2], f"{told} (HTR, L2, SGD; {len(seeds)} seeds)"

    return decide


def comparable(numbers: dict[str, Any]) -> tuple[bool, str]:
    margin = float(np.mean([*of_arm(numbers, "SGD", accuracy_gap).values()])) / 10
    apart = against(numbers, "HTR middle", "HTR", accuracy_gap)
    return apart.upper < margin, f"{apart}, margin {margin:.3g}"


def flatter(name: str, quantity: Quantity, *, centred: bool) -> Judgement:
    """The judgement that a flatness measure and a gap are rank-correlated, within arms if both are ``centred``."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        runs = [run for run in counted(numbers) if run.get(name)]
        x, y = (np.array([value(run) for run in runs]) for value in (log_of(name), quantity))
        arms = np.array([run["arm"] for run in runs])
        if centred:
            for arm in np.unique(arms):
                x[arms == arm] -= x[arms == arm].mean()
                y[arms == arm] -= y[arms == arm].mean()
        found = rank_correlation(x, y, [run["seed"] for run in runs])
        return found.lower > 0, str(found)

    return decide


GAPS: Mapping[str, Quantity] = {
    "gap of accuracy (train - test, points)": accuracy_gap,
    "gap of loss (test - train)": loss_gap,
}
BELOW = "the 95 % interval of the paired differences lies below zero"
MEASURES = ("lambda_1", "trace", *(f"trace_{layer}" for layer in LAYERS))
CRITERIA = (
    *(
        Criterion("gap", f"{arm} has a smaller {words} than SGD", BELOW, lower(arm, "SGD", quantity))
        for arm in ARMS
        if arm != "SGD"
        for words, quantity in GAPS.items()
    ),
    *(
        Criterion("order", f"{words}: HTR < L2 < SGD", "the means are in this order", ordered(quantity))
        for words, quantity in GAPS.items()
    ),
    Criterion(
        "middle",
        "penalising the middle layers alone does comparably or better than all",
        "the 95 % interval of the paired differences of the accuracy gap, middle - all, ends below a tenth of SGD's",
        comparable,
    ),
    Criterion(
        "middle",
        "the middle layers do better than random ones",
        BELOW + " (accuracy gap, middle - random)",
        lower("HTR middle", "HTR random", accuracy_gap),
    ),
    *(
        Criterion(
            "test",
            f"{arm} has a higher test accuracy than SGD",
            "the 95 % interval of the paired differences lies above zero",
            higher(arm, "SGD", lambda run: run["test_accuracy"]),
        )
        for arm in ARMS
        if arm != "SGD"
    ),
    *(
        Criterion(
            "flat",
            f"flatter generalises better {where}: the {words} grows with {name}",
            "the 95 % interval of Spearman's rank correlation, bootstrapped over seeds, lies above zero",
            flatter(name, quantity, centred=centred),
        )
        for words, quantity in GAPS.items()
        for centred, where in ((False, "over all runs"), (True, "within arms"))
        for name in MEASURES
    ),
    *(
        Criterion(
            "trace",
            f"{arm} ends with a lower {name} than SGD",
            "the 95 % interval of the paired differences of its logarithm lies below zero",
            lower(arm, "SGD", log_of(name)),
        )
        for arm in TRACED
        for name in ("trace", "lambda_1")
    ),
)
