"""State dicts: read from files, found in what these hold, and freed of the prefixes of wrappers."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.user_factory import current_directory_first

StateDict = Mapping[str, Tensor]

# Where training scripts put the state dict inside their checkpoint, most specific first.
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
# The number that torch.save puts first in files that are not zip archives, as pickle encodes it.
_TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:-1]
_UNSAFE = "which can run any code when read; save model.state_dict(), or pass --trust-pickle if you trust its author"


def read_contents(path: Path, trust_pickle: bool) -> Any:
    """The object in a file by ``torch.save``, safetensors or, where trusted, ``pickle.dump``."""
    with open(path, "rb") as handle:
        start = handle.read(64)
    if not start:
        raise InputError(f"{path} is empty; its writing was probably interrupted, use another checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    is_plain = start.startswith(b"\x80") and _TORCH_MAGIC not in start
    if is_plain and not trust_pickle:
        raise InputError(f"{path} is a pickle that torch.save did not write, {_UNSAFE}")
    try:
        with current_directory_first():  # for the classes of a pickle that is trusted
            if is_plain:
                return pickle.loads(path.read_bytes())
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{path} {_defect(error, start)}") from None


def find_state_dict(contents: Any, path: Path) -> tuple[dict[str, Tensor], nn.Module | None]:
    """The state dict in what a file holds, and the module where it is a pickled one; several are an ``InputError``."""
    if isinstance(contents, nn.Module):
        module = _unwrap(contents)
        return dict(module.state_dict()), module
    if not isinstance(contents, Mapping):
        raise InputError(f"{path} holds a {type(contents).__name__}, not a state dict; save model.state_dict() instead")
    known = [key for key in _NESTED if _holds_tensors(contents.get(key))]
    tensors = _tensors(contents)
    if tensors and not known:
        return tensors, None
    nested = known[:1] or [key for key, value in contents.items() if _holds_tensors(value)]
    if not nested:
        raise InputError(f"{path} holds no tensors (its keys: {_listed(contents)}); save model.state_dict() in it")
    if len(nested) > 1:
        raise InputError(f"{path} holds {len(nested)} state dicts ({_listed(nested)}); save the one to analyse alone")
    return find_state_dict(contents[nested[0]], path)


def strip_wrappers(state_dict: StateDict) -> dict[str, Tensor]:
    """Keys without ``module.`` where every key starts with it, and without ``_orig_mod.`` wherever it stands.

    >>> list(strip_wrappers({"module._orig_mod.fc.weight": None, "module._orig_mod.fc.bias": None}))
    ['fc.weight', 'fc.bias']
    """
    stripped = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in state_dict.items()}
    while stripped and all(name.startswith("module.") for name in stripped):
        stripped = {name.removeprefix("module."): tensor for name, tensor in stripped.items()}
    return stripped


def find_prefix(state_dict: StateDict, anchor: str) -> str:
    """What stands before the key ``anchor``, such as Lightning's ``net.``; empty where that is nothing, or several.

    A network within the network, whose prefix begins with the other, is none of several.

    >>> find_prefix({"net.conv1.weight": None, "net.layer1.conv1.weight": None, "loss.weight": None}, "conv1.weight")
    'net.'
    >>> find_prefix({"net.conv1.weight": None, "teacher.conv1.weight": None}, "conv1.weight")
    ''
    """
    found: list[str] = []
    for name in sorted(state_dict, key=len) if anchor else ():
        prefix = name.removesuffix(anchor)
        ends = prefix != name and (not prefix or prefix.endswith("."))
        if ends and not any(prefix.startswith(outer) for outer in found):
            found.append(prefix)
    return found[0] if len(found) == 1 else ""


def under_prefix(state_dict: StateDict, prefix: str) -> dict[str, Tensor]:
    """The entries whose keys begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


def count_prefixes(state_dict: StateDict) -> str:
    """What keys begin with, and how many do.

    >>> count_prefixes({"net.a": None, "net.b": None, "loss.weight": None})
    'net. (2), loss. (1)'
    """
    counts = Counter(key.partition(".")[0] + "." for key in state_dict if "." in key)
    return ", ".join(f"{prefix} ({count})" for prefix, count in counts.most_common(4))


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # The format keeps no order: "features.4" before "features.11", as the model has them.
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys(), key=_natural)}
            return {**(file.metadata() or {}), "state_dict": tensors}
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"is not a complete safetensors file ({_first_line(error)}); copy or download it again"
        raise InputError(f"{path} {reason}") from None


def _defect(error: Exception, start: bytes) -> str:
    """What is wrong with a file, told from its first bytes and from the error, which may be of a dozen types."""
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return f"holds more than tensors: a pickled {refused[1]}, {_UNSAFE}"
    if "TorchScript" in str(error):
        return "is a TorchScript archive, which has no second derivatives here; save model.state_dict()"
    reason = _first_line(error)
    if isinstance(error, (AttributeError, ModuleNotFoundError)):
        return f"holds a class that cannot be imported ({reason}); run where it can be, or save model.state_dict()"
    if start.startswith((b"PK", b"\x80")):
        return f"is truncated or damaged, or is not a checkpoint ({reason}); copy it again"
    return "is not a checkpoint: expected a file written by torch.save (.pt, .pth, .pkl, .ckpt) or .safetensors"


def _natural(name: str) -> list[str | int]:
    """Sorting key that takes digits as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _unwrap(module: nn.Module) -> nn.Module:
    """The network inside ``DataParallel`` and ``torch.compile`` wrappers."""
    while isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(module, "_orig_mod"):
        module = module.get_submodule("_orig_mod" if hasattr(module, "_orig_mod") else "module")
    return module


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, nn.Module)
    # Only under the known names: the state of an optimizer holds tensors too, deeper down.
    return bool(_tensors(value)) or any(_holds_tensors(value.get(key)) for key in _NESTED)


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The named tensors among a mapping's values; arrays, which plain pickles hold, become tensors."""
    found = {}
    for name, value in mapping.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(value.copy())
        if isinstance(name, str) and isinstance(value, Tensor):
            found[name] = value.detach()
    return found


def _listed(keys: Collection[Any]) -> str:
    shown = [str(key) for key in keys][:6]
    return ", ".join(shown + ["..."] * (len(keys) > 6)) or "none"
