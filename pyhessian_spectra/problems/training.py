"""The demo's small classifier: trained on the digits, with checkpoints on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature import Point, autodiff
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.parameters import trainable_layout
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.problems.checkpoints import save_checkpoint
from pyhessian_spectra.problems.datasets import Dataset, load_data
from pyhessian_spectra.problems.losses import cross_entropy
from pyhessian_spectra.training import GradientDescent

# 2,410 parameters: few enough for the exact Hessian, enough for 96 % of the held-out digits.
_WIDTHS = (64, 24, 24, 10)
_STEPS = 2000
_FIRST_SAVED = 10
_BATCH_SIZE = 64
_ARGUMENTS = {"widths": _WIDTHS, "activation": "relu"}
_PROBLEM = {"model": "mlp", "model_args": _ARGUMENTS, "data": "digits", "loss": "cross_entropy"}
_SETTINGS = {"learning_rate": 0.02, "momentum": 0.9, "training_batch_size": _BATCH_SIZE}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products this small are slower on several threads, much slower on a busy machine, and round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def train_digits(
    out_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_checkpoints: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Train an MLP on the digits by SGD with momentum and save self-describing checkpoints.

    Parameters
    ----------
    out_dir : path-like
        Gets ``step-00000.pt`` (the initial parameters), then checkpoints at log-spaced steps.
    seed : int
        Decides the initial parameters and the order of the data: the same seed gives the same checkpoints.
    num_checkpoints : int
        At least 2: the initial and the final one.
    progress : callable, optional
        ``progress(step, num_steps)``, called after each step.

    Returns
    -------
    list of Path
        In the order of their steps.
    """
    saved = checkpoint_steps(num_checkpoints)
    generator = torch.Generator().manual_seed(seed)
    train, test = load_data("digits", split="train"), load_data("digits", split="test")
    model, paths = _initial_model(generator), []
    layout, _, _ = trainable_layout(model)
    objective = Objective(model, cross_entropy)
    batches = _minibatches(train, generator)

    def gradient(theta: Tensor) -> Tensor:
        return autodiff.gradient(objective, Point.of(layout, theta), next(batches))

    start = layout.flatten([p.detach() for p in model.parameters()])
    descent = GradientDescent(gradient, start, step=_SETTINGS["learning_rate"], momentum=_SETTINGS["momentum"])
    for step in range(_STEPS + 1):
        if step > 0:
            descent.evaluate()
            descent.step()
            if progress is not None:
                progress(step, _STEPS)
        if step in saved:
            torch.nn.utils.vector_to_parameters(descent.theta, model.parameters())
            facts = {"step": step, "seed": seed, **_measure(model, train, "train"), **_measure(model, test, "test")}
            path = Path(out_dir) / f"step-{step:05d}.pt"
            paths.append(save_checkpoint(path, model, problem=_PROBLEM, **_SETTINGS, **facts))
    return paths


def checkpoint_steps(num_checkpoints: int) -> list[int]:
    """Step 0, then log-spaced steps up to the last.

    >>> checkpoint_steps(3)
    [0, 10, 2000]
    """
    if not 2 <= num_checkpoints <= 50:
        raise InputError(f"num_checkpoints must be between 2 and 50, got {num_checkpoints}")
    between = num_checkpoints - 2
    return [0, *(round(_FIRST_SAVED * (_STEPS / _FIRST_SAVED) ** (i / between)) for i in range(between)), _STEPS]


def _initial_model(generator: torch.Generator) -> MLP:
    with torch.random.fork_rng(devices=[]):  # the parameters it draws are replaced by the generator's
        model = MLP(_WIDTHS)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return model


def _minibatches(data: Dataset, generator: torch.Generator) -> Iterator[Batch]:
    """Batches without end, each epoch in an order of its own, which leaves a few examples out."""
    whole = len(data.inputs) // _BATCH_SIZE * _BATCH_SIZE
    while True:
        order = torch.randperm(len(data.inputs), generator=generator)
        for chosen in order[:whole].split(_BATCH_SIZE):
            yield Batch(data.inputs[chosen], data.targets[chosen], 0)


def _measure(model: nn.Module, data: Dataset, split: str) -> dict[str, float]:
    with torch.no_grad():
        outputs = model(data.inputs)
    accuracy = (outputs.argmax(dim=1) == data.targets).double().mean()
    return {f"{split}_loss": float(cross_entropy(outputs, data.targets)), f"{split}_accuracy": float(accuracy)}
