"""One loss at many points: recorded once as tensor operations, and replayed by several cores on groups of points."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from pyhessian_spectra.curvature.batches import Batches
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.parameters import trainable_layout
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.errors import InputError

# The fused kernels take one short row at a time; in parts, a softmax over a few classes costs a third.
_IN_PARTS: Any = get_decompositions([torch.ops.aten._log_softmax, torch.ops.aten._log_softmax_backward_data])


def flat_loss(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], data: tuple[Tensor, Any], parameters: Tensor
) -> Callable[[Tensor], Tensor]:
    """The loss as a function of one flat parameter vector (n,), in the dtype of ``parameters``."""
    layout, _, _ = trainable_layout(model)
    if parameters.dim() != 2 or parameters.shape[1] != layout.n or not len(parameters):
        told = f"parameters must have shape (members, {layout.n}), a row for each of at least one member"
        raise InputError(f"{told}, got {tuple(parameters.shape)}")
    if parameters.dtype not in (torch.float32, torch.float64):
        raise InputError(f"parameters must be float32 or float64, got {parameters.dtype}; convert them with .double()")
    if not (isinstance(data, tuple) and len(data) == 2):
        raise InputError("data must be one pair (x, y) holding all training examples; concatenate the batches")
    batches = Batches([data], unpack=None, weight=lambda _: 1.0, num_terms=len)
    _, batch = next(batches.read(parameters.dtype, parameters.device))
    objective = Objective(copy.deepcopy(model).to(parameters).requires_grad_(False), loss_fn)

    def loss(flat: Tensor) -> Tensor:
        coordinates = layout.unflatten(flat)
        point = Point(layout, coordinates, dict(zip(layout.names, coordinates, strict=True)))
        return objective.run(point, batch, lambda: objective.evaluate(batch)[1])

    return loss


class Recorded:
    """A function of tensors, recorded once for each set of shapes and from then on replayed."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._graphs: dict[tuple[torch.Size, ...], fx.GraphModule] = {}
        self._lock = threading.Lock()

    def record(self, *args: Tensor) -> fx.GraphModule:
        """The recording for the shapes of ``args``."""
        shapes = tuple(arg.shape for arg in args)
        with self._lock:
            if shapes not in self._graphs:
                self._graphs[shapes] = make_fx(self._function, decomposition_table=_IN_PARTS)(*args)
        return self._graphs[shapes]

    def __call__(self, *args: Tensor) -> Tensor:
        return self.record(*args).forward(*args)

    def bytes_per_member(self, parameters: Tensor) -> int:
        """Bytes of all intermediate values for one member; counts as if none were freed."""
        sizes = (
            node.meta["val"].numel() * node.meta["val"].element_size()
            for node in self.record(parameters[:1].expand(2, -1).clone()).graph.nodes
            if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and not _is_view(node.target)
        )
        return max(1, sum(sizes) // 2)


def num_workers(parameters: Tensor) -> int:
    """Groups worked on side by side: one for each thread torch may use on the CPU."""
    return torch.get_num_threads() if parameters.device.type == "cpu" else 1


def in_parallel(function: Callable[[Any, threading.Event], Any], arguments: Iterable[Any], workers: int) -> list[Any]:
    """Call ``function(argument, stopped)`` for each argument; errors and Ctrl-C set ``stopped`` and drop the rest."""
    threads, stopped = torch.get_num_threads(), threading.Event()
    try:
        # with more threads each, operations on small groups lose more by waiting for one another than they gain
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                return list(pool.map(lambda argument: function(argument, stopped), arguments))
            finally:
                stopped.set()
    finally:  # some libraries below torch have one number of threads for the whole process
        torch.set_num_threads(threads)


@functools.cache
def _is_view(target: Any) -> bool:
    """Whether an ATen operator returns an alias of an argument; picking from a tuple does not count as one."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
