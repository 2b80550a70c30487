"""A checkpoint's values put into a model: all of them, or none and a sentence that says why not."""

from __future__ import annotations

import torch
from torch import nn

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.problems.checkpoints import Checkpoint
from pyhessian_spectra.problems.state_dicts import strip_to_anchor


def fit_state_dict(model: nn.Module, checkpoint: Checkpoint, *, name: str | None = None) -> None:
    """Load a checkpoint into a model, all of it or none.

    Parameters
    ----------
    model : nn.Module
        Receives the values, in its own dtype and on its own device.
    checkpoint : Checkpoint
        A prefix that all its keys share and the model's do not have (``model.``, as Lightning adds it) is left
        out. ``num_batches_tracked`` may be missing: it plays no part in the output of a BatchNorm. So may a tied
        parameter whose other name is there.
    name : str, optional
        What an error calls the model; default its class.

    Raises
    ------
    InputError
        Keys are missing, unexpected or of another shape; the first of each kind is named.
    NonFiniteError
        A parameter or buffer holds NaN or infinity.
    """
    own = model.state_dict()
    state_dict = strip_to_anchor(checkpoint.state_dict, next(iter(own), ""))
    tied = _names_of_tied_parameters(model)
    missing = [
        key
        for key in own
        if key not in state_dict
        and not key.endswith("num_batches_tracked")
        and not any(other in state_dict for other in tied.get(key, ()))
    ]
    unexpected = [key for key in state_dict if key not in own]
    misshaped = [key for key in own if key in state_dict and own[key].shape != state_dict[key].shape]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected:
        complaints.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if misshaped:
        first = misshaped[0]
        shapes = f"{tuple(state_dict[first].shape)} in the file, {tuple(own[first].shape)} in the model"
        complaints.append(f"{len(misshaped)} of another shape (first {first}: {shapes})")
    if complaints:
        raise InputError(
            f"{checkpoint.path} does not fit the model {name or type(model).__name__} of {len(own)} tensors: "
            f"{'; '.join(complaints)}; name the model that was trained"
        )
    check_finite(checkpoint)
    with torch.no_grad():
        for key, tensor in own.items():
            if key in state_dict:
                tensor.copy_(state_dict[key])


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise ``NonFiniteError`` naming the first tensor that holds NaN or infinity."""
    for name, tensor in checkpoint.state_dict.items():
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{checkpoint.path} holds NaN or infinity in {name} ({count} of its {tensor.numel()} values); "
                "training had diverged, use an earlier checkpoint"
            )


def _names_of_tied_parameters(model: nn.Module) -> dict[str, list[str]]:
    """For each parameter that has several names, those names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}
