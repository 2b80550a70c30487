"""The architectures of the papers, with the parameter names of the checkpoints people have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures import gpt, lenet, lstm, mlp, resnet, vgg
from pyhessian_spectra.problems.checkpoints import Checkpoint, fit_state_dict
from pyhessian_spectra.problems.names import canonical_name, find_builtin
from pyhessian_spectra.problems.state_dicts import StateDict, find_prefix, under_prefix


class Architecture(NamedTuple):
    """How to rebuild one family of networks from nothing but its name and the shapes in a state dict."""

    # Makes the network from keyword arguments, all of which have defaults.
    module: Callable[..., nn.Module]
    # Reads those arguments off a state dict. Where this is of another network, it may raise LookupError or ValueError:
    # the defaults then stand, and fitting says what is missing.
    infer: Callable[[StateDict], dict[str, Any]]
    # A key that all state dicts of the family have, by which its prefix is recognised; empty for none.
    anchor: str = ""


ARCHITECTURES: Mapping[str, Architecture] = {
    "mlp": Architecture(mlp.MLP, mlp.infer),
    "lenet": Architecture(lenet.LeNet, lenet.infer, "conv1.weight"),
    **{
        f"resnet{depth}": Architecture(partial(resnet.cifar_resnet, depth), resnet.infer, "conv1.weight")
        for depth in (20, 32, 44, 56)
    },
    "resnet18": Architecture(resnet.resnet18, resnet.infer_resnet18, "conv1.weight"),
    "vgg11": Architecture(partial(vgg.VGG11, batch_norm=False), vgg.infer, "features.0.weight"),
    "vgg11_bn": Architecture(partial(vgg.VGG11, batch_norm=True), vgg.infer, "features.0.weight"),
    "lstm": Architecture(lstm.LSTMClassifier, lstm.infer, "lstm.weight_ih_l0"),
    "gpt": Architecture(gpt.GPT, gpt.infer, "wte.weight"),
}


def build_model(
    name: str, checkpoint: Checkpoint, *, model_args: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a built-in network (eval mode, CPU, float32) with a checkpoint's values, and say with which arguments.

    ``model_args`` say what the shapes do not tell (an activation, the number of attention heads) and override what
    they do. ``InputError`` says which name or argument is impossible, or why the state dict does not fit.
    """
    architecture = find_builtin("model", name, ARCHITECTURES)
    try:
        prefix = find_prefix(checkpoint.state_dict, architecture.anchor)
        arguments = architecture.infer(under_prefix(checkpoint.state_dict, prefix))
    except (LookupError, ValueError):
        arguments = {}
    arguments |= dict(model_args or {})
    # Parameters are drawn at random only to be overwritten: the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        try:
            model = architecture.module(**arguments)
        except InputError:
            raise
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            told = describe_arguments(arguments)
            raise InputError(f"the model {name} cannot be built with {told}: {error}") from None
    fit_state_dict(model, checkpoint, name=canonical_name(name))
    return model.eval(), arguments


def describe_arguments(arguments: Mapping[str, Any]) -> str:
    """``name=value, ...`` for a reader."""
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
