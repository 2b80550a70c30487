"""What a model and the graph of its loss are made of, found without changing either."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyhessian_spectra.curvature.calling import Batch, Point, called, loss_of, outputs_of
from pyhessian_spectra.errors import SecondDerivativeError

if TYPE_CHECKING:
    from pyhessian_spectra.curvature.risk import EmpiricalRisk

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


def unused(risk: EmpiricalRisk, point: Point, batch: Batch) -> list[str]:
    """Names of the coordinates that one batch's loss does not depend on."""
    with called(risk, batch):
        value = loss_of(risk, outputs_of(risk, point, batch), batch)
        if not value.requires_grad:
            return list(risk.layout.names)
        parts = torch.autograd.grad(value, point.coordinates, allow_unused=True)
    return [name for name, part in zip(risk.layout.names, parts, strict=True) if part is None]


def called_functions(risk: EmpiricalRisk, point: Point, batch: Batch) -> set[str]:
    """Names of the torch functions one forward pass calls."""
    with torch.no_grad(), called(risk, batch), _Recorder() as recorder:
        outputs_of(risk, point, batch)
    return recorder.names


class _Recorder(TorchFunctionMode):
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
    for node in _nodes(value):
        function = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE_DIFFERENTIABLE:
            raise SecondDerivativeError(
                f"{function.__name__} has no second derivative (it is marked once_differentiable); replace it in the "  # type: ignore[union-attr]
                "model or the loss by operations that have one"
            )


def _nodes(value: Tensor) -> set[torch.autograd.graph.Node]:
    """The nodes of the graph of a tensor."""
    found: set[torch.autograd.graph.Node] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


@contextlib.contextmanager
def measured_bytes() -> Iterator[list[int]]:
    """Within the block, count the bytes of distinct storages that autograd saves; the list's one entry is the sum."""
    seen: set[int] = set()
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
