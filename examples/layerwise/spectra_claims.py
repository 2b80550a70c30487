"""What decides the claims on the spectra of layers (Sankar et al. 2020), fixed before the runs."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from examples.experiment import MOST, Criterion, Finding, Judgement, judge
from examples.layerwise.trained import JUDGED, METRICS, NETWORKS
from examples.paired import LEVEL, Paired, paired
from examples.store import Run
from pyhessian_spectra.analysis.metrics import htr_compat

#: A layer is the closest only where the others are farther by more than this part of its distance.
TIE = 0.01
#: Outliers of a layer are "about C" within this many, and a difference is small below this part.
ABOUT, SMALL = 2, 0.01
NAMES = (*(metric.__name__ for metric in METRICS), htr_compat.__name__)


def counted(numbers: dict[str, Any], network: str, rate: float | None = None) -> list[Run]:
    """The network's runs that count, of one step size or of all."""
    return [
        run for run in numbers["runs"] if run["network"] == network and run["counts"] and rate in (None, run["rate"])
    ]


def layers_of(numbers: dict[str, Any], network: str) -> list[str]:
    return list(counted(numbers, network)[0]["checkpoints"][-1]["layers"])


def closest(distances: Sequence[float]) -> int | None:
    """The place of the smallest distance, if none of the others is about as small."""
    first, second = np.argsort(distances)[:2]
    return int(first) if distances[second] > (1 + TIE) * distances[first] else None


def middle_is_closest(network: str, metric: str) -> Judgement:
    """Decides by the layer of the smallest distance in each run's last checkpoint."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        layers = layers_of(numbers, network)
        found = [closest(run["last"]["hessian"][metric]["distances"]) for run in counted(numbers, network)]
        middle = sum(place is not None and 0 < place < len(layers) - 1 for place in found)
        tally = collections.Counter("a tie" if place is None else layers[place] for place in found)
        told = ", ".join(f"{name} in {count}" for name, count in tally.most_common())
        return middle >= MOST * len(found), f"in {middle} of {len(found)} runs; closest: {told}"

    return decide


def u_shaped(network: str, metric: str) -> Judgement:
    """Decides by how far the two ends are above the mean of the middle, against the null, in each run."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        rows = []
        for run in counted(numbers, network):
            found = run["last"]["hessian"][metric]
            first, *middle, last = found["distances"]
            rows.append((first, np.mean(middle), last, np.mean(found["null"])))
        held = sum(min(first, last) - middle > null for first, middle, last, null in rows)
        first, middle, last, null = np.median(rows, axis=0)
        told = f"medians: first {first:.3g}, middle {middle:.3g}, last {last:.3g}, null {null:.2g}"
        return held >= MOST * len(rows), f"in {held} of {len(rows)} runs; {told}"

    return decide


def ratio(
    numbers: dict[str, Any], network: str, rate: float, quantity: str, since: int, layer: str | None = None
) -> Paired:
    """Paired differences of the logarithm of a quantity, the last checkpoint's less that after ``since`` epochs."""
    ends: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for run in counted(numbers, network, rate):
        by_epoch = {each["epoch"]: each for each in run["checkpoints"]}
        for end, epoch in zip(ends, (max(by_epoch), since), strict=True):
            of = by_epoch[epoch] if layer is None else by_epoch[epoch]["layers"][layer]
            end[run["seed"]] = math.log(of[quantity])
    return paired(*ends)


def factor(found: Paired) -> str:
    mean, low, high = np.exp([found.mean, found.lower, found.upper])
    return f"x {mean:.3g} [{low:.3g}, {high:.3g}]"


