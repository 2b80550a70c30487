"""A text file as blocks of bytes for a language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.dataset import RawExamples, Split

_TRAIN_PART = 0.9


def read_text(path: Path, split: Split, block_size: int) -> RawExamples:
    """Consecutive blocks of bytes, int64, shape (N, block_size), and the byte that follows each as its target.

    The first nine tenths of the file are for training, the rest for testing; what does not fill a block is left out.
    """
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
    try:
        tokens = np.fromfile(path, dtype=np.uint8).astype(np.int64)
    except OSError as error:
        raise InputError(f"{path} cannot be read as text: {error.strerror or error}") from None
    if (tokens == 0).any():
        raise InputError(
            f"{path} is not a text file: it holds zero bytes; name a plain text, an .npz file or a directory"
        )
    cut = int(_TRAIN_PART * tokens.size)
    tokens = tokens[:cut] if split == "train" else tokens[cut:]
    count = (tokens.size - 1) // block_size
    if count < 1:
        raise InputError(
            f"{path} is too short: its {split} part has {tokens.size} bytes, fewer than one block of {block_size} and "
            "the byte after it"
        )
    inputs = tokens[: count * block_size].reshape(count, block_size)
    targets = tokens[1 : count * block_size + 1].reshape(count, block_size)
    return RawExamples(path.stem, inputs, targets, 256, path.name, f"blocks of {block_size} bytes")
