"""State dicts: found in what a file holds, and freed of the prefixes of wrappers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError

# Where training scripts put the state dict inside their checkpoint, most specific first.
_NESTED_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)


def find_state_dict(contents: Any, path: Path) -> tuple[dict[str, Tensor], nn.Module | None]:
    """The state dict in the object that a checkpoint file holds, and the module where it is a pickled one.

    Raises
    ------
    InputError
        There are no tensors, or several state dicts among which only the user can choose.
    """
    if isinstance(contents, nn.Module):
        module = _unwrap(contents)
        return dict(module.state_dict()), module
    if not isinstance(contents, Mapping):
        raise InputError(
            f"{path} holds a {type(contents).__name__}, not a state dict; save model.state_dict() in its place"
        )
    for key in _NESTED_KEYS:
        if _holds_tensors(contents.get(key)):
            return find_state_dict(contents[key], path)
    tensors = _tensors(contents)
    if tensors:
        return tensors, None
    nested = [key for key, value in contents.items() if _holds_tensors(value)]
    if not nested:
        raise InputError(f"{path} holds no tensors (its keys: {_listed(contents)}); save model.state_dict() in it")
    if len(nested) > 1:
        raise InputError(
            f"{path} holds {len(nested)} state dicts ({_listed(nested)}); save the one to analyse in its own file"
        )
    return find_state_dict(contents[nested[0]], path)


def strip_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without ``module.`` where every key starts with it, and without ``_orig_mod.`` wherever it stands.

    >>> list(strip_wrappers({"module._orig_mod.fc.weight": None, "module._orig_mod.fc.bias": None}))
    ['fc.weight', 'fc.bias']
    """
    stripped = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in state_dict.items()}
    while stripped and all(name.startswith("module.") for name in stripped):
        stripped = {name.removeprefix("module."): tensor for name, tensor in stripped.items()}
    return stripped


def strip_to_anchor(state_dict: Mapping[str, Tensor], anchor: str) -> dict[str, Tensor]:
    """Keys without the prefix that all of them share and that makes one of them ``anchor``.

    Lightning and other wrappers prefix every key with the attribute that holds the network.

    >>> list(strip_to_anchor({"net.conv1.weight": None, "net.layer1.conv1.weight": None}, "conv1.weight"))
    ['conv1.weight', 'layer1.conv1.weight']
    """
    for name in sorted(state_dict, key=len):
        prefix = name.removesuffix(anchor)
        if prefix != name and (not prefix or prefix.endswith(".")) and all(k.startswith(prefix) for k in state_dict):
            return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return dict(state_dict)


def _unwrap(module: nn.Module) -> nn.Module:
    """The network inside ``DataParallel`` and ``torch.compile`` wrappers."""
    while isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(module, "_orig_mod"):
        module = module.get_submodule("_orig_mod" if hasattr(module, "_orig_mod") else "module")
    return module


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    if not isinstance(value, Mapping):
        return False
    # Only under the known names: the state of an optimizer holds tensors too, deeper down.
    return bool(_tensors(value)) or any(_holds_tensors(value.get(key)) for key in _NESTED_KEYS)


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The named tensors among a mapping's values; arrays, which plain pickles hold, become tensors."""
    found = {}
    for name, value in mapping.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(value.copy())
        if isinstance(name, str) and isinstance(value, Tensor):
            found[name] = value.detach()
    return found


def _listed(keys: Any) -> str:
    shown = [str(key) for key in list(keys)[:6]]
    return ", ".join(shown + ["..."] * (len(keys) > 6)) or "none"
