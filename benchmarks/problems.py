"""The networks that products and reports are timed on; random data where no directory is given."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk
from pyhessian_spectra.problems import load_data
from pyhessian_spectra.problems.architectures.gpt import GPT
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.problems.architectures.resnet import ResNet
from pyhessian_spectra.problems.losses import cross_entropy


def _images(data: Path | None, folder: str, count: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    if data is not None:
        loaded = load_data(str(data / folder), num_examples=count)
        return loaded.inputs.reshape(count, *shape), loaded.targets
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *shape, generator=generator), torch.randint(10, (count,), generator=generator)


def mlp(data: Path | None) -> EmpiricalRisk:
    """784-256-128-10 on 2,000 MNIST images."""
    torch.manual_seed(0)
    return EmpiricalRisk(MLP([784, 256, 128, 10]), nn.CrossEntropyLoss(), _images(data, "mnist", 2000, (784,)))


def small_mlp(data: Path | None) -> EmpiricalRisk:
    """784-64-64-10 on 128 MNIST images."""
    torch.manual_seed(0)
    return EmpiricalRisk(MLP([784, 64, 64, 10]), nn.CrossEntropyLoss(), _images(data, "mnist", 128, (784,)))


def resnet20_options(doc: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark of ResNet20."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar-10-batches-bin/; else random inputs")
    parser.add_argument("--checkpoint", type=Path, help="a ResNet20 state dict; else random parameters")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    return parser


def resnet20(data: Path | None, state_dict: dict[str, torch.Tensor] | None = None, count: int = 100) -> EmpiricalRisk:
    """ResNet20 on 100 CIFAR-10 images, eval mode."""
    torch.manual_seed(0)
    model = ResNet(
        [3, 3, 3],
        [16, 32, 64],
        channels=3,
        classes=10,
        projection=False,
        stem=3,
        head="linear",
        shortcut_name="shortcut",
    )
    if state_dict is not None:
        model.load_state_dict(state_dict)
    return EmpiricalRisk(model.eval(), nn.CrossEntropyLoss(), _images(data, "cifar-10-batches-bin", count, (3, 32, 32)))


def gpt(data: Path | None) -> EmpiricalRisk:
    """Four layers of width 256, vocabulary 256, 8 sequences of 128 tokens."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (8, 129), generator=generator)
    model = GPT(width=256, layers=4, heads=4, block_size=128)
    return EmpiricalRisk(model, cross_entropy, (tokens[:, :-1], tokens[:, 1:].contiguous()))
