"""The memory that an autograd graph holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_T = TypeVar("_T")


def measured_bytes(build: Callable[[], _T]) -> tuple[_T, int]:
    """The result of ``build()``, and the bytes that autograd saved in it; 0 if it uses transforms of ``torch.func``."""
    saved: dict[int, tuple[StorageWeakRef, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        ref = StorageWeakRef(storage)
        saved[ref.cdata] = ref, storage.nbytes()
        return tensor.detach()  # an output would lead back to the node that holds it, and neither be freed

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = build()
    except Exception as error:
        if "saved tensor hooks" not in str(error):  # which torch.func does not allow
            raise
        return build(), 0
    return result, sum(size for ref, size in saved.values() if not ref.expired())