def falls(network: str, rate: float, quantity: str, since: int, *, layerwise: bool) -> Judgement:
    """Decides by the interval of the paired logarithms of the whole, or by those of all layers."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        parts = layers_of(numbers, network) if layerwise else [None]
        found = {part: ratio(numbers, network, rate, quantity, since, part) for part in parts}
        fallen = sum(each.below for each in found.values())
        told = "; ".join(f"{part} {factor(each)}" if part else factor(each) for part, each in found.items())
        pairs = next(iter(found.values())).pairs
        summary = f"in {fallen} of {len(parts)} layers: " if layerwise else ""
        return fallen == len(parts), f"{summary}{told}, {pairs} pairs"

    return decide


def about_classes(network: str) -> Judgement:
    """Decides by the median number of outliers of each layer, over runs and subsets."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        found = {
            layer: float(np.median([run["last"]["outliers"][layer] for run in counted(numbers, network)]))
            for layer in layers_of(numbers, network)
        }
        told = ", ".join(f"{layer} {middle:g}" for layer, middle in found.items())
        return all(abs(each - numbers["classes"]) <= ABOUT for each in found.values()), f"medians: {told}"

    return decide


def near_gauss_newton(network: str) -> Judgement:
    """Decides by the largest relative distance of any layer; that of the whole is told."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        last = [run["checkpoints"][-1] for run in counted(numbers, network)]
        apart = max(layer["apart"] for each in last for layer in each["layers"].values())
        low, high = (np.median([each["residual"][side] / each["lambda_1"] for each in last]) for side in (0, 1))
        told = f"of the whole, eigenvalues of H - G lie within [{low:.2g}, {high:.2g}] lambda_1 (medians)"
        return apart < SMALL, f"largest of all layers and runs {apart:.2g}; {told}"

    return decide


def _fall_rule(since: int) -> str:
    where = "step 0" if since == 0 else f"epoch {since}"
    return f"the paired {LEVEL:.0%} interval over seeds of the logarithm, last epoch less {where}, lies below zero"


def criteria_of(network: str) -> tuple[Criterion, ...]:
    """All criteria on one network."""
    rates, (start, early) = NETWORKS[network].rates, NETWORKS[network].kept[:2]
    words = {"lambda_1": "lambda_1", "trace": "the trace"}
    return (
        *(
            Criterion(
                "middle",
                f"{network}: by {metric}, a middle layer's spectrum is the closest to the whole",
                f"neither the first nor the last layer has the smallest distance, and no other is within {TIE:.0%} of "
                f"it, in {MOST:.0%} of the runs (last checkpoint, both steps)",
                middle_is_closest(network, metric),
            )
            for metric in NAMES
        ),
        *(
            Criterion(
                "U-shape",
                f"{network}: by {metric}, distance against depth is U-shaped",
                "first and last layer are both farther from the whole than the middle ones on average, by more than "
                f"the mean null, in {MOST:.0%} of the runs (last checkpoint, both steps)",
                u_shaped(network, metric),
            )
            for metric in NAMES
        ),
        *(
            Criterion(
                "falls, layers" if layerwise else "falls",
                f"{network}, step {rate:g}: {words[quantity]} {'of every layer ' * layerwise}falls from "
                f"{'step 0' if since == 0 else f'epoch {since}'} to the end",
                _fall_rule(since) + ", for each layer" * layerwise,
                falls(network, rate, quantity, since, layerwise=layerwise),
            )
            for layerwise in (False, True)
            for quantity in words
            for since in (start, early)
            for rate in rates
        ),
        Criterion(
            "outliers",
            f"{network}: each layer has about C outliers",
            f"the median number of eigenvalues above the bulk (split_bulk), over runs and subsets, is C +- {ABOUT} in "
            "every layer",
            about_classes(network),
        ),
        Criterion(
            "G",
            f"{network}: G_l is close to H_l",
            f"||H_ll - G_ll||_F / ||H_ll||_F is below {SMALL:.0%} in every layer of every run (last checkpoint). "
            "Networks that are piecewise linear in each layer have zero, so that nothing else could come out",
            near_gauss_newton(network),
        ),
    )


def verdicts(numbers: dict[str, Any], *, fast: bool) -> list[Finding]:
    """What became of the criteria; each network stands for itself."""
    found = []
    for name in JUDGED:
        fewest = min(len(counted(numbers, name, rate)) for rate in NETWORKS[name].rates)
        found += judge(criteria_of(name), numbers, fast=fast, fewest=fewest)
    return found
