"""The architectures of the papers, with the parameter names of the checkpoints people have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures import gpt, lenet, lstm, mlp, resnet, vgg
from pyhessian_spectra.problems.architectures.base import Architecture
from pyhessian_spectra.problems.checkpoints import Checkpoint
from pyhessian_spectra.problems.fitting import fit_state_dict
from pyhessian_spectra.problems.state_dicts import strip_to_anchor

ARCHITECTURES: Mapping[str, Architecture] = {
    "mlp": Architecture(mlp.MLP, mlp.infer, "flat"),
    "lenet": Architecture(lenet.LeNet, lenet.infer, "image", "conv1.weight"),
    **{
        f"resnet{depth}": Architecture(
            partial(resnet.cifar_resnet, depth), partial(resnet.infer_cifar, depth), "image", "conv1.weight"
        )
        for depth in (20, 32, 44, 56)
    },
    "resnet18": Architecture(resnet.resnet18, resnet.infer_resnet18, "image", "conv1.weight"),
    "vgg11": Architecture(partial(vgg.VGG11, batch_norm=False), vgg.infer, "image", "features.0.weight"),
    "vgg11_bn": Architecture(partial(vgg.VGG11, batch_norm=True), vgg.infer, "image", "features.0.weight"),
    "lstm": Architecture(lstm.LSTMClassifier, lstm.infer, "rows", "lstm.weight_ih_l0"),
    "gpt": Architecture(gpt.GPT, gpt.infer, "tokens", "wte.weight"),
}


def canonical_name(name: str) -> str:
    """The spelling used in ``ARCHITECTURES``.

    >>> canonical_name("VGG11-BN")
    'vgg11_bn'
    """
    return name.lower().replace("-", "_")


def find_architecture(name: str) -> Architecture:
    """The architecture of that name, in any case and with ``-`` or ``_``; ``InputError`` lists the known ones.

    >>> find_architecture("LeNet").inputs
    'image'
    """
    key = canonical_name(name)
    if key not in ARCHITECTURES:
        close = difflib.get_close_matches(key, ARCHITECTURES, n=1)
        hint = f"did you mean {close[0]}? The " if close else "the "
        raise InputError(
            f"there is no built-in model {name!r}; {hint}known ones are {', '.join(ARCHITECTURES)}; for any other "
            "give --problem package.module:function"
        )
    return ARCHITECTURES[key]


def build_model(
    name: str, checkpoint: Checkpoint, *, model_args: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a built-in network and load a checkpoint into it.

    Parameters
    ----------
    name : str
        A key of ``ARCHITECTURES``.
    checkpoint : Checkpoint
    model_args : mapping, optional
        What the shapes do not tell (an activation, the number of attention heads), and what overrides them.

    Returns
    -------
    model : nn.Module
        In eval mode, on the CPU, float32.
    arguments : dict
        The keyword arguments it was built with.

    Raises
    ------
    InputError
        Unknown name, unknown or impossible argument, or a state dict that does not fit.
    """
    architecture = find_architecture(name)
    state_dict = checkpoint.state_dict
    if architecture.anchor:
        state_dict = strip_to_anchor(state_dict, architecture.anchor)
    try:
        arguments = architecture.infer(state_dict)
    except (LookupError, ValueError):
        arguments = {}
    arguments |= dict(model_args or {})
    # Parameters are drawn at random only to be overwritten: the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        try:
            model = architecture.module(**arguments)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the model {name} cannot be built with {describe_arguments(arguments)}: {error}"
            ) from None
    fit_state_dict(model, checkpoint, name=canonical_name(name))
    return model.eval(), arguments


def describe_arguments(arguments: Mapping[str, Any]) -> str:
    """``name=value, ...`` for a reader."""
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
