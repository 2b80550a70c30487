"""The stacked LSTM of Zhang et al. (2017) on MNIST averaged to 7x7: Adam, Hessian-free and block-diagonal Hessian-free.

python -m examples.learning.lstm --data MNIST_DIR --out docs/results/learning
python -m examples.learning.lstm --task lstm_pixels --data MNIST_DIR --out docs/results/learning

"Sequential" may mean seven rows of seven pixels, or 49 pixels one after another; the paper does not say which.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from examples.learning.compare import run_task
from examples.learning.models import LSTM_BLOCKS, PeepholeLSTM
from examples.learning.trainers import FAST, Data, Setting, Task
from pyhessian_spectra.problems import load_data

UNITS, CLASSES = 10, 10


@functools.cache
def pooled(data: str | None, split: str) -> tuple[Tensor, Tensor, str]:
    """Images (N, 7, 7) of pixels in [0, 1] with their labels; digits, of 8x8, become 4x4."""
    found = load_data(data or "digits", split=split, normalize=False)
    images = F.avg_pool2d(found.inputs, 4).squeeze(1) if data else F.avg_pool2d(found.inputs.unflatten(1, (8, 8)), 2)
    return images, found.targets, found.description


def load(data: str | None, setting: Setting, pixels: bool) -> Data:
    """Rows of pixels one after another, or pixels."""
    (x, y, description), (held, labels, _) = pooled(data, "train"), pooled(data, "test")
    x, y = x[: setting.images], y[: setting.images]
    about = f"the first {len(x):,} of {description}, averaged to {x.shape[1]}x{x.shape[2]}"
    if pixels:
        x, held = x.flatten(1)[..., None], held.flatten(1)[..., None]
    return Data((x, y), (held, labels), f"{about}, in {x.shape[1]} steps of {x.shape[2]}")


def build(data: Data, setting: Setting) -> nn.Module:
    """Three layers of ten units."""
    return PeepholeLSTM(data.train[0].shape[2], CLASSES, round(UNITS * setting.width))


RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SHARED = {"rates": RATES, "damping": 0.01, "cg_iterations": 100, "stretch": 3.0}
FULL = Setting(60_000, 2000, 100, (250, 500, 1000), updates=1000, **SHARED)
SHORT = Setting(10_000, 1000, 100, (125, 250, 500), updates=70, **SHARED)
ROWS = Task(
    "lstm_rows",
    functools.partial(load, pixels=False),
    build,
    nn.CrossEntropyLoss(),
    LSTM_BLOCKS,
    full=FULL,
    short=SHORT,
    fast=replace(FAST, damping=0.01),
)
# 49 steps cost seven times as much as seven: fewer iterations, smaller curvature batches, fewer updates
PIXELS = replace(
    ROWS,
    name="lstm_pixels",
    load=functools.partial(load, pixels=True),
    short=replace(SHORT, curvatures=(64, 125, 250), updates=40, cg_iterations=30),
)

if __name__ == "__main__":
    run_task((ROWS, PIXELS), __file__)
