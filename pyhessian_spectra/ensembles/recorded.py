"""Functions recorded once and replayed by several cores, each on data of its own."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

# The fused kernels take one short row at a time; in parts, a softmax over a few classes costs a third.
_IN_PARTS: Any = get_decompositions([torch.ops.aten._log_softmax, torch.ops.aten._log_softmax_backward_data])


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


@contextlib.contextmanager
def one_thread_each(parameters: Tensor) -> Iterator[Callable[..., list[Any]]]:
    """Give a ``run(function, arguments)`` whose workers leave torch one thread each.

    Operations on small groups lose more by waiting for each other's threads than they gain. The number of threads is a
    setting of the process in some of the libraries below torch, so it is put back.
    """
    threads = torch.get_num_threads()
    workers = num_workers(parameters)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda function, arguments: list(pool.map(function, arguments))
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _is_view(target: Any) -> bool:
    """Whether an ATen operator returns an alias of an argument; picking from a tuple does not count as one."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
