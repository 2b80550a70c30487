"""Datasets on disk, read with no more than numpy: always the first examples in the order of the files."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.arrays import read_digits, read_npz, read_text
from pyhessian_spectra.problems.datasets.dataset import SPLITS, Dataset, RawExamples, Split, to_dataset
from pyhessian_spectra.problems.datasets.images import find_cifar, find_idx, read_cifar, read_idx

# The text reader, which takes the length of its blocks too, is not among them.
_READERS: dict[str, Callable[[Path, Split], RawExamples]] = {
    "mnist": partial(read_idx, "MNIST"),
    "fashion-mnist": partial(read_idx, "Fashion-MNIST"),
    "cifar10": read_cifar,
    "npz": read_npz,
}
_EXPECTED = "digits, a directory of MNIST (IDX) or CIFAR-10 files, an .npz file of images and labels, or a text file"


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
    return to_dataset(_read(os.fspath(spec), split, block_size), split, num_examples, normalize)


def _read(spec: str, split: Split, block_size: int) -> RawExamples:
    if spec == "digits":
        return read_digits(split)
    name, colon, rest = spec.partition(":")
    is_named = colon and name in ("text", *_READERS)
    path = Path(rest if is_named else spec).expanduser()
    if not path.exists():
        raise InputError(f"there is no data at {rest if is_named else spec}; expected {_EXPECTED}")
    if not is_named:
        name = _recognise(path)
    return read_text(path, split, block_size) if name == "text" else _READERS[name](path, split)


def _recognise(path: Path) -> str:
    """The name of the format, from what is there."""
    if not path.is_dir():
        return "npz" if path.suffix == ".npz" else "text"
    if any(find_idx(path, split, "images") for split in SPLITS):  # the files of MNIST and Fashion-MNIST look alike
        return "fashion-mnist" if "fashion" in str(path).lower() else "mnist"
    if any(find_cifar(path, split) for split in SPLITS):
        return "cifar10"
    raise InputError(f"the directory {path} holds no dataset this package reads; expected {_EXPECTED}")
