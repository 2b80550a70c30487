"""Records of arrays in a file that may end anywhere, and digests of what goes into a computation."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

_LONGEST_HEAD = 1 << 20  # bytes; what has no end of line within them is no head


class Record(NamedTuple):
    """JSON values and arrays; ``head["arrays"]`` holds the arrays' dtypes and shapes."""

    head: dict[str, Any]
    arrays: list[Tensor]


def write_record(handle: BinaryIO, head: Mapping[str, Any], arrays: Sequence[Tensor]) -> None:
    """Write a line of JSON, the arrays' bytes, and the SHA-256 of both."""
    shapes = [[str(array.dtype).removeprefix("torch."), *array.shape] for array in arrays]
    hasher = hashlib.sha256()
    line = json.dumps({**head, "arrays": shapes}).encode() + b"\n"
    pieces: list[bytes | memoryview] = [line, *map(_raw, arrays)]
    for piece in pieces:
        hasher.update(piece)
        handle.write(piece)
    handle.write(hasher.digest())


def read_record(handle: BinaryIO) -> Record | None:
    """The record that begins here, on the CPU; None where there is none, or not the whole of one."""
    line = handle.readline(_LONGEST_HEAD)
    hasher = hashlib.sha256(line)
    arrays = []
    try:
        head = json.loads(line)
        left = os.fstat(handle.fileno()).st_size - handle.tell()
        for name, *shape in head["arrays"]:
            dtype = getattr(torch, name)
            left -= dtype.itemsize * torch.Size(shape).numel()
            if left < 0:
                return None
            array = torch.empty(shape, dtype=dtype)  # torch's own memory: its alignment decides how sums are rounded
            handle.readinto(_raw(array))  # type: ignore[attr-defined]
            hasher.update(_raw(array))
            arrays.append(array)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return Record(head, arrays) if handle.read(hasher.digest_size) == hasher.digest() else None


def digest(value: Any) -> str:
    """SHA-256 of nested mappings, sequences, tensors and what else has a ``repr``, the same in every process."""
    hasher = hashlib.sha256()

    def absorb(value: Any) -> None:
        if isinstance(value, Tensor):
            absorb([str(value.dtype), *value.shape])
            hasher.update(_raw(value))
        elif isinstance(value, Mapping):
            absorb(list(value.items()))
        elif isinstance(value, (tuple, list, Iterator)):
            hasher.update(b"[")
            for item in value:
                absorb(item)
            hasher.update(b"]")
        else:
            hasher.update((re.sub(r" at 0x[0-9a-f]+", "", repr(value)) + " ").encode())

    absorb(value)
    return hasher.hexdigest()


def _raw(array: Tensor) -> memoryview:
    """The bytes of an array, in the order of its elements; its own memory where it is contiguous and on the CPU."""
    return array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
