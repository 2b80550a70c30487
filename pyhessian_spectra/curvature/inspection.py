"""Facts about a model and the graph of its loss, found without changing either."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyhessian_spectra.errors import SecondDerivativeError

# The decorator's wrappers share one code object, by which they are recognised.
_ONCE_DIFFERENTIABLE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__


def dropout_modules(model: nn.Module) -> list[str]:
    """A phrase, with name, type and rate, for each module that applies dropout in train mode."""
    found = []
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0)
        if isinstance(rate, (int, float)) and rate > 0:
            found.append(f"{name or 'the model'} ({type(module).__name__}, rate {rate})")
    return found


class CalledFunctions(TorchFunctionMode):
    """Within this context, ``names`` collects the names of the torch functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def refuse_once_differentiable(value: Tensor) -> None:
    """Raise SecondDerivativeError if a function in the graph of ``value`` is marked once_differentiable.

    The gradient's graph ends there, so second derivatives silently lack a term: torch raises its own error only at a
    node that a derivative with respect to given inputs may never reach.
    """
    for node in nodes_of(value):
        function = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE_DIFFERENTIABLE:
            raise SecondDerivativeError(
                f"{function.__name__} has no second derivative (it is marked once_differentiable); replace it in the "  # type: ignore[union-attr]
                "model or the loss by operations that have one"
            )


def nodes_of(value: Tensor) -> set[torch.autograd.graph.Node]:
    """All nodes of the graph of a tensor."""
    found: set[torch.autograd.graph.Node] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found
