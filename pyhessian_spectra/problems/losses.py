"""Losses by name: means over examples, for classes and for tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from pyhessian_spectra.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of the classes, in nats, over examples and (for sequences) positions.

    Parameters
    ----------
    outputs : Tensor, shape (N, C) or (N, T, C)
        Logits, the classes last.
    targets : Tensor, shape (N,) or (N, T), int64
        -100 marks a target that does not count.
    """
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over examples and outputs; classes become one-hot vectors.

    Parameters
    ----------
    outputs : Tensor, shape (N, C)
    targets : Tensor, shape (N,) int64, or the shape of the outputs
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    return F.mse_loss(outputs, targets)


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


def find_loss(name: str) -> Loss:
    """The loss of that name; ``InputError`` lists the known ones."""
    try:
        return LOSSES[name.lower().replace("-", "_")]
    except KeyError:
        raise InputError(
            f"there is no built-in loss {name!r}; the known ones are {', '.join(LOSSES)}; for any other give --problem "
            "package.module:function"
        ) from None
