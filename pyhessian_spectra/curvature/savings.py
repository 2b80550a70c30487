"""How much memory a graph holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


def measured_bytes(build: Callable[[], _T]) -> tuple[_T, int]:
    """What a function returns, and the bytes of the distinct storages that autograd saved in it.

    0 where the function itself uses transforms of ``torch.func``, with which torch does not let savings be seen.
    """
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return build(), sum(seen.values())
    except Exception as error:
        if "saved tensor hooks" not in str(error):
            raise
        return build(), 0
