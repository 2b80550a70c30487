"""What a model and the graph of its loss are made of, found without changing either."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyhessian_spectra.errors import SecondDerivativeError

# All functions that the decorator wraps share the code of its wrapper.
_ONCE_DIFFERENTIABLE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__


def dropout_modules(model: nn.Module) -> list[str]:
    """Names and rates of the modules that draw at random in train mode."""
    found = []
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0)
        if isinstance(rate, (int, float)) and rate > 0:
            found.append(f"{name or 'the model'} ({type(module).__name__}, rate {rate})")
    return found


class CalledFunctions(TorchFunctionMode):
    """Within it, the names of the torch functions that are called are collected in ``names``."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def refuse_once_differentiable(value: Tensor) -> None:
    """Raise where a function in the graph of ``value`` is marked once_differentiable.

    The graph of its gradient is cut there, and a derivative with respect to given inputs comes out too small without a
    word: torch's own error waits at a node that such a derivative never reaches, or is not there at all.
    """
    for node in nodes_of(value):
        function = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE_DIFFERENTIABLE:
            raise SecondDerivativeError(
                f"{function.__name__} has no second derivative (it is marked once_differentiable); replace it in the "  # type: ignore[union-attr]
                "model or the loss by operations that have one"
            )


def nodes_of(value: Tensor) -> set[torch.autograd.graph.Node]:
    """The nodes of the graph of a tensor."""
    found: set[torch.autograd.graph.Node] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found
