"""Losses by name: means over examples, for classes and for tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

# The target that does not count, as torch and transformers have it.
IGNORED = -100


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood, in nats, of classes (N,) or tokens (N, T), int64.

    The outputs are logits, shape (N, C) or (N, T, C). A target of -100 does not count.
    """
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over examples and outputs (N, C); classes (N,), int64, become one-hot vectors."""
    if not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    return F.mse_loss(outputs, targets)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "mse": mse}
