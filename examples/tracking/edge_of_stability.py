"""The edge of stability (Cohen et al. 2021, 2022): sharpness along full-batch training, and what optimisers bear.

python -m examples.tracking.edge_of_stability --data CIFAR_DIR --out docs/results/tracking
"""

from __future__ import annotations

import functools
import itertools
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.experiment import judge, new_figure, parse, write
from examples.store import Run, run_all
from examples.tracking.edge_claims import CRITERIA, fewest
from pyhessian_spectra.plots import plot_track
from pyhessian_spectra.plots.style import theme
from pyhessian_spectra.problems import load_data
from pyhessian_spectra.tracking import Eigenvalues, Measured, PreconditionedEigenvalues, Record, SpectrumTracker, Track

CLASSES, BATCHES = 10, 10
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}

#: Rates, from trials with another seed in which only the initial sharpness and its growth were looked at.
RATES = {
    ("tanh", "cross-entropy", "gradient descent"): (0.2, 0.1, 1 / 15),
    ("relu", "cross-entropy", "gradient descent"): (0.2, 0.1, 1 / 15),
    ("tanh", "squared error", "gradient descent"): (2 / 27, 2 / 30, 2 / 35),
    ("relu", "squared error", "gradient descent"): (2 / 10, 2 / 12, 2 / 15),
    ("tanh", "cross-entropy", "momentum"): (0.2, 0.1, 0.05),
    ("tanh", "cross-entropy", "Adam"): (1e-3, 5e-4, 3e-4),
    # added when those with cross-entropy, which fit the data within 300 steps, had been seen
    ("relu", "squared error", "momentum"): (3.8 / 12, 3.8 / 15, 3.8 / 20),
    ("relu", "squared error", "Adam"): (1e-3, 5e-4, 3e-4),
}


@dataclass(frozen=True)
class Setting:
    """How large the experiment is."""

    images: int = 5000
    pooling: int = 2
    width: int = 200
    steps: int = 600
    every: int = 10


PAPER = Setting(pooling=1, steps=5000)
FAST = Setting(images=300, pooling=1, width=20, steps=40, every=10)


@functools.cache
def images(data: str | None, setting: Setting) -> tuple[Tensor, Tensor, str]:
    """Standardised images (N, pixels), averaged over squares, and labels; without data the digits."""
    found = load_data(data or "digits", num_examples=setting.images)
    x = F.avg_pool2d(found.inputs, setting.pooling).flatten(1) if data else found.inputs
    return x, found.targets, found.description


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance to the classes' unit vectors, on average over examples."""
    return ((outputs - targets) ** 2).sum(dim=1).mean() / 2


def once(run: Run, *, data: str | None, setting: Setting) -> Run:
    """Train one network on all images at once, and follow its sharpness."""
    x, labels, _ = images(data, setting)
    squared = run["loss"] == "squared error"
    y = F.one_hot(labels, CLASSES).to(x.dtype) if squared else labels
    loss_fn = squared_error if squared else nn.CrossEntropyLoss()
    with torch.random.fork_rng():
        torch.manual_seed(run["seed"])
        activation, sizes = ACTIVATIONS[run["activation"]], (x.shape[1], setting.width, setting.width, CLASSES)
        layers = [[nn.Linear(a, b), activation()] for a, b in itertools.pairwise(sizes)]
        model = nn.Sequential(*[module for pair in layers for module in pair][:-1])
    optimizer = _optimizer(run, model)
    quantities = [Eigenvalues(), *([PreconditionedEigenvalues()] if run["optimizer"] == "Adam" else [])]
    probe = list(zip(x.chunk(BATCHES), y.chunk(BATCHES), strict=True))
    tracker = SpectrumTracker(model, loss_fn, probe, every=setting.every, budget=None, quantities=quantities)
    losses = []
    for _ in range(setting.steps):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        record = tracker.step(optimizer, loss=loss)
        if record is not None and record.ended:
            break
    name = "sharpness_1" if run["optimizer"] == "Adam" else "lambda_1"
    found = [(record, record.get(name)) for record in tracker.track.records]
    rows = [(record, each) for record, each in found if each is not None]
    return {
        "steps": [record.step for record, _ in rows],
        "thresholds": [record.threshold for record, _ in rows],
        "values": [each.value for _, each in rows],
        "errors": [each.error for _, each in rows],
        "data_errors": [each.data_error for _, each in rows],
        "kinds": [each.kind for _, each in rows],
        "converged": [each.converged for _, each in rows],
        "products": [record.products for record, _ in rows],
        "formula": rows[0][0].formula if rows else "",
        "losses": losses,
        "accuracy": float((model(x).argmax(dim=1) == labels).double().mean()),
        "ended": tracker.track.records[-1].ended,
    }


