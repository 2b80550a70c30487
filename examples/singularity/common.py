"""What the experiments on the singularity of the Hessian share: options, networks, data and starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call

from pyhessian_spectra import EmpiricalRisk, HessianOperator
from pyhessian_spectra.problems.datasets import load_data

LOSS = nn.CrossEntropyLoss()


def parse(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that all experiments have."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="directory for the figures and the numbers")
    parser.add_argument("--fast", action="store_true", help="a small setting that takes seconds, and gives no verdict")
    parser.add_argument("--data", help="MNIST directory; without it scikit-learn's digits stand in")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """``inputs-hidden-hidden-outputs`` with biases and ReLU."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def size(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def unflatten(model: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """Views of a flat vector (n,) by the names of the parameters."""
    named = dict(model.named_parameters())
    parts = flat.split([p.numel() for p in named.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}


def flat_loss(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss as a function of flat parameters, inputs and labels."""
    return lambda flat, x, y: LOSS(functional_call(model, unflatten(model, flat), (x,)), y)


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


def exact_hessian(model: nn.Module, flat: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """The Hessian (n, n) of the mean loss at ``flat`` (n,), in float64."""
    dense = HessianOperator(risk_at(model, flat, data)).to_dense()
    return (dense + dense.T) / 2


def exact_eigenvalues(model: nn.Module, rows: Tensor, data: tuple[Tensor, Tensor]) -> np.ndarray:
    """All eigenvalues of the Hessian at each row of parameters (k, n), ascending in each row."""
    return np.stack([torch.linalg.eigvalsh(exact_hessian(model, flat, data)).numpy() for flat in rows])


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Median and the tenth and ninetieth percentile, for the record."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def mode(values: Sequence[int] | np.ndarray) -> int:
    """The most frequent of small non-negative integers."""
    return int(np.bincount(np.asarray(values)).argmax())


def new_figure(rows: int, columns: int, *, width: float = 8.0, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, shape (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
