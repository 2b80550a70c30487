"""The digits of scikit-learn, arrays in an .npz file, and texts."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.dataset import RawExamples, Split

# Every fifth image is held out: the digits are in the order of their writers, so that a cut at the end would test
# on other hands than those trained on.
_TEST_EVERY = 5
_TRAIN_PART = 0.9  # of the file; the rest is for testing
_PAIRS = (("images", "labels"), ("x", "y"))


def read_digits(split: Split) -> RawExamples:
    """1,797 images of 8x8 pixels as float32 vectors of length 64 in [0, 1]: 1,438 to train, 359 to test."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    images, labels = load_digits(return_X_y=True)
    test = np.arange(len(labels)) % _TEST_EVERY == _TEST_EVERY - 1
    chosen = test if split == "test" else ~test
    # Pixels count the set dots, 0 to 16, of a 4x4 patch.
    inputs = (images[chosen] / 16).astype(np.float32)
    return RawExamples("digits", inputs, labels[chosen].astype(np.int64), 10, "scikit-learn's digits", "8x8 images")


def read_text(path: Path, split: Split, block_size: int) -> RawExamples:
    """Consecutive blocks of bytes, int64, shape (N, block_size), and the byte that follows each as its target."""
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
    try:
        tokens = np.fromfile(path, dtype=np.uint8).astype(np.int64)
    except OSError as error:
        raise InputError(f"{path} cannot be read as text: {error.strerror or error}") from None
    if (tokens == 0).any():
        raise InputError(f"{path} is not a text file: it holds zero bytes; name a text, an .npz file or a directory")
    tokens = take_part(tokens, split)
    count = (tokens.size - 1) // block_size  # what does not fill a block is left out
    if count < 1:
        needed = f"fewer than one block of {block_size} and the byte after it"
        raise InputError(f"{path} is too short: its {split} part has {tokens.size} bytes, {needed}")
    inputs = tokens[: count * block_size].reshape(count, block_size)
    targets = tokens[1 : count * block_size + 1].reshape(count, block_size)
    return RawExamples(path.stem, inputs, targets, 256, path.name, f"blocks of {block_size} bytes")


def take_part(tokens: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """The first nine tenths of a text, to train, or the last, to test."""
    cut = int(_TRAIN_PART * tokens.size)
    return tokens[:cut] if split == "train" else tokens[cut:]


def read_npz(path: Path, split: Split) -> RawExamples:
    """Arrays ``images``/``labels`` or ``x``/``y``, or with the split in each name; nothing is unpickled."""
    with opened_npz(path) as archive:
        inputs_name, targets_name = _choose(path, list(archive.files), split)
        inputs, targets = archive[inputs_name], archive[targets_name]
    if inputs.ndim < 2 or targets.ndim < 1 or len(inputs) != len(targets):
        shapes = f"{inputs_name} of shape {inputs.shape} and {targets_name} of shape {targets.shape}"
        raise InputError(f"{path}: {shapes} do not pair up; expected one row of inputs and one target for each example")
    if inputs.dtype.kind not in "fiub":
        raise InputError(f"{path}: {inputs_name} has dtype {inputs.dtype}; expected numbers")
    if targets.dtype.kind not in "fiu":
        expected = "integer classes, or floats to regress on"
        raise InputError(f"{path}: {targets_name} has dtype {targets.dtype}; expected {expected}")
    if inputs.ndim == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] not in (1, 3):  # images, channels last
        inputs = inputs.transpose(0, 3, 1, 2)
    if inputs.dtype != np.uint8:  # those are pixels
        inputs = inputs.astype(np.int64 if inputs.dtype.kind in "iu" else np.float32)
    if targets.dtype.kind != "f" and targets.shape[1:] == (1,):
        targets = targets[:, 0]
    targets = targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64)
    return RawExamples(path.stem, inputs, targets, None, path.name, "examples")


@contextmanager
def opened_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An archive of arrays to read from; what is damaged, or would have to be unpickled, is an ``InputError``."""
    try:
        # Opened here, since np.load leaves a file that is no archive open.
        with open(path, "rb") as handle:
            archive = np.load(handle, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path} is not an .npz archive; write it with numpy.savez")
            yield archive
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path} is damaged, or holds objects rather than numbers ({error})") from None


def _choose(path: Path, names: list[str], split: Split) -> tuple[str, str]:
    behind = [(f"{inputs}_{split}", f"{targets}_{split}") for inputs, targets in _PAIRS]
    before = [(f"{split}_{inputs}", f"{split}_{targets}") for inputs, targets in _PAIRS]
    for pair in (*behind, *before, *_PAIRS):
        if set(pair) <= set(names):
            if split == "test" and pair in _PAIRS:
                raise InputError(f"{path} has no test split; save the arrays {pair[0]}_test and {pair[1]}_test in it")
            return pair
    found = ", ".join(names) or "none"
    raise InputError(f"{path} has the arrays {found}; expected images and labels, or x and y")
