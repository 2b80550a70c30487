"""Facts about a model and the graph of its loss, found without changing either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from pyhessian_spectra.errors import InputError, SecondDerivativeError

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


class RefusedBroadcasts(TorchFunctionMode):
    """Within this context, targets (N,) that meet outputs (N, 1) raise InputError: the result would be (N, N)."""

    def __init__(self, targets: Any) -> None:
        super().__init__()
        self._targets = targets

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pair = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
        met = func in _ELEMENTWISE or (func not in _OF_LABELS and any(x is self._targets for x in pair))
        if met and len(pair) == 2 and _grows(*pair):
            shapes = " and ".join(str(tuple(x.shape)) for x in pair)
            raise InputError(
                f"the loss broadcasts outputs and targets, of shapes {shapes}, against one another, so that each "
                "example meets all others; give both one shape, such as targets[:, None]"
            )
        return func(*args, **(kwargs or {}))


_ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)  # torch warns here, unless it is silenced
_OF_LABELS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)


def _grows(a: Tensor, b: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(a.shape, b.shape).numel() > max(a.numel(), b.numel())
    except RuntimeError:
        return False


def refuse_hidden_parameters(value: Tensor, replaced: Mapping[str, Tensor]) -> None:
    """Raise InputError if the graph of ``value`` ends at parameters of the model that copies should replace."""
    names = {id(p): name for name, p in replaced.items()}
    for node in nodes_of(value):
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise InputError(
                f"the model or the loss uses the parameter {name} through a reference of its own (a captured tensor, a "
                "list, another module), where it would count as a constant; use the model's attribute when it is called"
            )


def coarsest_dtype(*values: Tensor) -> torch.dtype:
    """The floating dtype of largest eps in the graphs of tensors."""
    found = {value.dtype for value in values}
    for node in nodes_of(*values):
        passed = getattr(node, "_input_metadata", ())  # torch describes what is not there as a float32 scalar
        dtypes = (info.dtype for info in passed if len(passed) == 1 or info.shape)
        found.update(dtype.to_real() for dtype in dtypes if dtype.is_floating_point or dtype.is_complex)
    return max(found, key=lambda dtype: torch.finfo(dtype).eps)


def custom_functions(value: Tensor) -> list[str]:
    """Names of the users' autograd functions in the graph of ``value``."""
    functions: set[type] = {getattr(type(node), "_forward_cls", Tensor) for node in nodes_of(value)} - {Tensor}
    return sorted(f.__name__ for f in functions if not f.__module__.startswith(__name__.partition(".")[0]))


def labels_averaged(value: Tensor) -> float | None:
    """The weight by which a loss divides, where its graph holds one mean over labels (cross-entropy); else None."""
    means = [node for node in nodes_of(value) if getattr(node, "_saved_reduction", 0) == 1]
    weights = [float(node._saved_total_weight) for node in means if hasattr(node, "_saved_total_weight")]
    return weights[0] if len(weights) == 1 else None


def refuse_once_differentiable(value: Tensor) -> None:
    """Raise SecondDerivativeError if a function in the graph of ``value`` is marked once_differentiable.

    The gradient's graph ends there, so second derivatives silently lack a term: torch raises its own error only at a
    node that a derivative with respect to given inputs may never reach.
    """
    for node in nodes_of(value):
        function = getattr(type(node), "_forward_cls", None)
        if function is CheckpointFunction:  # derivatives leave out what lies in it
            raise SecondDerivativeError(
                "a segment under torch.utils.checkpoint has no second derivative; pass use_reentrant=False to "
                "checkpoint"
            )
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE_DIFFERENTIABLE:
            raise SecondDerivativeError(
                f"{function.__name__} has no second derivative (it is marked once_differentiable); replace it in the "  # type: ignore[union-attr]
                "model or the loss by operations that have one"
            )


def refuse_dependent(outputs: Sequence[Tensor]) -> None:
    """Raise InputError if one of several outputs is computed from another: derivatives in one would move the other."""
    nodes = [tensor.grad_fn for tensor in outputs]
    for tensor in outputs if len(outputs) > 1 else ():
        if any(node is not None and node is not tensor.grad_fn and node in nodes_of(tensor) for node in nodes):
            raise InputError(
                "one of the outputs is computed from another, so that derivatives in it would move both; return a copy "
                "of the other (features.clone()), or select= the one that the loss is taken of"
            )


def nodes_of(*values: Tensor) -> set[torch.autograd.graph.Node]:
    """All nodes of the graphs of tensors."""
    found: set[torch.autograd.graph.Node] = set()
    waiting = [value.grad_fn for value in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found
