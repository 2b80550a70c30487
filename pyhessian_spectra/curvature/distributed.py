"""Sums over ranks; the identity where there is no process group. The only user of torch.distributed."""

from __future__ import annotations

from typing import Any

import torch.distributed
from torch import Tensor


def all_reduce_sum(total: Tensor, weight: float, group: Any | None) -> tuple[Tensor, float]:
    """The sums of ``total`` and ``weight`` over the ranks of ``group``; ``total`` is reduced in place."""
    if group is None:
        return total, weight
    weights = torch.tensor([weight], dtype=torch.float64, device=total.device)
    torch.distributed.all_reduce(total, group=group)
    torch.distributed.all_reduce(weights, group=group)
    return total, float(weights)
