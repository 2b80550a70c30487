"""What the experiments on the singularity of the Hessian share: networks, data, starts and how results are written."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk
from pyhessian_spectra.plots.style import theme
from pyhessian_spectra.problems.datasets import load_data

LOSS = nn.CrossEntropyLoss()

#: Below this training loss (nats) a network has learned the blobs; one whose units are all off stays at ln 2 = 0.69.
LEARNED = 0.5


@dataclass(frozen=True)
class Finding:
    """One statement of Sagun, Bottou and LeCun 2016, and whether these numbers agree with it."""

    letter: str
    statement: str
    holds: bool
    evidence: str

    def __str__(self) -> str:
        return f"({self.letter}) {'came out' if self.holds else 'did NOT come out'}: {self.statement} [{self.evidence}]"


def parse(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that all experiments have."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="directory for the figure and the numbers")
    parser.add_argument("--fast", action="store_true", help="a small setting that takes seconds, for tests")
    parser.add_argument("--data", help="MNIST directory; without it scikit-learn's digits stand in")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def write(
    options: argparse.Namespace,
    script: str,
    name: str,
    figure: Figure,
    numbers: dict[str, Any],
    findings: Sequence[Finding],
) -> None:
    """Save ``name.png`` and ``name.json`` with the command that made them, and print what came out."""
    options.out.mkdir(parents=True, exist_ok=True)
    flags = "".join(f" --{flag}" for flag in ("fast",) if getattr(options, flag))
    flags += f" --data {Path(options.data).name.upper()}_DIR" if options.data else ""
    document = {
        "command": f"python examples/singularity/{Path(script).name}{flags} --seed {options.seed}",
        "numbers": numbers,
        "findings": [asdict(finding) for finding in findings],
    }
    (options.out / f"{name}.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    with theme():
        figure.savefig(options.out / f"{name}.png", facecolor="white", dpi=140, metadata={"Software": None})
    for finding in findings:
        print(finding, flush=True)


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """``inputs-hidden-hidden-outputs`` with biases and ReLU."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def size(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def radius(n: int) -> float:
    """Radius of the sphere that starts are drawn from, 0.3 sqrt(n): a root mean square of 0.3."""
    return 0.3 * math.sqrt(n)


def blobs(points: int, std: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two Gaussian blobs of so many points each at (1, 1) and (-1, -1)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(2).repeat_interleave(points)
    return (1.0 - 2 * y)[:, None] + std * torch.randn(2 * points, 2, generator=generator), y


def images(options: argparse.Namespace, count: int) -> tuple[tuple[Tensor, Tensor], str]:
    """Flat training images and labels, and what they are: MNIST from ``--data``, or else digits."""
    dataset = load_data(options.data or "digits", num_examples=count)
    return (dataset.inputs.flatten(1), dataset.targets), dataset.description


def fan_in_start(model: nn.Module, seed: int) -> Tensor:
    """Flat parameters (n,): Gaussian weights of variance 2 / fan-in (He et al. 2015), zero biases."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(p.shape, generator=generator) * math.sqrt(2 / p.shape[1]) if p.dim() == 2 else torch.zeros(p.shape)
        for p in model.parameters()
    ]
    return torch.cat([part.reshape(-1) for part in parts])


def risk_at(model: nn.Module, flat: Tensor, data: tuple[Tensor, Tensor]) -> EmpiricalRisk:
    """The risk in float64 with the parameters ``flat`` (n,) put into the model."""
    model = model.double()
    nn.utils.vector_to_parameters(flat.double(), model.parameters())
    return EmpiricalRisk(model, LOSS, data)


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Median and the tenth and ninetieth percentile, for the record."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def mode(values: Sequence[int] | np.ndarray) -> int:
    """The most frequent of small non-negative integers."""
    return int(np.bincount(np.asarray(values)).argmax())


def new_figure(rows: int, columns: int, *, width: float = 8.0, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    """A figure in the package's look and its axes, shape (rows, columns)."""
    with theme():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)
