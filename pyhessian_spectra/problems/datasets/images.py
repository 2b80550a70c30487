"""MNIST and Fashion-MNIST as pairs of IDX files, CIFAR-10 in its binary and its python format."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import math
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.dataset import RawExamples, Split

# Means and standard deviations of the training pixels divided by 255; for CIFAR-10 red, green and blue.
_STANDARDISATIONS = {
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
# Where downloads put the files below the directory that people name.
_IDX_FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
_CIFAR_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}
_DIMENSIONS = {"images": 3, "labels": 1}
_BATCHES: dict[Split, list[str]] = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS


def find_idx(directory: Path, split: Split, kind: str) -> Path | None:
    """The file of ``images`` or ``labels`` in the directory, if there is one."""
    endings = [f"{separator}idx{_DIMENSIONS[kind]}-ubyte{suffix}" for separator in "-." for suffix in ("", ".gz")]
    names = [f"{_STEMS[split]}-{kind}{ending}" for ending in endings]
    places = (directory / folder / name for folder in _IDX_FOLDERS for name in names)
    return next((place for place in places if place.is_file()), None)


def read_idx(name: str, directory: Path, split: Split) -> RawExamples:
    """MNIST or Fashion-MNIST, by name since their files look alike: uint8 images, shape (N, 1, 28, 28)."""
    images_path, images = _read_idx_file(name, directory, split, "images")
    labels_path, labels = _read_idx_file(name, directory, split, "labels")
    if len(images) != len(labels):
        raise InputError(f"{images_path} holds {len(images):,} images but {labels_path} {len(labels):,} labels")
    source = f"{name} ({images_path.name})"
    return RawExamples(name, images[:, None], labels.astype(np.int64), 10, source, "images", _STANDARDISATIONS[name])


def _read_idx_file(name: str, directory: Path, split: Split, kind: str) -> tuple[Path, NDArray[np.uint8]]:
    """One file of unsigned bytes, in the IDX format of LeCun, Cortes and Burges, "The MNIST database"."""
    path, dimensions = find_idx(directory, split, kind), _DIMENSIONS[kind]
    if path is None:
        missing = f"{_STEMS[split]}-{kind}-idx{dimensions}-ubyte"
        raise InputError(f"{directory} has no {missing} or .gz, the {split} {kind} of {name}")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); download it again") from None
    expected = bytes([0, 0, 0x08, dimensions])  # the third says that the entries are unsigned bytes
    if content[:4] != expected:
        found = f"its magic number is 0x{content[:4].hex() or '(nothing)'}, expected 0x{expected.hex()}"
        raise InputError(f"{path} is not an IDX file of {dimensions}-dimensional unsigned bytes: {found}")
    header = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4))
    if len(content) - header != math.prod(shape):
        found = f"{max(len(content) - header, 0):,} bytes of data where its header says {' x '.join(map(str, shape))}"
        raise InputError(f"{path} is truncated or damaged: {found}; download it again")
    return path, np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def find_cifar(directory: Path, split: Split) -> list[Path]:
    """Those of the split's batch files that are in the directory, in one format."""
    for folder, suffix in itertools.product(_CIFAR_FOLDERS, (".bin", "")):
        places = (directory / folder / f"{name}{suffix}" for name in _BATCHES[split])
        if found := [place for place in places if place.is_file()]:
            return found
    return []


def read_cifar(directory: Path, split: Split) -> RawExamples:
    """CIFAR-10: uint8 images, shape (N, 3, 32, 32), of those batch files that are there.

    Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the dataset's page describes the formats.
    """
    paths = find_cifar(directory, split)
    if not paths:
        raise InputError(f"{directory} has none of CIFAR-10's {split} files ({_BATCHES[split][0]}, or with .bin)")
    parts = [_read_binary(path) if path.suffix == ".bin" else _read_python(path) for path in paths]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    files = ", ".join(path.name for path in paths) if len(paths) < 3 else f"{paths[0].name} to {paths[-1].name}"
    pixels = images.reshape(-1, 3, 32, 32)
    return RawExamples("CIFAR-10", pixels, labels, 10, f"CIFAR-10 ({files})", "images", _STANDARDISATIONS["CIFAR-10"])


def _read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of one byte of label and 3,072 of pixels."""
    content = np.fromfile(path, dtype=np.uint8)
    if content.size % _RECORD:
        defect = f"its {content.size:,} bytes are not a multiple of the {_RECORD:,} that an image takes"
        raise InputError(f"{path} is truncated or not CIFAR-10: {defect}")
    records = content.reshape(-1, _RECORD)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_python(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A pickled dictionary of arrays, read by an unpickler that can build nothing else."""
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path} is not a CIFAR-10 batch: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is truncated or not a CIFAR-10 batch ({reason}); download it again") from None
    entries = batch if isinstance(batch, Mapping) else {}
    # The names are strings or bytes objects, according to which Python wrote them.
    images, labels = (entries.get(name, entries.get(name.encode())) for name in ("data", "labels"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        raise InputError(f"{path} is not a CIFAR-10 batch: its 'data' must be uint8 rows of {_PIXELS:,} pixels")
    if not isinstance(labels, (list, np.ndarray)) or not all(isinstance(label, (int, np.integer)) for label in labels):
        raise InputError(f"{path} is not a CIFAR-10 batch: its 'labels' must be a list of integers")
    if len(images) != len(labels):
        raise InputError(f"{path} holds {len(images):,} images but {len(labels):,} labels")
    return images, np.asarray(labels, dtype=np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers; any other global could run code and is refused."""

    # numpy moved its core package in version 2: files name either, according to who wrote them.
    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise InputError(f"it asks for {module}.{name}, which is not part of one and could run code") from None
