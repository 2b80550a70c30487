"""What the experiments on the singularity of the Hessian share: networks, data and starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyhessian_spectra import EmpiricalRisk, HessianOperator
from pyhessian_spectra.problems.datasets import load_data

LOSS = nn.CrossEntropyLoss()
#: An eigenvalue is near zero below this part of the largest.
NEAR_ZERO = 0.01
#: A negative eigenvalue is small below this part of the largest.
SMALL = 0.1


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


def mode(values: Sequence[int] | np.ndarray) -> int:
    """The most frequent of small non-negative integers."""
    return int(np.bincount(np.asarray(values)).argmax())
