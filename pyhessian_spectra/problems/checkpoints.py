"""Checkpoint: what a saved file says about a model's parameters, and how it gets into a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.problems.pretrained import ModelFolder, is_model_folder, read_model_folder
from pyhessian_spectra.problems.state_dicts import (
    count_prefixes,
    find_prefix,
    find_state_dict,
    read_contents,
    strip_wrappers,
    under_prefix,
)

# The key under which save_checkpoint describes the problem a state dict belongs to.
_SELF_DESCRIPTION = "pyhessian_spectra"
_PROBLEM_KEYS = ("model", "model_args", "data", "loss")


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one checkpoint: of a file, or of a folder of Hugging Face.

    Parameters
    ----------
    path : Path
    sha256 : str
        Hexadecimal digest of the file; of a folder, that of the names and digests of all the files it is read from.
    state_dict : dict of str to Tensor
        Parameters and buffers on the CPU, in the dtype they were saved in (of a folder in float32), free of the
        prefixes that ``DataParallel`` (``module.``) and ``torch.compile`` (``_orig_mod.``) add.
    metadata : dict
        JSON scalars found beside the state dict: ``step``, ``epoch``, ``accuracy``, ...
    problem : dict
        ``model``, ``model_args``, ``data`` and ``loss`` of a self-describing checkpoint; empty for others.
    module : nn.Module or None
        The module itself where the file holds a pickled one and pickles are trusted, or the network of a folder, whose
        outputs are its logits.
    folder : ModelFolder or None
        What a folder holds beside the parameters.
    """

    path: Path
    sha256: str
    state_dict: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    folder: ModelFolder | None = None


def read_checkpoint(
    path: str | os.PathLike[str], *, trust_pickle: bool = False, prefix: str | None = None
) -> Checkpoint:
    """Read a checkpoint written by ``torch.save``, Lightning, safetensors or ``save_pretrained``.

    Parameters
    ----------
    path : path-like
        A state dict, bare or nested in a dictionary (``state_dict``, ``model``, ...), or ``.safetensors``. Or a folder
        with ``config.json`` and safetensors, or with a LoRA adapter, which transformers and peft read where they are
        installed: nothing is downloaded, and no code from the folder is run.
    trust_pickle : bool
        Read pickled Python objects too. They can run any code: only for files whose author you trust.
    prefix : str, optional
        What the names of the network's tensors begin with, such as ``net.``; others are left out.

    Returns
    -------
    Checkpoint

    Raises
    ------
    InputError
        The file is missing, empty, truncated, not a checkpoint, holds no tensors, none under ``prefix``, or needs
        ``trust_pickle``; or a folder does not fit together, or a package that reads it is not installed.
    """
    path = Path(path)
    if is_model_folder(path):
        if prefix is not None:
            raise InputError(
                f"prefix cannot be given with the folder {path}: its config says which model it belongs to"
            )
        network, folder = read_model_folder(path, trust_pickle)
        told = "".join(f"{file.name} {hash_file(file)}\n" for file in folder.files)
        digest = hashlib.sha256(told.encode()).hexdigest()
        return Checkpoint(path, digest, dict(network.state_dict()), folder.facts, module=network, folder=folder)
    digest = hash_file(path)
    contents = read_contents(path, trust_pickle)
    tensors, module = find_state_dict(contents, path)
    # in a bare state dict nothing lies beside the tensors: the counters of a BatchNorm are no facts
    facts = {k: v for k, v in contents.items() if k not in tensors} if isinstance(contents, Mapping) else {}
    described = facts.get(_SELF_DESCRIPTION)
    described = described if isinstance(described, Mapping) else {}
    metadata = _scalars(facts) | _scalars({k: v for k, v in described.items() if k not in _PROBLEM_KEYS})
    problem = {key: described[key] for key in _PROBLEM_KEYS if described.get(key) is not None}
    for key, value in problem.items():
        expected = Mapping if key == "model_args" else str
        if not isinstance(value, expected):
            raise InputError(f"{path} describes itself with {key} = {value!r}; expected a {expected.__name__.lower()}")
    state_dict = strip_wrappers(tensors)
    if prefix is None:
        return Checkpoint(path, digest, state_dict, metadata, problem, module)
    chosen = under_prefix(state_dict, f"{prefix.rstrip('.')}." if prefix else "")
    if not chosen or module is not None:
        held = "a pickled module" if module is not None else f"names that begin with {count_prefixes(state_dict)}"
        raise InputError(f"{path} holds nothing under the prefix {prefix!r}, but {held}; name another prefix or none")
    return Checkpoint(path, digest, chosen, metadata, problem)


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
        write_whole(path, lambda handle: torch.save({"state_dict": state_dict, _SELF_DESCRIPTION: description}, handle))
    except (OSError, RuntimeError) as error:  # torch's writer has errors of its own where the disk is full
        raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    return path


