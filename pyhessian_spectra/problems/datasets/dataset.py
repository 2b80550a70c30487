"""Dataset: the examples a spectrum is computed on, and what a reader of the results must know about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each channel, in units of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class RawExamples:
    """What a reader found in the files, before any example is selected or scaled.

    Parameters
    ----------
    name : str
    inputs : ndarray, shape (N, ...)
        uint8 pixels, float values, or int64 tokens.
    targets : ndarray, shape (N, ...)
        int64 classes or tokens, or float values of a regression.
    num_classes : int or None
        None where the labels themselves are all there is to tell, and for a regression.
    source : str
        The files, for the description.
    noun : str
        What an example is: ``images``, ``blocks of 64 bytes``, ...
    standardisation : Standardisation or None
    """

    name: str
    inputs: NDArray[np.generic]
    targets: NDArray[np.generic]
    num_classes: int | None
    source: str
    noun: str = "images"
    standardisation: Standardisation | None = None


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
