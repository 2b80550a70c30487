"""The ResNet without BatchNorm of Zhang et al. (2017) on CIFAR-10: Adam, Hessian-free and block-diagonal Hessian-free.

python -m examples.learning.resnet --data CIFAR_DIR --out docs/results/learning
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from examples.learning.compare import run_task
from examples.learning.models import RESNET_BLOCKS, ResNet
from examples.learning.trainers import FAST, Data, Setting, Task
from pyhessian_spectra.problems import load_data

#: The paper does not state its width; this is that of the first convolutions of He et al. (2016) for ImageNet.
WIDTH = 64
CLASSES = 10


@functools.cache
def images(data: str | None, split: str, pooling: int) -> tuple[Tensor, Tensor, str]:
    """Standardised images (N, channels, h, w), averaged over squares of ``pooling``, and labels; digits as they are."""
    found = load_data(data or "digits", split=split)
    inputs = F.avg_pool2d(found.inputs, pooling) if data else found.inputs.unflatten(1, (1, 8, 8))
    return inputs, found.targets, found.description


def load(data: str | None, setting: Setting, pooling: int) -> Data:
    """Images and their labels."""
    (x, y, description), (held, labels, _) = (images(data, split, pooling) for split in ("train", "test"))
    x, y = x[: setting.images], y[: setting.images]
    return Data((x, y), (held, labels), f"the first {len(x):,} of {description}, of {x.shape[2]}x{x.shape[3]} pixels")


def build(data: Data, setting: Setting) -> nn.Module:
    """Blocks of one, two and four times the width."""
    return ResNet(data.train[0].shape[1], CLASSES, round(WIDTH * setting.width))


SHARED = {"rates": (3e-4, 1e-3, 3e-3, 1e-2), "damping": 0.1, "memory": 0.1, "stretch": 3.0}
TASK = Task(
    "resnet",
    functools.partial(load, pooling=2),
    build,
    nn.CrossEntropyLoss(),
    RESNET_BLOCKS,
    full=Setting(50_000, 2000, 100, (250, 500, 1000), updates=1000, **SHARED),
    short=Setting(10_000, 1000, 100, (64, 125, 250), updates=36, width=0.125, **SHARED),
    fast=replace(FAST, damping=0.1, memory=0.1, width=0.05),
    remark="images averaged over 2x2 pixels",
)

if __name__ == "__main__":
    run_task((TASK,), __file__)
