"""One training run whose last layers are re-initialised after each epoch, and what is measured on the way."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyhessian_spectra.problems.datasets import load_data
from pyhessian_spectra.regularisers import CurvatureReinitializer

LOSS = nn.CrossEntropyLoss()
#: Rate and momentum of SGD, and images a step; the paper states none of them.
RATE, MOMENTUM, BATCH = 0.05, 0.9, 128
#: What is measured of each epoch, before and after its reset.
CURVES = tuple(f"{part}_{what}" for part in ("train", "test") for what in ("loss", "accuracy"))
SELECTIONS = ("top", "bottom", "random")


@dataclass(frozen=True)
class Setting:
    """The problem that all runs share: MNIST (or digits), a rectifier network, so many epochs."""

    data: str
    hidden: tuple[int, ...] = (1000, 1000, 500, 200)
    images: int = 10_000
    epochs: int = 30
    scored: int = 1000  # images that the Hessian sees, the first ones, unless an arm says otherwise
    pooled: tuple[int, int] = (100, 20)  # images that the Hessians of the last two and three layers see
    pooled_seeds: int = 3  # of which three layers are pooled


@dataclass(frozen=True)
class Arm:
    """What is done after each epoch: nothing where ``choices`` is None, else a reset with these choices."""

    seeds: int
    choices: Mapping[str, Any] | None = None
    scored: int | None = None  # images that the Hessian sees; 0 for the last minibatch


MAIN = ("plain", "top 10", "random 10", "diagonal 10", "top 20", "top 30")

#: Seeds and choices of each arm; those after the first six are sweeps, which no verdict is given on.
ARMS: dict[str, Arm] = {
    "plain": Arm(8),
    "top 10": Arm(8, {"k": 10}),
    "random 10": Arm(8, {"k": 10, "select": "random"}),
    "diagonal 10": Arm(5, {"k": 10, "score": "diagonal"}),
    "top 20": Arm(5, {"k": 20}),
    "top 30": Arm(5, {"k": 30}),
    "top 10, uniform": Arm(3, {"k": 10, "init": "uniform"}),
    "top 10, Xavier": Arm(3, {"k": 10, "init": "xavier"}),
    "top 10, columns": Arm(3, {"k": 10, "unit": "column"}),
    "top 10, rows": Arm(3, {"k": 10, "unit": "row"}),
    "top 10, last minibatch": Arm(3, {"k": 10}, scored=0),
    "top 10, last 2 layers": Arm(3, {"k": 10, "layers": 2}, scored=100),
    "diagonal 10, last 3 layers": Arm(3, {"k": 10, "layers": 3, "score": "diagonal"}),
    "bottom 10": Arm(3, {"k": 10, "select": "bottom"}),
}


@functools.cache
def images(setting: Setting) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
    """Flat training and test images with labels, and what they are."""
    train = load_data(setting.data, num_examples=setting.images)
    test = load_data(setting.data, split="test")
    return (train.inputs.flatten(1), train.targets), (test.inputs.flatten(1), test.targets), train.description


def network(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    """Linear layers with rectifiers between them, as torch draws them from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def train(run: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """One run of an arm from a seed: its curves, and of a plain one what zeroing weights of its end does.

    Arms share the start and the order of the data by seed. The layers below those that are reset are the same before
    and after, so that their outputs are the data of both measurements and of the scores: these are of the layers
    above them alone, and exactly those of the whole network.
    """
    arm, seed = ARMS[run["arm"]], int(run["seed"])
    (x, y), (x_test, y_test), _ = images(setting)
    model = network((x.shape[1], *setting.hidden, int(y.max()) + 1), seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    order = torch.Generator().manual_seed(seed)
    choices = dict(arm.choices or {})
    cut = len(model) - 2 * choices.get("layers", 1) + 1
    body, head = model[:cut], model[cut:]
    reset = arm.choices and CurvatureReinitializer(
        head, LOSS, **choices, optimizer=optimizer, generator=torch.Generator().manual_seed(seed)
    )
    curves: dict[str, list[list[float]]] = {"before": [], "after": []}
    for _ in range(setting.epochs):
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            optimizer.zero_grad()
            LOSS(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            features = [(body(x), y), (body(x_test), y_test)]
        curves["before"].append(_measured(head, features))
        if reset:
            seen = batch if arm.scored == 0 else slice(arm.scored or setting.scored)
            reset.step((features[0][0][seen], y[seen]))
        curves["after"].append(_measured(head, features) if reset else curves["before"][-1])
        if not np.isfinite(curves["after"][-1]).all():
            break
    found: dict[str, Any] = {
        f"{when}_{name}": list(values)
        for when, rows in curves.items()
        for name, values in zip(CURVES, zip(*rows, strict=True), strict=True)
    }
    if not reset:
        found |= {
            "zeroed": _zeroed(head, features, setting.scored, seed),
            "overlap": _overlaps(model, x, y, seed, setting),
        }
    return found


@torch.no_grad()
def _measured(head: nn.Module, features: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Loss and accuracy on the training and on the test images, in the order of ``CURVES``."""
    found = []
    for inputs, labels in features:
        outputs = head(inputs)
        found += [float(LOSS(outputs, labels)), float((outputs.argmax(dim=1) == labels).float().mean())]
    return [float(f"{value:.7g}") for value in found]


def _zeroed(head: nn.Module, features: list[tuple[Tensor, Tensor]], scored: int, seed: int) -> dict[str, Any]:
    """What zeroing the top, the bottom and a random k per cent of the last layer does to each of ``CURVES``."""
    start, found = np.array(_measured(head, features)), dict[str, Any]()
    data = tuple(t[:scored] for t in features[0])
    for select in SELECTIONS:
        for k in (10, 20, 30):
            other = copy.deepcopy(head)
            generator = torch.Generator().manual_seed(seed)
            CurvatureReinitializer(other, LOSS, k=k, select=select, generator=generator).step(data)
            change = np.array(_measured(other, features)) - start
            found[f"{select} {k}"] = dict(zip(CURVES, change.tolist(), strict=True))
    return found


def _overlaps(model: nn.Sequential, x: Tensor, y: Tensor, seed: int, setting: Setting) -> dict[str, Any]:
    """Which share of the weights that one score chooses another does too, on the same images."""
    exact = _chosen(model, x, y, setting.scored, layers=1)
    found: dict[str, Any] = {
        "exact, diagonal": _shared(exact, _chosen(model, x, y, setting.scored, layers=1, score="diagonal")),
        "exact, fewer images": _shared(exact, _chosen(model, x, y, BATCH, layers=1)),
    }
    for layers, count in zip((2, 3), setting.pooled, strict=True):
        if layers == 3 and seed >= setting.pooled_seeds:
            continue
        sums, means = (
            _chosen(model, x, y, count, layers=layers, score=score, scope="pooled") for score in ("sum", "mean")
        )
        found[f"pooled over {layers} layers, sum, mean"] = _shared(sums, means)
        for score, chosen in (("sum", sums), ("mean", means)):
            sizes = {name: len(c) for name, c in chosen.items()}
            found[f"pooled over {layers} layers, {score}, share of last layer"] = list(sizes.values())[-1] / sum(
                sizes.values()
            )
    return found


def _chosen(model: nn.Sequential, x: Tensor, y: Tensor, count: int, **choices: Any) -> Mapping[str, Tensor]:
    """The coordinates that ten per cent by these choices are, of a copy of the last layers."""
    cut = len(model) - 2 * choices["layers"] + 1
    with torch.no_grad():
        data = (model[:cut](x[:count]), y[:count])
    return CurvatureReinitializer(copy.deepcopy(model[cut:]), LOSS, k=10, **choices).step(data).coordinates


def _shared(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The share of the first coordinates that are among the second."""
    common = sum(int(torch.isin(first[name], second[name]).sum()) for name in first)
    return common / sum(len(c) for c in first.values())
