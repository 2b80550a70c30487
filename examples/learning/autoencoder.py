"""The deep autoencoder of Zhang et al. (2017) on MNIST: Adam, Hessian-free and block-diagonal Hessian-free.

python -m examples.learning.autoencoder --data MNIST_DIR --out docs/results/learning
"""

from __future__ import annotations

from torch import nn

from examples.learning.compare import run_task
from examples.learning.models import AUTOENCODER_BLOCKS, autoencoder
from examples.learning.trainers import Data, Setting, Task
from pyhessian_spectra.problems import load_data

HIDDEN = (1000, 500, 250, 30)


def load(data: str | None, setting: Setting) -> Data:
    """Images with pixels in [0, 1], which are their own targets."""
    train, test = (load_data(data or "digits", split=split, normalize=False) for split in ("train", "test"))
    x, held = train.inputs[: setting.images].flatten(1), test.inputs.flatten(1)
    return Data((x, x), (held, held), f"{len(x):,} images of {x.shape[1]} pixels in [0, 1] ({train.description})")


def build(data: Data, setting: Setting) -> nn.Module:
    """784-1000-500-250-30 and back, or that many parts of each hidden width but the code's."""
    *hidden, code = HIDDEN
    return autoencoder([data.train[0].shape[1], *(round(each * setting.width) for each in hidden), code])


RATES = (1e-4, 3e-4, 1e-3, 3e-3)
TASK = Task(
    "autoencoder",
    load,
    build,
    nn.MSELoss(),
    AUTOENCODER_BLOCKS,
    paper=Setting(60_000, 6000, 100, (500, 1000, 2000), updates=1000, rates=RATES),
    short=Setting(10_000, 1000, 100, (125, 250, 500), updates=100, rates=RATES),
    fast=Setting(200, 40, 10, (5, 10, 20), 4, (1e-3, 1e-2), cg_iterations=3, width=0.02, records=4, held=50, seeds=1),
)

if __name__ == "__main__":
    run_task((TASK,), __file__)
