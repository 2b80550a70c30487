"""What is counted of runs that re-initialise weights, and what decides the claims about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.experiment import Criterion, Judgement
from examples.layerwise.resetting import CURVES
from examples.paired import LEVEL, Paired, paired

#: A run is dead if its test accuracy before the last reset is below this, in per cent, or a loss is not finite.
ALIVE = 50.0
#: Epochs at the end that "ends with" is the mean of, and the fall of accuracy between epochs, in points, that counts.
LAST, FALL = 5, 1.0
#: Test accuracies in per cent that convergence is timed by.
LEVELS = (95, 96, 97)

RULE = (
    f"a run is dead if its test accuracy at the last epoch is below {ALIVE:g} % or a loss is not finite; dead runs "
    f"count in no pair. Measured before each reset; final values are means of the last {LAST} epochs; a run that never "
    "reaches an accuracy counts as reaching it one epoch after the last"
)


def summary(found: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """What the criteria are about, of one run; accuracies, gaps and areas in per cent, from ``CURVES``."""
    curve = {f"{when}_{name}": np.array(found[f"{when}_{name}"]) for when in ("before", "after") for name in CURVES}
    test, trained = 100 * curve["before_test_accuracy"], 100 * curve["before_train_accuracy"]
    reached = {str(level): np.flatnonzero(test >= level) for level in LEVELS}
    if test[-1] < ALIVE or not all(np.isfinite(each).all() for each in curve.values()):
        return {"dead": True}
    return {
        "dead": False,
        "accuracy": float(test[-LAST:].mean()),
        "accuracy_after": float(100 * curve["after_test_accuracy"][-LAST:].mean()),
        "area": float(test.mean()),
        "gap": float((trained - test)[-LAST:].mean()),
        "loss_gap": float((curve["before_test_loss"] - curve["before_train_loss"])[-LAST:].mean()),
        "train_loss": float(curve["before_train_loss"][-LAST:].mean()),
        "test_loss": float(curve["before_test_loss"][-LAST:].mean()),
        "falls": int((np.diff(test) < -FALL).sum()),
        "reset_costs": float(100 * (curve["before_test_accuracy"] - curve["after_test_accuracy"]).mean()),
        "epochs_to": {level: int(where[0]) + 1 if len(where) else epochs + 1 for level, where in reached.items()},
    }


def values(numbers: dict[str, Any], arm: str, quantity: str) -> dict[int, float]:
    """One quantity of an arm's counted runs by seed; ``epochs_to 95`` is an entry of ``epochs_to``."""
    name, _, entry = quantity.partition(" ")
    runs = {int(seed): run for seed, run in numbers["arms"][arm].items() if not run["dead"]}
    return {seed: float(run[name][entry] if entry else run[name]) for seed, run in runs.items()}


def apart(numbers: dict[str, Any], arm: str, other: str, quantity: str) -> Paired:
    """The paired difference of two arms."""
    return paired(values(numbers, arm, quantity), values(numbers, other, quantity))


def differs(arm: str, other: str, quantity: str, *more: str, higher: bool) -> Judgement:
    """Decides by the interval of one quantity; others are told."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        each = {name: apart(numbers, arm, other, name) for name in (quantity, *more)}
        told = "; ".join(f"{name.replace('_', ' ')} {found}" for name, found in each.items())
        return each[quantity].above if higher else each[quantity].below, told

    return decide


def faster(numbers: dict[str, Any]) -> tuple[bool, str]:
    last, holds, told = numbers["epochs"], [], []
    for level in LEVELS:
        plain, top = (values(numbers, arm, f"epochs_to {level}") for arm in ("plain", "top 10"))
        difference = paired(top, plain)
        reached = [sum(v <= last for v in each.values()) for each in (plain, top)]
        told.append(f"{level} %: {difference}, reached by {reached[0]} of {len(plain)} and {reached[1]} of {len(top)}")
        if 2 * reached[0] >= len(plain):
            holds.append(difference.below)
    return bool(holds) and all(holds), "; ".join(told)


def no_impact(numbers: dict[str, Any]) -> tuple[bool, str]:
    rise = {
        select: {int(seed): each[f"{select} 10"] for seed, each in numbers["zeroed"].items()}
        for select in ("top", "random", "bottom")
    }
    losses = {select: {seed: each["train_loss"] for seed, each in found.items()} for select, found in rise.items()}
    difference = paired(losses["top"], losses["random"])
    told = ", ".join(
        f"{select} {np.mean(list(losses[select].values())):+.3g} "
        f"(test accuracy {100 * np.mean([each['test_accuracy'] for each in found.values()]):+.2f} points)"
        for select, found in rise.items()
    )
    return not difference.above, f"mean rise of the training loss: {told}; top - random {difference}"


INTERVAL = f"the paired {LEVEL:.0%} interval over seeds"
CRITERIA = (
    Criterion(
        "accuracy",
        "k = 10 ends with a higher accuracy than plain training",
        f"{INTERVAL} of the final test accuracy lies above zero",
        differs("top 10", "plain", "accuracy", "accuracy_after", higher=True),
    ),
    Criterion(
        "area",
        "k = 10 has more area under the accuracy curve than plain training",
        f"{INTERVAL} of the test accuracy's mean over all epochs lies above zero",
        differs("top 10", "plain", "area", higher=True),
    ),
    Criterion(
        "control",
        "k = 10 ends with a higher accuracy than a random 10 % re-initialised",
        f"{INTERVAL} of the final test accuracy lies above zero",
        differs("top 10", "random 10", "accuracy", "area", higher=True),
    ),
    Criterion(
        "faster",
        "k = 10 converges faster than plain training",
        f"{INTERVAL} of the epochs to a test accuracy lies below zero, for each of {', '.join(map(str, LEVELS))} % "
        "that half of the plain runs reach",
        faster,
    ),
    Criterion(
        "minimum",
        "k = 10 reaches a better minimum than plain training",
        f"{INTERVAL} of the final training loss lies below zero",
        differs("top 10", "plain", "train_loss", "test_loss", higher=False),
    ),
    Criterion(
        "regularises",
        "k = 10 has a smaller gap than plain training",
        f"{INTERVAL} of the final gap between training and test accuracy lies below zero",
        differs("top 10", "plain", "gap", "loss_gap", higher=False),
    ),
    Criterion(
        "regularises",
        "k = 20 has a smaller gap than plain training",
        f"{INTERVAL} of the final gap between training and test accuracy lies below zero",
        differs("top 20", "plain", "gap", "loss_gap", "accuracy", higher=False),
    ),
    Criterion(
        "unstable",
        "k = 30 is unstable",
        f"{INTERVAL} of the number of falls of test accuracy by more than {FALL:g} point from one epoch to the next, "
        "against plain training, lies above zero",
        differs("top 30", "plain", "falls", "accuracy", higher=True),
    ),
    Criterion(
        "impact",
        "weights of a high score have no impact",
        "zeroing the top 10 % of the last layer at the end of each plain run raises the training loss no more than "
        f"zeroing a random 10 %: {INTERVAL} does not lie above zero",
        no_impact,
    ),
    Criterion(
        "exact",
        "the exact Hessian is better than its diagonal",
        f"{INTERVAL} of the final test accuracy, sums of exact rows against the diagonal, lies above zero",
        differs("top 10", "diagonal 10", "accuracy", "area", higher=True),
    ),
)