def fit_state_dict(model: nn.Module, checkpoint: Checkpoint, *, name: str | None = None) -> None:
    """Load a checkpoint into a model, all of it or none.

    Parameters
    ----------
    model : nn.Module
        Receives the values, in its own dtype and on its own device.
    checkpoint : Checkpoint
        A prefix that the model's keys do not have (``model.``, as Lightning adds it) is left out, and what does not
        have it (the weights of a loss, metrics); see :func:`left_out`. ``num_batches_tracked`` may be missing: it
        plays no part in the output of a BatchNorm. So may a tied parameter whose other name is there.
    name : str, optional
        What an error calls the model; default its class.

    Raises
    ------
    InputError
        Keys are missing, unexpected, of another shape or dtype; the first of each kind is named.
    NonFiniteError
        A parameter or buffer holds NaN or infinity.
    """
    own = model.state_dict(keep_vars=True)  # the names of a tied parameter then lead to one object
    given = under_prefix(checkpoint.state_dict, find_prefix(checkpoint.state_dict, next(iter(own), "")))
    filled = {id(tensor) for key, tensor in own.items() if key in given}
    defects = {
        "missing": [k for k, t in own.items() if id(t) not in filled and not k.endswith("num_batches_tracked")],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [
            f"{key}: {tuple(given[key].shape)} in the file, {tuple(tensor.shape)} in the model"
            for key, tensor in own.items()
            if key in given and given[key].shape != tensor.shape
        ],
        "that are no real floats": [  # quantised weights without their scales, complex ones
            f"{key}: {given[key].dtype} in the file"
            for key, tensor in own.items()
            if key in given and tensor.is_floating_point() and not given[key].is_floating_point()
        ],
    }
    complaints = "; ".join(f"{len(found)} {what} (first {found[0]})" for what, found in defects.items() if found)
    if complaints:
        told = f"the model {name or type(model).__name__} of {len(own)} tensors: {complaints}"
        begin = count_prefixes(checkpoint.state_dict)
        hint = f", or what its names begin with by --prefix: {begin}" if begin else ""
        raise InputError(f"{checkpoint.path} does not fit {told}; name the model that was trained{hint}")
    check_finite(replace(checkpoint, state_dict=given))
    with torch.no_grad():
        for key, tensor in own.items():
            if key in given:
                tensor.copy_(given[key])


def left_out(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Names of a file's tensors that are not the model's, since they do not have the prefix that its own have."""
    prefix = find_prefix(checkpoint.state_dict, next(iter(model.state_dict()), ""))
    return [name for name in checkpoint.state_dict if not name.startswith(prefix)]


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise ``NonFiniteError`` naming the first tensor that holds NaN or infinity."""
    for name, tensor in checkpoint.state_dict.items():
        count = int((~torch.isfinite(tensor)).sum())
        if count:
            found = f"NaN or infinity in {name} ({count} of its {tensor.numel()} values)"
            raise NonFiniteError(f"{checkpoint.path} holds {found}; training had diverged, use an earlier checkpoint")


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint file, in hexadecimal; ``InputError`` where there is no readable file."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory without config.json, not a checkpoint; name the file in it")
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint at {path}; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


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
    try:
        return json.loads(json.dumps(value, default=lambda v: dict(v) if isinstance(v, Mapping) else v.item()))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        expected = "use numbers, strings, lists and dictionaries"
        raise InputError(f"{key} = {value!r} cannot be saved in a checkpoint; {expected}") from None