def _optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    if run["optimizer"] == "Adam":
        return torch.optim.Adam(model.parameters(), lr=run["lr"])
    return torch.optim.SGD(model.parameters(), lr=run["lr"], momentum=0.9 if run["optimizer"] == "momentum" else 0.0)


@theme()
def main(argv: list[str] | None = None) -> None:
    """Train all networks, judge, draw."""

    def more(parser: ArgumentParser) -> None:
        parser.add_argument("--full", action="store_true", help="images and numbers of steps as in the paper")

    options = parse(__doc__, argv, more)
    setting = FAST if options.fast else PAPER if options.full else Setting()
    runs = [
        {"activation": activation, "loss": loss, "optimizer": optimizer, "lr": lr, "seed": options.seed}
        for (activation, loss, optimizer), rates in RATES.items()
        for lr in rates
    ]
    task = functools.partial(once, data=options.data, setting=setting)
    store = options.out / f"edge_of_stability{'_fast' * options.fast}.jsonl"
    found = run_all(task, runs, store)
    numbers = {
        "data": images(options.data, setting)[2],
        "setting": asdict(setting),
        "runs": [run | each for run, each in zip(runs, found, strict=True)],
    }
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=fewest(numbers), enough=3)
    shortened = (
        f"images averaged over {setting.pooling}x{setting.pooling} pixels and {setting.steps} steps of each run, not "
        "32x32 and until the data are fitted; two hidden layers of 200 as published; one seed, since training on all "
        "images at once has no other randomness; momentum and Adam with squared error were added when those with "
        "cross-entropy had been seen to fit the data within 300 steps"
    )
    figures = {"edge_of_stability": draw(numbers)}
    flags = " --full" * options.full
    write(options, __file__, numbers, findings, figures, {}, shortened=shortened, flags=flags)


def track_of(run: Run) -> Track:
    """The record of one run, to be drawn."""
    name = "sharpness_1" if run["optimizer"] == "Adam" else "lambda_1"
    columns = ("steps", "values", "errors", "kinds", "data_errors", "converged", "thresholds")
    records = [
        Record(step, (Measured(name, value, error, kind, "", data, converged),), threshold, run["formula"])
        for step, value, error, kind, data, converged, threshold in zip(*(run[key] for key in columns), strict=True)
    ]
    return Track({}, records)


def draw(numbers: dict[str, Any]) -> Figure:
    """A panel for each network, loss and optimiser: sharpness along training, and the edge of each rate, dashed."""
    figure, axes = new_figure(4, 2, width=8.0, height=11.0)
    for ax, (activation, loss, optimizer) in zip(axes.flat, RATES, strict=True):
        runs = [
            run
            for run in numbers["runs"]
            if (run["activation"], run["loss"], run["optimizer"]) == (activation, loss, optimizer) and run["steps"]
        ]
        plot_track({f"lr = {run['lr']:.3g}": track_of(run) for run in runs}, ax=ax)
        ax.set_xlabel(f"Step of {optimizer}: {activation}, {loss}")
    return figure


if __name__ == "__main__":
    main()
