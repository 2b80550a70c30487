"""The deep autoencoder of Zhang et al. (2017) on MNIST: Adam, Hessian-free and block-diagonal Hessian-free.

python -m examples.learning.autoencoder --data MNIST_DIR --out docs/results/learning
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from examples.learning.compare import run_task
from examples.learning.models import AUTOENCODER_BLOCKS, autoencoder
from examples.learning.trainers import FAST, Data, Setting, Task
from pyhessian_spectra.problems import load_data

HIDDEN = (1000, 500, 250, 30)


def load(data: str | None, setting: Setting) -> Data:
    """Images with pixels in [0, 1], which are their own targets."""
    train, test = (load_data(data or "digits", split=split, normalize=False) for split in ("train", "test"))
    x, held = train.inputs[: setting.images].flatten(1), test.inputs.flatten(1)
    return Data((x, x), (held, held), f"the first {len(x):,} of {train.description}; {x.shape[1]} each")


def build(data: Data, setting: Setting) -> nn.Module:
    """784-1000-500-250-30 and back, or that many parts of each hidden width but the code's."""
    *hidden, code = HIDDEN
    return autoencoder([data.train[0].shape[1], *(round(each * setting.width) for each in hidden), code])


RATES = (1e-4, 3e-4, 1e-3, 3e-3)
FULL = Setting(60_000, 2000, 100, (250, 500, 1000), updates=1000, rates=RATES, solve_rtol=0.1)
TASK = Task(
    "autoencoder",
    load,
    build,
    nn.MSELoss(),
    AUTOENCODER_BLOCKS,
    full=FULL,
    short=replace(FULL, images=10_000, updates=50, width=0.5),
    fast=replace(FAST, width=0.02),
)

if __name__ == "__main__":
    run_task((TASK,), __file__)
