"""Checkpoint: what a saved file says about a model's parameters, read without running any code from it."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.problems.importing import current_directory_first
from pyhessian_spectra.problems.state_dicts import find_state_dict, strip_wrappers

# The key under which save_checkpoint describes the problem a state dict belongs to.
SELF_DESCRIPTION = "pyhessian_spectra"

_PROBLEM_KEYS = ("model", "model_args", "data", "loss")
_CHUNK = 1 << 20

# The number that torch.save puts first in files that are not zip archives, as pickle encodes it.
_TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:-1]


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one checkpoint file.

    Parameters
    ----------
    path : Path
    sha256 : str
        Hexadecimal digest of the file.
    state_dict : dict of str to Tensor
        Parameters and buffers on the CPU, in the dtype they were saved in, free of the prefixes that
        ``DataParallel`` (``module.``) and ``torch.compile`` (``_orig_mod.``) add.
    metadata : dict
        JSON scalars found beside the state dict: ``step``, ``epoch``, ``accuracy``, ...
    problem : dict
        ``model``, ``model_args``, ``data`` and ``loss`` of a self-describing checkpoint; empty for others.
    module : nn.Module or None
        The module itself where the file holds a pickled one and pickles are trusted.
    """

    path: Path
    sha256: str
    state_dict: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None


def read_checkpoint(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint written by ``torch.save``, Lightning or safetensors.

    Parameters
    ----------
    path : path-like
        A state dict, bare or nested in a dictionary (``state_dict``, ``model``, ...), or ``.safetensors``.
    trust_pickle : bool
        Read pickled Python objects too. They can run any code: only for files whose author you trust.

    Returns
    -------
    Checkpoint

    Raises
    ------
    InputError
        The file is missing, empty, truncated, not a checkpoint, holds no tensors, or needs ``trust_pickle``.
    """
    path = Path(path)
    digest = hash_file(path)
    with open(path, "rb") as handle:
        start = handle.read(64)
    if not start:
        raise InputError(f"{path} is empty; its writing was probably interrupted, use another checkpoint")
    if path.suffix == ".safetensors":
        contents, facts = _read_safetensors(path)
    else:
        contents = _read_torch(path, start, trust_pickle)
        facts = contents if isinstance(contents, Mapping) else {}
    tensors, module = find_state_dict(contents, path)
    described = facts.get(SELF_DESCRIPTION, {})
    if not isinstance(described, Mapping):
        described = {}
    metadata = _scalars(facts) | _scalars({k: v for k, v in described.items() if k not in _PROBLEM_KEYS})
    problem = _read_problem(described, path)
    return Checkpoint(path, digest, strip_wrappers(tensors), metadata, problem, module)


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, *, problem: Mapping[str, Any], **facts: Any
) -> Path:
    """Write a self-describing checkpoint, whole or not at all.

    Parameters
    ----------
    path : path-like
        An existing file of that name is replaced.
    model : nn.Module
        Its state dict is written; the model is not changed.
    problem : mapping
        ``model`` (a built-in name), ``model_args``, ``data`` and ``loss``: what ``load_problem`` needs to know.
    **facts
        Scalars worth showing with the results: ``step``, ``test_accuracy``, ...

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InputError
        A fact is not made of plain Python containers, numbers and strings.
    """
    path = Path(path)
    unknown = sorted(set(problem) - set(_PROBLEM_KEYS))
    if unknown:
        raise InputError(f"problem has the unknown key {unknown[0]!r}; it may hold {', '.join(_PROBLEM_KEYS)}")
    description = {key: _plain(value, key) for key, value in {**facts, **problem}.items()}
    state_dict = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    try:
        write_whole(path, lambda handle: torch.save({"state_dict": state_dict, SELF_DESCRIPTION: description}, handle))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint file, in hexadecimal; ``InputError`` where there is no readable file."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory, not a checkpoint; name the file in it")
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint at {path}; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _read_problem(described: Mapping[str, Any], path: Path) -> dict[str, Any]:
    problem = {key: described[key] for key in _PROBLEM_KEYS if described.get(key) is not None}
    for key, value in problem.items():
        expected = Mapping if key == "model_args" else str
        if not isinstance(value, expected):
            raise InputError(f"{path} describes itself with {key} = {value!r}; expected a {expected.__name__.lower()}")
    return problem


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # The format keeps no order: "features.4" before "features.11", as the model has them.
            names = sorted(file.keys(), key=_natural)
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({_first_line(error)}); copy or download it again"
        ) from None


def _read_torch(path: Path, start: bytes, trust_pickle: bool) -> Any:
    """The object in a ``torch.save`` file; ``start`` are its first bytes."""
    if start.startswith(b"\x80") and _TORCH_MAGIC not in start:
        return _read_plain_pickle(path, trust_pickle)
    try:
        with current_directory_first():  # for the classes of a pickle that is trusted
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        # torch.load answers damage with a dozen exception types (EOFError, KeyError, RuntimeError, OSError, ...):
        # what they mean for the user is told from the message and the first bytes.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{path} is not only tensors: it holds a pickled {refused[1]}, and reading that can run any code; "
                "save model.state_dict() instead, or pass --trust-pickle if you trust whoever wrote the file"
            ) from None
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript archive, which has no second derivatives here; save model.state_dict()"
            ) from None
        if isinstance(error, (AttributeError, ModuleNotFoundError)):
            raise InputError(
                f"{path} holds a pickled object whose class cannot be imported ({_first_line(error)}); run where "
                "its code is importable, or save model.state_dict()"
            ) from None
        if start.startswith((b"PK", b"\x80")):
            raise InputError(
                f"{path} is truncated or damaged, or is not a checkpoint ({_first_line(error)}); copy it again"
            ) from None
        raise InputError(
            f"{path} is not a checkpoint: expected a file written by torch.save (.pt, .pth, .pkl, .ckpt) "
            "or .safetensors"
        ) from None


def _read_plain_pickle(path: Path, trust_pickle: bool) -> Any:
    """A file written by ``pickle.dump`` rather than ``torch.save``."""
    if not trust_pickle:
        raise InputError(
            f"{path} was written by pickle, not by torch.save, and reading that can run any code; save it with "
            "torch.save(model.state_dict()), or pass --trust-pickle if you trust whoever wrote it"
        )
    try:
        with current_directory_first(), open(path, "rb") as handle:
            return pickle.load(handle)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{path} is a pickle that cannot be read ({_first_line(error)})") from None


def _natural(name: str) -> list[str | int]:
    """Sorting key that takes digits as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _scalars(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries that are JSON scalars, numpy and one-element tensors included; NaN and infinity are not JSON."""
    found = {}
    for key, value in facts.items():
        if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
            value = value.item()
        if isinstance(value, float) and not np.isfinite(value):
            value = str(value)
        if isinstance(key, str) and isinstance(value, (str, bool, int, float)):
            found[key] = value
    return found


def _plain(value: Any, key: str) -> Any:
    """``value`` in plain containers, so that the safe loader reads it back."""
    if isinstance(value, np.generic):  # before the numbers, since np.float64 is a float to Python
        return value.item()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, key) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item, key) for name, item in value.items()}
    raise InputError(f"{key} = {value!r} cannot be saved in a checkpoint; use numbers, strings, lists and dictionaries")
