"""Multilayer perceptron of any depth and widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.state_dicts import StateDict

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}


class MLP(nn.Module):
    """Linear layers with an activation between them, from (N, widths[0]) to (N, widths[-1]).

    ``names`` are those of the linear layers, dotted where they are nested; default ``fc1``, ``fc2``, ... A checkpoint
    keeps its own, so that results speak of layers by the names their owner gave them.
    """

    def __init__(
        self,
        widths: Sequence[int] = (784, 100, 10),
        *,
        activation: str = "relu",
        bias: bool = True,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise InputError(f"activation {activation!r} is not one of {', '.join(_ACTIVATIONS)}")
        if len(widths) < 2 or min(widths) < 1:
            raise InputError(f"widths {list(widths)} must name at least the inputs and the outputs, all positive")
        self._activation = _ACTIVATIONS[activation]
        self._names = list(names or _default_names(widths))
        for name, fan_in, fan_out in zip(self._names, widths[:-1], widths[1:], strict=True):
            _place(self, name, nn.Linear(fan_in, fan_out, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        for name in self._names[:-1]:
            x = self._activation(self.get_submodule(name)(x))
        return self.get_submodule(self._names[-1])(x)


def infer(state_dict: StateDict) -> dict[str, Any]:
    """Widths, names and whether there are biases, for any chain of linear layers in their order."""
    names = [key.removesuffix(".weight") for key in state_dict if key.endswith(".weight")]
    weights = [state_dict[f"{name}.weight"] for name in names]
    if any(weight.ndim != 2 for weight in weights):
        raise ValueError("not a chain of linear layers")
    widths = [weights[0].shape[1], *(weight.shape[0] for weight in weights)]
    found = {"widths": widths, "bias": f"{names[0]}.bias" in state_dict}
    return found if names == _default_names(widths) else found | {"names": names}


def _default_names(widths: Sequence[int]) -> list[str]:
    return [f"fc{i}" for i in range(1, len(widths))]


def _place(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Register a layer under a dotted path, making the containers on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in dict(root.named_children()):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, layer)
