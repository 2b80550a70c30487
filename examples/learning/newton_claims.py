"""What decides the claims about Newton's method that examples/learning/newton.py tries out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from examples.experiment import MOST, Criterion

#: The row of the document's table that it calls epoch 40: both losses and both reductions, as printed there.
ROW = ("0.0893", "0.0003", "38.2", "99.8")
CALLED, IS = 40, 30
#: Per update: (1 - lr 2/25)^2 and (1 - lr)^2 with lr 0.1.
GRADIENT_DESCENT, NEWTON = 0.984064, 0.81
#: Numbers that are equal but for rounding: float64's eps is 2e-16, and 40 updates and 25 entries add theirs.
ROUNDING = 1e-11


def row_at(numbers: dict[str, Any], iteration: int) -> tuple[str, ...]:
    """The losses and reductions after an iteration from the document's start, as its table prints them."""
    run = numbers["example"]["runs"][0]
    losses = [run[name] for name in ("gradient descent", "Newton")]
    reductions = [100 * (1 - each[iteration] / each[0]) for each in losses]
    return tuple(f"{each[iteration]:.4f}" for each in losses) + tuple(f"{each:.1f}" for each in reductions)


def row_is_at(iteration: int) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        run = numbers["example"]["runs"][0]
        first, last = zip(
            *((run[name][0], run[name][iteration]) for name in ("gradient descent", "Newton")), strict=True
        )
        down = [1 - end / start for start, end in zip(first, last, strict=True)]
        told = f"losses {last[0]:.5f} and {last[1]:.3g}, reductions {down[0]:.1%} and {down[1]:.2%}".replace("%", " %")
        return row_at(numbers, iteration) == ROW, told

    return decide


def _largest(key: str) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    """The judgement that a difference is rounding at every start."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        found = [run[key] for run in numbers["example"]["runs"]]
        return max(found) <= ROUNDING, f"at most {max(found):.1e} in {len(found)} starts"

    return decide


def same_hessians(numbers: dict[str, Any]) -> tuple[bool, str]:
    apart, exact = (
        max(run[key] for run in numbers["example"]["runs"]) for key in ("hessians_apart", "hessian_from_exact")
    )
    return max(apart, exact) <= ROUNDING, f"{apart:.1e} from one another, {exact:.1e} from (2/25) I"


def ratios(numbers: dict[str, Any]) -> tuple[bool, str]:
    wanted, told, holds = {"gradient descent": GRADIENT_DESCENT, "Newton": NEWTON}, [], True
    for name, value in wanted.items():
        low = min(run[f"{name} ratios"][0] for run in numbers["example"]["runs"])
        high = max(run[f"{name} ratios"][1] for run in numbers["example"]["runs"])
        holds &= max(abs(low / value - 1), abs(high / value - 1)) <= ROUNDING
        told.append(f"{name} {low:.9g} to {high:.9g}")
    return holds, "; ".join(told)


def one_step(numbers: dict[str, Any]) -> tuple[bool, str]:
    left = [run["one_step"][1] / run["one_step"][0] for run in numbers["example"]["runs"]]
    return max(left) <= ROUNDING**2, f"at most {max(left):.1e} of the loss is left, in {len(left)} starts"


def adapts(name: str) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        found = numbers["conditioning"][name]["times"]
        worst = max(abs(each - 1) for each in found)
        return worst <= ROUNDING, f"{min(found):.6g} to {max(found):.6g} times that part, in {len(found)} starts"

    return decide


def not_slowed(name: str) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        medians = {key: float(np.median(each[name])) for key, each in numbers["conditioning"]["updates"].items()}
        told = ", ".join(f"{updates:g} at {condition}" for condition, updates in medians.items())
        return max(medians.values()) == min(medians.values()), f"median updates {told}"

    return decide


def leaves(name: str) -> Callable[[dict[str, Any]], tuple[bool, str]]:
    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        distances = np.linalg.norm(numbers["saddle"][name], axis=2)
        times = distances[:, -1] / distances[:, 0]
        gone = int((times > 1).sum())
        told = f"in {gone} of {len(times)} starts; the distance is multiplied by {times.min():.3g} to {times.max():.3g}"
        return gone >= MOST * len(times), told

    return decide


LEAVES = f"from {MOST:.0%} of the starts the distance to the saddle is larger after 40 updates than before"
SAME = "the median number of updates to a millionth of the loss is the same at all condition numbers"
ALIKE = (
    f"at condition 100 the first step goes the same part of the way in the steep coordinate as in the flat one, to "
    f"{ROUNDING:g}, at every start"
)
CRITERIA = (
    Criterion(
        "row",
        "the row that the document calls epoch 40 is iteration 40",
        f"from its start losses and reductions print as there: {ROW[0]}, {ROW[1]}, {ROW[2]} % and {ROW[3]} %",
        row_is_at(CALLED),
    ),
    Criterion(
        "row",
        "that row is iteration 30",
        "from its start losses and reductions print as there",
        row_is_at(IS),
    ),
    Criterion(
        "rate",
        "gradient descent multiplies the loss by .984064 an update, Newton's method by .81",
        f"each of 40 updates does, to {ROUNDING:g}, at every start",
        ratios,
    ),
    Criterion(
        "loops",
        "the Hessian built entry by entry, the operator's and (2/25) I are the same",
        f"all entries at every start, to {ROUNDING:g} of the largest",
        same_hessians,
    ),
    Criterion(
        "loops",
        "so are the trajectories with the Hessian built entry by entry and of the optimiser",
        f"all 40 points at every start, to {ROUNDING:g} of their norm",
        _largest("by loops apart"),
    ),
    Criterion(
        "one step",
        "with lr 1 Newton's method needs one step",
        f"at most {ROUNDING**2:g} of the loss is left, at every start",
        one_step,
    ),
    Criterion(
        "control",
        "gradient descent with lr 1.25 takes Newton's steps, so that the example compares two lengths of one step",
        f"all 40 points at every start, to {ROUNDING:g} of their norm",
        _largest("longer steps apart"),
    ),
    Criterion("curvature", "Newton's step adapts to curvature", ALIKE, adapts("Newton")),
    Criterion("curvature", "gradient descent's step adapts to curvature", ALIKE, adapts("gradient descent")),
    Criterion("curvature", "Newton's method is not slowed down by the condition number", SAME, not_slowed("Newton")),
    Criterion(
        "curvature",
        "gradient descent with its best step is not slowed down by the condition number",
        SAME,
        not_slowed("gradient descent"),
    ),
    Criterion("saddle", "Newton's method avoids the saddle of x^2 - y^2", LEAVES, leaves("Newton")),
    Criterion("saddle", "with the absolute value of H in place of H it does", LEAVES, leaves("Newton, |H|")),
    Criterion("saddle", "gradient descent does", LEAVES, leaves("gradient descent")),
)
