"""KrylovBasis: Krylov vectors in memory up to a budget, and in a memory-mapped temporary file beyond it."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import psutil
import torch
from torch import Tensor

from pyhessian_spectra.errors import OutOfMemoryError
from pyhessian_spectra.spectra.space import VectorSpace

# Vectors are moved and multiplied in blocks of about this many bytes: large enough for the disk and for BLAS, small
# beside any basis that does not fit in memory. Blocks of fewer than 4 rows would pass over ``w`` too often.
_BLOCK_BYTES, _FEWEST_ROWS, _MOST_ROWS = 2**24, 4, 64


class KrylovBasis:
    """Vectors of one space, one per row, appended one by one and read in order, in blocks.

    The first blocks stay on the vectors' device; on an accelerator the next ones go to host memory; the rest are mapped
    from an unnamed temporary file, which the operating system frees when the process ends, however it ends. Each memory
    holds ``memory_budget`` bytes, by default half of what is free when the first block is full. Since a basis is always
    read from end to end, no rule is better than to keep the first blocks and to read the others each time. The place of
    a block changes neither its shape nor its content, so results are the same bit for bit.
    """

    def __init__(self, space: VectorSpace, *, memory_budget: int | None = None) -> None:
        self._space, self._budget = space, memory_budget
        self._row_bytes = space.local_n * space.dtype.itemsize
        rows = min(max(_BLOCK_BYTES // self._row_bytes, _FEWEST_ROWS), _MOST_ROWS)
        self._open = torch.empty(rows, space.local_n, dtype=space.dtype, device=space.device)
        self._filled = 0
        self._full: list[Tensor] = []  # on the device first, then in host memory, then mapped from the file
        self._file: BinaryIO | None = None
        self._on_disk = 0  # blocks
        self._limits: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._full) * len(self._open) + self._filled

    def append(self, v: Tensor, norm: float) -> Tensor:
        """Add ``v / norm`` and return it, as a view that stays valid until two more vectors have been added."""
        if self._filled == len(self._open):
            self._put_away()
        row = self._open[self._filled]
        torch.div(v, norm, out=row)
        self._filled += 1
        return row

    def _blocks(self, stop: int | None = None) -> Iterator[Tensor]:
        """Yield the vectors, or the first ``stop`` of them, in blocks (b, n) on the space's device."""
        left = len(self) if stop is None else stop
        for block in [*self._full, self._open[: self._filled]]:
            if left <= 0:
                return
            yield block[:left].to(self._space.device)
            left -= len(block)

    def remove_from(self, w: Tensor) -> None:
        """Subtract from ``w`` (n,), in place and block by block, its components along the vectors."""
        for block in self._blocks():
            w.addmv_(block.T, self._space.gram(block, w[:, None])[:, 0].to(w), alpha=-1)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Linear combinations of the first ``m`` vectors, for coefficients (m, k), in columns (n, k)."""
        coefficients = coefficients.to(self._open)
        start, total = 0, self._open.new_zeros(self._open.shape[1], coefficients.shape[1])
        for block in self._blocks(len(coefficients)):
            total.addmm_(block.T, coefficients[start : start + len(block)])
            start += len(block)
        return total

    def dots(self, v: Tensor) -> Tensor:
        """The inner products of the vectors with ``v`` (n,), shape (m,), float64."""
        return torch.cat([self._space.gram(block, v[:, None])[:, 0] for block in self._blocks()])

    def coordinates(self, indices: Tensor) -> Tensor:
        """These coordinates (c,) of all vectors, shape (m, c)."""
        contiguous = len(indices) and int(indices[-1]) - int(indices[0]) + 1 == len(indices)
        chosen = slice(int(indices[0]), int(indices[-1]) + 1) if contiguous else indices
        parts = [*self._full, self._open[: self._filled]]
        return torch.cat([part[:, chosen].to(self._space.device) for part in parts])

    def rows(self, stop: int) -> Tensor:
        """A copy of the first ``stop`` vectors in memory, shape (stop, n)."""
        start, rows = 0, self._open.new_empty(stop, self._open.shape[1])
        for block in self._blocks(stop):
            rows[start : start + len(block)] = block
            start += len(block)
        return rows

    def deviation(self, others: Tensor | None = None) -> float:
        """``max |V^T V - I|``; if columns ``others`` = ``U`` (n, k) are given, the maximum of it and ``|V^T U|``."""
        worst = 0.0
        for i, block in enumerate(self._blocks()):
            for j, other in zip(range(i + 1), self._blocks(), strict=False):
                gram = self._space.gram(block, other.T)
                if i == j:
                    gram.diagonal().sub_(1)
                worst = max(worst, _largest(gram))
            if others is not None:
                worst = max(worst, _largest(self._space.gram(block, others)))
        return worst

    @property
    def room(self) -> int:
        """Number of further vectors that fit in memory and on disk, where half of the free bytes are left alone."""
        free_rows = shutil.disk_usage(_folder()).free // 2 // self._row_bytes
        for place in _places(self._space.device):
            limit = self._limits.get(place.type, self._allowed(place))
            free_rows += max(0, limit - self._bytes_on(place)) // self._row_bytes
        return max(0, free_rows - self._filled)

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of memory that the vectors take now, including the block that is being filled."""
        return (len(self._full) - self._on_disk + 1) * len(self._open) * self._row_bytes

    @property
    def bytes_on_disk(self) -> int:
        """Bytes in the temporary file."""
        return self._on_disk * len(self._open) * self._row_bytes

    @property
    def place(self) -> str:
        """A phrase for people that says how many bytes are kept where."""
        device = self._bytes_on(self._space.device) + self._filled * self._row_bytes
        host = len(self) * self._row_bytes - device - self.bytes_on_disk
        return _said(self._space.device, device, host, self.bytes_on_disk)

    def _allowed(self, place: torch.device) -> int:
        return free_bytes(place) // 2 if self._budget is None else self._budget

    def _bytes_on(self, place: torch.device) -> int:
        in_memory = self._full[: len(self._full) - self._on_disk]
        return sum(len(block) for block in in_memory if block.device.type == place.type) * self._row_bytes

    def _put_away(self) -> None:
        """Move the full block to the nearest memory that has room, else to disk, and begin a new one."""
        places = _places(self._space.device)
        if not self._limits:  # not earlier: the first products allocate what they keep
            self._limits = {place.type: self._allowed(place) for place in places}
        size = len(self._open) * self._row_bytes
        free = [place for place in places if self._bytes_on(place) + size <= self._limits[place.type]]
        if not free or self._on_disk:
            self._full.append(self._mapped(size).copy_(self._open))
            self._on_disk += 1
        else:
            self._full.append(self._open.to(free[0]))
            self._open = torch.empty_like(self._open) if free[0] == self._space.device else self._open
        self._filled = 0

    def _mapped(self, size: int) -> Tensor:
        """A tensor of the blocks' shape, mapped to the next ``size`` bytes of the file."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=_folder())  # noqa: SIM115 - closed by the next line
                weakref.finalize(self, self._file.close)
            _reserve(self._file, self.bytes_on_disk, size)
            raw = np.memmap(self._file, np.uint8, "r+", self.bytes_on_disk, (size,))
        except OSError as error:
            raise OutOfMemoryError(
                f"the Krylov basis does not fit: {self.place}, and no further block of {readable(size)} could be "
                f"written to {_folder()} ({error.strerror}); lower max_steps, or point TMPDIR to a larger disk"
            ) from error
        return torch.from_numpy(raw).view(self._open.dtype).view(self._open.shape)


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that are free on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def forecast(count: int, device: torch.device, memory_budget: int | None = None) -> str:
    """Where a basis of ``count`` bytes would be kept now, as a phrase; raises OutOfMemoryError if it does not fit."""
    taken, left = [], count
    for place in _places(device):
        taken.append(min(left, free_bytes(place) // 2 if memory_budget is None else memory_budget))
        left -= taken[-1]
    disk = shutil.disk_usage(_folder()).free // 2
    if left > disk:
        raise OutOfMemoryError(
            f"a Krylov basis of {readable(count)} does not fit: {readable(count - left)} would be kept in memory, and "
            f"{readable(disk)}, half of what is free, on the disk of {_folder()}; ask for fewer steps or eigenvalues, "
            "or point TMPDIR to a larger disk"
        )
    return _said(device, taken[0], sum(taken[1:]), left)


def readable(count: float) -> str:
    """A number of bytes in a unit that people can read.

    >>> readable(3 * 2**29)
    '1.5 GiB'
    """
    unit = "GiB" if count >= 2**30 else "MiB" if count >= 2**20 else "KiB"
    value = count / {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}[unit]
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def _places(device: torch.device) -> list[torch.device]:
    """The memories that can hold vectors of a device, the nearest first."""
    host = torch.device("cpu")
    return [host] if device.type == "cpu" else [device, host]


def _said(device: torch.device, on_device: int, in_host: int, on_disk: int) -> str:
    name = "in memory" if device.type == "cpu" else f"on {device.type}"
    if not in_host and not on_disk:
        return f"kept {name}: {readable(on_device)}"
    parts = [(on_device, name), (in_host, "in memory"), (on_disk, "on disk")]
    return ", ".join(f"{readable(count)} {where}" for count, where in parts if count)


def _folder() -> str:
    """Folder of the temporary file: ``/var/tmp`` if possible, since on many systems ``/tmp`` is in memory."""
    if "TMPDIR" not in os.environ and os.path.isdir("/var/tmp"):
        return "/var/tmp"
    return tempfile.gettempdir()


def _reserve(file: BinaryIO, start: int, size: int) -> None:
    """Extend a file by allocated blocks, so that a full disk is an error here and not a signal on later writes."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, size)
    else:
        file.seek(start)
        file.write(bytes(size))
        file.flush()


def _largest(matrix: Tensor) -> float:
    return float(matrix.abs().max()) if matrix.numel() else 0.0
