"""Dataset: the examples a spectrum is computed on, and what a reader of the results must know about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError, NonFiniteError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


class RawExamples(NamedTuple):
    """What a reader found in the files, before any example is selected or scaled."""

    name: str
    # Shape (N, ...): uint8 pixels, float32 values or int64 tokens.
    inputs: NDArray[Any]
    # Shape (N, ...): int64 classes or tokens, or the float32 values of a regression.
    targets: NDArray[Any]
    # None where only the labels tell it, and for a regression.
    num_classes: int | None
    # The files, and what an example is called ("images", "blocks of 64 bytes"), for the description.
    source: str
    noun: str
    # Means and standard deviations of the channels, in units of pixels in [0, 1].
    standardisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of their files, on the CPU.

    Parameters
    ----------
    inputs : Tensor, shape (N, ...)
        float32 values, or int64 tokens.
    targets : Tensor, shape (N, ...)
        int64 classes or tokens, or float32 values.
    num_classes : int
        0 for a regression.
    name : str
    description : str
        What was taken, for a reader of the report.
    """

    inputs: Tensor
    targets: Tensor
    num_classes: int
    name: str
    description: str


def to_dataset(raw: RawExamples, split: Split, num_examples: int | None, normalize: bool) -> Dataset:
    """The first examples (None: all), checked and scaled."""
    available, part = len(raw.inputs), "training" if split == "train" else "test"
    if not raw.inputs.size:
        raise InputError(f"{raw.source} holds no {part} examples; name a dataset that does")
    count = num_examples or available
    if count > available:
        raise InputError(f"num_examples = {count}, but {raw.source} has {available:,} {part} {raw.noun}")
    num_classes = 0
    if raw.targets.dtype.kind == "f":
        _check_finite(raw.targets, "target", raw.source)
    else:
        num_classes = raw.num_classes or max(int(raw.targets.max()) + 1, 1)
        check_labels(raw.targets, num_classes, raw.source)
    inputs, scaling = _scale(raw, count, normalize)
    _check_finite(inputs.numpy(), "input", raw.source)
    targets = torch.from_numpy(raw.targets[:count].copy())
    taken = f"all {count:,}" if count == available else f"first {count:,} of the {available:,}"
    return Dataset(inputs, targets, num_classes, raw.name, f"{taken} {part} {raw.noun} of {raw.source}{scaling}")


def check_labels(labels: NDArray[Any], num_classes: int, source: str, whose: str = "") -> None:
    """Raise ``InputError`` naming the first label outside the classes; ``whose`` says whose classes they are."""
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        found = f"label {_first_example(outside)} of {source} is {labels[outside][0]}"
        raise InputError(f"{found}, outside the {num_classes} classes{whose}, 0 to {num_classes - 1}")


def _check_finite(values: NDArray[Any], what: str, source: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        found = f"{what} {_first_example(~finite)} of {source} holds NaN or infinity"
        raise NonFiniteError(f"{found}; repair or leave out that example")


def _first_example(flags: NDArray[np.bool_]) -> int:
    """Index of the first example with any flag set."""
    return int(np.argmax(flags.reshape(len(flags), -1).any(axis=1)))


def _scale(raw: RawExamples, count: int, normalize: bool) -> tuple[Tensor, str]:
    """The first inputs as a tensor, and a clause on what was done to their values."""
    values = torch.from_numpy(raw.inputs[:count].copy())
    if values.dtype != torch.uint8:
        return values, ""
    pixels = values.float() / 255
    if raw.standardisation is None or not normalize:
        return pixels, ", pixels in [0, 1]"
    mean, std = (torch.tensor(channels).view(1, -1, 1, 1) for channels in raw.standardisation)
    told = [str(channels if len(channels) > 1 else channels[0]) for channels in raw.standardisation]
    clause = f", pixels in [0, 1] standardised with mean {told[0]} and standard deviation {told[1]}"
    return (pixels - mean) / std, clause
