"""The probe data, read once and told from others, and the model that must not notice that it is evaluated on them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.curvature.failures import tensors_in
from pyhessian_spectra.curvature.risk import RANDOM
from pyhessian_spectra.errors import InputError, NonFiniteError


def held(batch: Any) -> Any:
    """A batch whose tensors are copies: a loader may use its own again."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, Mapping):
        return {name: held(each) for name, each in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(*map(held, batch)) if hasattr(batch, "_fields") else type(batch)(map(held, batch))
    return batch


def fingerprint(model: nn.Module, batches: Any) -> str:
    """What tells a model's modules and probe data from others: a hash of them."""
    found = hashlib.sha256()
    for name, module in model.named_modules():
        found.update(f"{name}: {type(module).__name__}({module.extra_repr()})".encode())
    for tensor in tensors_in(batches):
        found.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else b"")
    return found.hexdigest()[:16]


def require_quiet(risk: EmpiricalRisk) -> None:
    """Evaluate the loss twice; raises InputError if it fails, is random or not finite, or the model changes itself."""
    with unchanged_attributes(risk.model):
        first, second = risk.loss(), risk.loss()
    if not math.isfinite(first):
        raise NonFiniteError(f"the loss of the probe data is {first}; look at the data and at the parameters")
    if abs(second - first) > torch.finfo(risk.dtype).eps ** 0.5 * abs(first):
        raise InputError(f"the loss of the probe data was {first:.6g} and then {second:.6g}: {RANDOM}")


@contextlib.contextmanager
def unchanged_attributes(model: nn.Module) -> Iterator[None]:
    """Raise InputError if the model changes tensors or numbers that are neither parameters nor buffers; put them back.

    Training would not be what it is without a tracker.
    """
    kept = [
        (
            module,
            f"{prefix}.{name}".removeprefix("."),
            name,
            value,
            value.clone() if isinstance(value, Tensor) else value,
        )
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (Tensor, bool, int, float)) and name != "training"
    ]
    yield
    changed = []
    for module, path, name, value, copy in kept:
        now = getattr(module, name, None)
        if isinstance(value, Tensor) and isinstance(copy, Tensor):
            same = now is value and torch.equal(value, copy)
            if not same:
                with torch.no_grad():
                    value.copy_(copy)
        else:
            same = now is value or now == value
        if not same:
            setattr(module, name, value)
            changed.append(path)
    if changed:
        raise InputError(
            f"the model changes its attribute {changed[0]} when it is called, which is no buffer, so that measuring "
            "would change the training; make it one with register_buffer"
        )


@contextlib.contextmanager
def untouched(device: torch.device | None = None) -> Iterator[None]:
    """Leave the global generators as they were, and compute in the parameters' own precision."""
    devices = [device] if device is not None and device.type == "cuda" else []
    state, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False), contextlib.ExitStack() as stack:
            for kind in {"cpu", device.type if device is not None else "cpu"}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
