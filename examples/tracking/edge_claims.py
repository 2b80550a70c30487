"""What Cohen et al. (2021, 2022) say of the edge of stability, and what decides whether it came out."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.experiment import MOST, Criterion
from examples.store import Run

#: Sharpness "hovers" at the edge if its median there is within these multiples of it.
HOVERS = (0.9, 1.25)
#: Records at the edge that are needed to say so.
FEW = 5
#: With cross-entropy the curvature vanishes as data are fitted: below this share of the loss at the edge is after.
FITTED = 0.2


def living(numbers: dict[str, Any], *optimizers: str) -> list[Run]:
    """Runs of these optimisers whose loss is finite, and lower at the end than at the beginning; no others count."""
    runs = [run for run in numbers["runs"] if run["optimizer"] in optimizers]
    return [run for run in runs if not run["ended"] and run["losses"][-1] < run["losses"][0]]


def fewest(numbers: dict[str, Any]) -> int:
    """The smallest number of living runs of one optimiser."""
    return min(len(living(numbers, name)) for name in ("gradient descent", "momentum", "Adam"))


def ratios(run: Run) -> np.ndarray:
    """Sharpness over the edge, at each record."""
    return np.array(run["values"]) / np.array(run["thresholds"])


def reached(run: Run) -> int | None:
    """The first record at the edge or above it."""
    at = np.flatnonzero(ratios(run) >= 1)
    return int(at[0]) if len(at) else None


def hovering(run: Run) -> np.ndarray:
    """Sharpness over the edge after it was reached, as long as the data are not fitted."""
    first = reached(run)
    if first is None:
        return np.empty(0)
    losses = np.array([run["losses"][step - 1] for step in run["steps"]])
    return ratios(run)[first + 1 :][losses[first + 1 :] >= FITTED * losses[first]]


def _share(held: int, count: int, told: str) -> tuple[bool, str]:
    return count > 0 and held >= MOST * count, f"{held} of {count} runs{told}"


def sharpens(numbers: dict[str, Any]) -> tuple[bool, str]:
    """Below the edge, from the first record to the last one before it."""
    held, growth = 0, []
    runs = [run for run in living(numbers, "gradient descent") if reached(run) not in (0, 1)]
    for run in runs:
        last = (reached(run) or len(run["values"])) - 1
        errors = run["errors"][0] + run["errors"][last]
        held += run["values"][last] - run["values"][0] > errors
        growth.append(run["values"][last] / run["values"][0])
    told = f", by a factor of {np.median(growth):.2g} (median)" if growth else ""
    return _share(held, len(runs), told)


def hovers(numbers: dict[str, Any], optimizer: str) -> tuple[bool, str]:
    """The median of sharpness over the edge, once it was reached."""
    each = [at for run in living(numbers, optimizer) if len(at := hovering(run)) >= FEW]
    medians = [float(np.median(at)) for at in each]
    told = f"; medians {min(medians):.2f} to {max(medians):.2f} of the edge" if medians else ""
    return _share(sum(HOVERS[0] <= median <= HOVERS[1] for median in medians), len(medians), told)


def misbehaves(numbers: dict[str, Any]) -> tuple[bool, str]:
    """Whether single steps raise the loss, before the edge and after it."""
    held, before, after = 0, [], []
    runs = [run for run in living(numbers, "gradient descent") if len(hovering(run)) >= FEW]
    for run in runs:
        step = run["steps"][max(0, (reached(run) or 0) - 1)]  # the last record below the edge
        rises = np.diff(run["losses"]) > 0
        before.append(int(rises[: step - 1].sum()))
        after.append(float(rises[step:].mean()))
        held += before[-1] == 0 and bool(rises[step:].any()) and run["losses"][-1] < run["losses"][step - 1]
    told = f"; {sum(before)} steps raised it before the edge, {np.median(after):.0%} after (median)" if runs else ""
    return _share(held, len(runs), told)


_HOVERS = (
    f"of the living runs with at least {FEW} records after the first at the edge (as long as the loss is at least "
    f"{FITTED:g} of that at the edge), in {MOST:.0%} the median of sharpness over the edge is within {HOVERS[0]:g} to "
    f"{HOVERS[1]:g}"
)

CRITERIA = (
    Criterion(
        "progressive sharpening",
        "Below the edge, gradient descent moves to sharper places",
        "of the living runs with two records below the edge, in "
        f"{MOST:.0%} the last one there exceeds the first by more than both errors",
        sharpens,
    ),
    Criterion(
        "edge of stability",
        "Once at 2 / lr, the sharpness hovers there",
        _HOVERS,
        lambda numbers: hovers(numbers, "gradient descent"),
    ),
    Criterion(
        "edge of stability",
        "Below the edge the loss falls in each step; at it the loss falls over many steps, but not in each",
        f"of the same runs, in {MOST:.0%} no step before the last record below the edge raises the training loss, some "
        "step after it does, and the last loss is below that at the edge",
        misbehaves,
    ),
    Criterion(
        "momentum",
        "With heavy-ball momentum it hovers at (2 + 2 momentum) / lr",
        _HOVERS,
        lambda numbers: hovers(numbers, "momentum"),
    ),
    Criterion(
        "Adam",
        "With Adam the preconditioned sharpness hovers at 38 / lr",
        _HOVERS,
        lambda numbers: hovers(numbers, "Adam"),
    ),
)
