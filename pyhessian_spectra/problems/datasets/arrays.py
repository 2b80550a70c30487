"""Arrays of the user's own in an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.dataset import RawExamples, Split

_PAIRS = (("images", "labels"), ("x", "y"))


def read_npz(path: Path, split: Split) -> RawExamples:
    """Arrays ``images``/``labels`` or ``x``/``y``, or with ``_train``/``_test`` behind each; nothing is unpickled.

    uint8 inputs are pixels, and are divided by 255; floats are left as they are. Images with the channels last
    are turned to channels first.
    """
    try:
        # Opened here, since np.load leaves a file that is no archive open.
        with open(path, "rb") as handle:
            archive = np.load(handle, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path} is not an .npz archive; write it with numpy.savez")
            inputs_name, targets_name = _choose(path, list(archive.files), split)
            inputs, targets = archive[inputs_name], archive[targets_name]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path} is damaged, or holds objects rather than numbers ({error})") from None
    if inputs.ndim < 2 or targets.ndim < 1 or len(inputs) != len(targets):
        raise InputError(
            f"{path}: {inputs_name} of shape {inputs.shape} and {targets_name} of shape {targets.shape} do not pair "
            "up; expected one row of inputs and one target for each example"
        )
    return RawExamples(
        path.stem,
        _inputs(path, inputs_name, inputs),
        _targets(path, targets_name, targets),
        None,
        path.name,
        "examples",
    )


def _choose(path: Path, names: list[str], split: Split) -> tuple[str, str]:
    for inputs, targets in _PAIRS:
        for pair in ((f"{inputs}_{split}", f"{targets}_{split}"), (f"{split}_{inputs}", f"{split}_{targets}")):
            if set(pair) <= set(names):
                return pair
    for pair in _PAIRS:
        if set(pair) <= set(names):
            if split == "test":
                raise InputError(f"{path} has no test split; save the arrays {pair[0]}_test and {pair[1]}_test in it")
            return pair
    found = ", ".join(names) or "none"
    raise InputError(f"{path} has the arrays {found}; expected images and labels, or x and y")


def _inputs(path: Path, name: str, inputs: NDArray[np.generic]) -> NDArray[np.generic]:
    if inputs.dtype.kind not in "fiub":
        raise InputError(f"{path}: {name} has dtype {inputs.dtype}; expected numbers")
    if inputs.ndim == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] not in (1, 3):
        inputs = inputs.transpose(0, 3, 1, 2)
    if inputs.dtype == np.uint8:
        return inputs
    return inputs.astype(np.int64 if inputs.dtype.kind in "iu" else np.float32)


def _targets(path: Path, name: str, targets: NDArray[np.generic]) -> NDArray[np.generic]:
    if targets.dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} has dtype {targets.dtype}; expected integer classes, or floats to regress on")
    if targets.dtype.kind == "f":
        return targets.astype(np.float32)
    return (targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets).astype(np.int64)
