"""load_data: from a word or a path to a checked Dataset."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.problems.datasets.arrays import read_npz
from pyhessian_spectra.problems.datasets.cifar import find_cifar, read_cifar
from pyhessian_spectra.problems.datasets.dataset import SPLITS, Dataset, RawExamples, Split
from pyhessian_spectra.problems.datasets.digits import read_digits
from pyhessian_spectra.problems.datasets.idx import find_idx, read_fashion_mnist, read_idx, read_mnist
from pyhessian_spectra.problems.datasets.text import read_text

_Reader = Callable[[Path, Split], RawExamples]
_FORMATS: dict[str, _Reader] = {
    "mnist": read_mnist,
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar,
    "npz": read_npz,
}
_EXPECTED = (
    "digits, a directory with MNIST (IDX) or CIFAR-10 (binary or python) files, an .npz file with images and labels, "
    "or a text file"
)


def load_data(
    spec: str | os.PathLike[str],
    *,
    split: Split = "train",
    num_examples: int | None = None,
    normalize: bool = True,
    block_size: int = 64,
) -> Dataset:
    """Load the first examples of a dataset.

    Parameters
    ----------
    spec : str or path-like
        ``digits`` (bundled with scikit-learn), a directory of MNIST, Fashion-MNIST or CIFAR-10 files, an ``.npz``
        file, or a text file, which is read as bytes. ``mnist:DIR``, ``fashion-mnist:DIR``, ``cifar10:DIR``,
        ``npz:FILE`` and ``text:FILE`` name the format.
    split : {"train", "test"}
        Digits: every fifth image is a test image. Text: the last tenth is the test part.
    num_examples : int, optional
        How many examples to take, from the first on; default all.
    normalize : bool
        Standardise MNIST, Fashion-MNIST and CIFAR-10 with the usual means and standard deviations of their pixels.
    block_size : int
        Length of the blocks a text is cut into.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        A wrong path or format, a damaged file, labels outside the classes, or fewer examples than asked for.
    NonFiniteError
        An input is NaN or infinite.
    """
    if split not in SPLITS:
        raise InputError(f"split must be 'train' or 'test', got {split!r}")
    if num_examples is not None and num_examples < 1:
        raise InputError(f"num_examples must be at least 1, got {num_examples}")
    raw = _read(os.fspath(spec), split, block_size)
    available = len(raw.inputs)
    part = "training" if split == "train" else "test"
    if not available or not raw.inputs.size:
        raise InputError(f"{raw.source} holds no {part} examples; name a dataset that does")
    if num_examples is not None and num_examples > available:
        raise InputError(f"num_examples = {num_examples}, but {raw.source} has {available:,} {part} {raw.noun}")
    count = available if num_examples is None else num_examples
    num_classes = _check_labels(raw)
    taken = f"all {count:,}" if count == available else f"first {count:,} of the {available:,}"
    inputs, scaling = _scale(raw, count, normalize)
    _check_finite(inputs, raw)
    kind = torch.float32 if raw.targets.dtype.kind == "f" else torch.int64
    targets = torch.from_numpy(np.ascontiguousarray(raw.targets[:count])).to(kind)
    description = f"{taken} {part} {raw.noun} of {raw.source}{scaling}"
    return Dataset(inputs, targets, num_classes, raw.name, description)


def _read(spec: str, split: Split, block_size: int) -> RawExamples:
    if spec == "digits":
        return read_digits(split)
    prefix, colon, rest = spec.partition(":")
    if colon and prefix == "text":
        return read_text(_existing(rest), split, block_size)
    if colon and prefix in _FORMATS:
        return _FORMATS[prefix](_existing(rest), split)
    path = _existing(spec)
    if path.is_dir():
        if find_idx(path):
            return read_idx(path, split)
        if find_cifar(path):
            return read_cifar(path, split)
        raise InputError(f"the directory {path} holds no dataset this package reads; expected {_EXPECTED}")
    if path.suffix == ".npz":
        return read_npz(path, split)
    return read_text(path, split, block_size)


def _existing(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.exists():
        raise InputError(f"there is no data at {spec}; expected {_EXPECTED}")
    return path


def _scale(raw: RawExamples, count: int, normalize: bool) -> tuple[Tensor, str]:
    """The first examples as a tensor, and a clause on what was done to their values."""
    values = np.ascontiguousarray(raw.inputs[:count])
    if values.dtype == np.int64:
        return torch.from_numpy(values.copy()), ""
    if values.dtype != np.uint8:
        return torch.from_numpy(values.astype(np.float32)), ""
    pixels = torch.from_numpy(values.astype(np.float32)) / 255
    if raw.standardisation is None or not normalize:
        return pixels, ", pixels in [0, 1]"
    mean, std = raw.standardisation.mean, raw.standardisation.std
    channels = (1, -1, 1, 1)
    pixels = (pixels - torch.tensor(mean).view(channels)) / torch.tensor(std).view(channels)
    return pixels, f", pixels in [0, 1] standardised with mean {_listed(mean)} and standard deviation {_listed(std)}"


def _check_labels(raw: RawExamples) -> int:
    """The number of classes; ``InputError`` names the first label outside them."""
    if raw.targets.dtype.kind == "f":
        if not np.isfinite(raw.targets).all():
            raise NonFiniteError(f"target {_first(~np.isfinite(raw.targets))} of {raw.source} is NaN or infinite")
        return 0
    classes = raw.num_classes or max(int(raw.targets.max()) + 1, 1)
    labels = raw.targets.astype(np.int64, copy=False)
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        index = _first(outside)
        raise InputError(
            f"label {index} of {raw.source} is {labels[outside][0]}, outside the classes 0 to {classes - 1}"
        )
    return classes


def _check_finite(inputs: Tensor, raw: RawExamples) -> None:
    finite = torch.isfinite(inputs)
    if not finite.all():
        index = _first(~finite.numpy())
        raise NonFiniteError(f"input {index} of {raw.source} holds NaN or infinity; repair or leave out that example")


def _first(flags: NDArray[np.bool_]) -> int:
    """Index of the first example with any flag set."""
    return int(np.argmax(flags.reshape(len(flags), -1).any(axis=1)))


def _listed(values: tuple[float, ...]) -> str:
    return str(values[0]) if len(values) == 1 else f"({', '.join(map(str, values))})"
