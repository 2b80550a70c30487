"""MNIST and its relatives: pairs of IDX files, compressed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.dataset import RawExamples, Split, Standardisation

# Mean and standard deviation of the training pixels divided by 255.
_MNIST = Standardisation((0.1307,), (0.3081,))
_FASHION_MNIST = Standardisation((0.2860,), (0.3530,))
_STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}
# Where downloads put the files below the directory that people name.
_SUBDIRECTORIES = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
# The third byte of the magic number is the type of the entries, the fourth the number of dimensions.
_UNSIGNED_BYTE = 0x08


def find_idx(directory: Path) -> bool:
    """Whether MNIST's files are in the directory."""
    return any(_find(directory, stem, "images", 3) for stem in _STEMS.values())


def read_idx(directory: Path, split: Split) -> RawExamples:
    """MNIST, or Fashion-MNIST where the path says ``fashion``: the files of the two look alike."""
    is_fashion = "fashion" in str(directory).lower()
    return read_fashion_mnist(directory, split) if is_fashion else read_mnist(directory, split)


def read_mnist(directory: Path, split: Split) -> RawExamples:
    """MNIST: uint8 images, shape (N, 1, 28, 28)."""
    return _read(directory, split, "MNIST", _MNIST)


def read_fashion_mnist(directory: Path, split: Split) -> RawExamples:
    """Fashion-MNIST: uint8 images, shape (N, 1, 28, 28)."""
    return _read(directory, split, "Fashion-MNIST", _FASHION_MNIST)


def read_idx_file(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes.

    Raises
    ------
    InputError
        The magic number is wrong, or the file is shorter or longer than its header says.

    References
    ----------
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits": the IDX file format.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); download it again") from None
    expected = bytes([0, 0, _UNSIGNED_BYTE, num_dimensions])
    if content[:4] != expected:
        raise InputError(
            f"{path} is not an IDX file of {num_dimensions}-dimensional unsigned bytes: its magic number is "
            f"0x{content[:4].hex() or '(nothing)'}, expected 0x{expected.hex()}"
        )
    header = 4 + 4 * num_dimensions
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4))
    if len(content) - header != math.prod(shape):
        raise InputError(
            f"{path} is truncated or damaged: {max(len(content) - header, 0):,} bytes of data where its header says "
            f"{' x '.join(map(str, shape))}; download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _read(directory: Path, split: Split, name: str, standardisation: Standardisation) -> RawExamples:
    stem = _STEMS[split]
    images_path, labels_path = _find(directory, stem, "images", 3), _find(directory, stem, "labels", 1)
    for path, kind, dimensions in ((images_path, "images", 3), (labels_path, "labels", 1)):
        if path is None:
            raise InputError(
                f"{directory} has no {stem}-{kind}-idx{dimensions}-ubyte or .gz, the {split} {kind} of {name}"
            )
    assert images_path is not None and labels_path is not None
    images, labels = read_idx_file(images_path, 3), read_idx_file(labels_path, 1)
    if len(images) != len(labels):
        raise InputError(f"{images_path} holds {len(images):,} images but {labels_path} {len(labels):,} labels")
    return RawExamples(
        name, images[:, None], labels.astype(np.int64), 10, f"{name} ({images_path.name})", "images", standardisation
    )


def _find(directory: Path, stem: str, kind: str, dimensions: int) -> Path | None:
    for subdirectory in _SUBDIRECTORIES:
        for separator in ("-", "."):
            for suffix in ("", ".gz"):
                path = directory / subdirectory / f"{stem}-{kind}{separator}idx{dimensions}-ubyte{suffix}"
                if path.is_file():
                    return path
    return None
