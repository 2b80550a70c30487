"""The processes that share the work on one risk. No other module uses torch.distributed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyhessian_spectra import errors
from pyhessian_spectra.errors import InputError

_T = TypeVar("_T")


class Processes:
    """The ranks of a process group, which call the same methods in the same order; by default this process alone."""

    def __init__(self, group: Any | None = None) -> None:
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def __bool__(self) -> bool:
        return self.group is not None

    def sum(self, total: Tensor, extra: Tensor, failure: Exception | None) -> tuple[Tensor, Tensor]:
        """The sums of two tensors over the ranks, in one reduction; if any rank has failed, all ranks raise.

        ``total`` has one shape on all ranks, including failed ones. ``extra`` (q,) is float64 and sent as two parts in
        the dtype of ``total``: with float32 it keeps about 48 bits, if each entry is zero on all ranks but one.
        """
        high = extra.to(total.dtype)
        low = (extra - high.double()).to(total.dtype)
        failed = total.new_full((1,), float(failure is not None))
        buffer = torch.cat([total.reshape(-1), high, low, failed])
        dist.all_reduce(buffer, group=self.group)
        if float(buffer[-1]):
            self.raise_failure(failure)
        count, q = total.numel(), len(extra)
        summed = buffer[count : count + q].double() + buffer[count + q : count + 2 * q].double()
        return buffer[:count].view_as(total), summed

    def gather(self, value: _T) -> list[_T]:
        """The list of each rank's value, in the order of ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: _T) -> _T:
        """The first rank's value, on all ranks."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=dist.get_global_rank(self.group, 0), group=self.group)
        return values[0]

    def agree(self, failure: Exception | None) -> None:
        """Raise on all ranks if one of them has failed."""
        if self.group is None:
            if failure is not None:
                raise failure
        else:
            self.raise_failure(failure)

    def raise_failure(self, failure: Exception | None) -> None:
        """Raise the first failure of any rank: its own exception there, its message on the other ranks."""
        told = None if failure is None else (type(failure).__name__, str(failure))
        for rank, found in enumerate(self.gather(told)):
            if found is None:
                continue
            if rank == self.rank and failure is not None:
                raise failure
            kind = getattr(errors, found[0], None)
            alike = kind if kind is not None and issubclass(kind, InputError) else InputError
            raise alike(f"process {rank} of {self.size} failed: {found[1]}")


@contextlib.contextmanager
def launched(device: str | None) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, joined by NCCL (one GPU each) or gloo; else this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    on_gpu = device is not None and device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    processes = Processes(dist.group.WORLD)
    try:
        yield processes
    finally:
        processes.group = None  # else a traceback may keep the group alive, and its threads abort
        dist.destroy_process_group()
