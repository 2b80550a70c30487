"""CIFAR-10 in its binary and its python format."""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.dataset import RawExamples, Split, Standardisation

# Mean and standard deviation of the training pixels divided by 255, red, green and blue.
_CIFAR10 = Standardisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_SUBDIRECTORIES = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS


def find_cifar(directory: Path) -> bool:
    """Whether CIFAR-10's files are in the directory."""
    return any(_find(directory, split) for split in _BATCHES)


def read_cifar(directory: Path, split: Split) -> RawExamples:
    """CIFAR-10: uint8 images, shape (N, 3, 32, 32), of those batch files that are there.

    References
    ----------
    Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the two formats are described on the
    dataset's page.
    """
    paths = _find(directory, split)
    if not paths:
        raise InputError(
            f"{directory} has none of CIFAR-10's {split} files ({_BATCHES[split][0]}, with or without .bin)"
        )
    parts = [_read_binary(path) if path.suffix == ".bin" else _read_python(path) for path in paths]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    files = ", ".join(path.name for path in paths) if len(paths) < 3 else f"{paths[0].name} to {paths[-1].name}"
    return RawExamples("CIFAR-10", images, labels, 10, f"CIFAR-10 ({files})", "images", _CIFAR10)


def _find(directory: Path, split: Split) -> list[Path]:
    for subdirectory in _SUBDIRECTORIES:
        for suffix in (".bin", ""):
            paths = [directory / subdirectory / f"{name}{suffix}" for name in _BATCHES[split]]
            if any(path.is_file() for path in paths):
                return [path for path in paths if path.is_file()]
    return []


def _read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of one byte of label and 3,072 of pixels."""
    content = np.fromfile(path, dtype=np.uint8)
    if content.size % _RECORD:
        raise InputError(
            f"{path} is truncated or not CIFAR-10: its {content.size:,} bytes are not a multiple of the {_RECORD:,} "
            "that an image takes"
        )
    records = content.reshape(-1, _RECORD)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_python(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A pickled dictionary of arrays, read by an unpickler that can build nothing else."""
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path} is not a CIFAR-10 batch: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(
            f"{path} is truncated or not a CIFAR-10 batch ({str(error) or type(error).__name__}); download it again"
        ) from None
    entries = {_text(key): value for key, value in batch.items()} if isinstance(batch, Mapping) else {}
    images, labels = entries.get("data"), entries.get("labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise InputError(
            f"{path} is not a CIFAR-10 batch: its 'data' must be a uint8 array of rows of {_PIXELS:,} pixels"
        )
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


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
