"""Inputs in the form a network reads, where there is only one way to get there."""

from __future__ import annotations

import math

from torch import Tensor, nn


def arrange_inputs(inputs: Tensor, network: nn.Module) -> Tensor:
    """Inputs (N, ...) as the first layer reads them: as vectors (N, d), images (N, C, H, W) or rows (N, H, C * W).

    Vectors become square images of one channel, or of three where only that fits. Tokens, and inputs that fit no rule,
    stay as they are.
    """
    layers = (nn.Linear, nn.Conv2d, nn.RNNBase, nn.Embedding)
    first = next((layer for layer in network.modules() if isinstance(layer, layers)), None)
    if isinstance(first, nn.Linear) and first.in_features == inputs[0].numel():
        return inputs.float().flatten(1)
    if isinstance(first, nn.Conv2d):
        return _images(inputs.float())
    if isinstance(first, nn.RNNBase):
        rows = inputs.float() if inputs.ndim == 3 else _images(inputs.float())
        return rows.permute(0, 2, 1, 3).flatten(2) if rows.ndim == 4 else rows
    return inputs


def _images(inputs: Tensor) -> Tensor:
    if inputs.ndim == 3:
        return inputs.unsqueeze(1)
    if inputs.ndim == 2:
        for channels in (1, 3):
            side = math.isqrt(inputs.shape[1] // channels)
            if channels * side * side == inputs.shape[1]:
                return inputs.unflatten(1, (channels, side, side))
    return inputs
