"""Inputs in the form a model reads, where there is only one way to get there."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pyhessian_spectra.problems.architectures.base import InputKind


def arrange_inputs(inputs: Tensor, kind: InputKind) -> Tensor:
    """Flat vectors, images, sequences of rows, or tokens.

    Parameters
    ----------
    inputs : Tensor, shape (N, ...)
    kind : {"flat", "image", "rows", "tokens"}

    Returns
    -------
    Tensor
        Shape (N, d), (N, C, H, W), (N, H, C * W) or unchanged. Vectors become square images of one channel, or of
        three where only that fits; inputs that fit no rule are returned as they are.
    """
    if kind == "tokens":
        return inputs
    if not inputs.is_floating_point():
        inputs = inputs.float()
    if kind == "flat":
        return inputs.flatten(1)
    images = _images(inputs)
    if kind == "image" or images.ndim != 4:
        return images
    if inputs.ndim == 3:  # already sequences
        return inputs
    return images.permute(0, 2, 1, 3).flatten(2)


def guess_kind(module: nn.Module, inputs: Tensor) -> InputKind | None:
    """What an unknown module reads, from its first layer that tells; None where none does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return "image"
        if isinstance(layer, nn.Embedding):
            return "tokens"
        if isinstance(layer, nn.Linear):
            return "flat" if layer.in_features == inputs[0].numel() else None
        if isinstance(layer, nn.RNNBase):
            return "rows"
    return None


def _images(inputs: Tensor) -> Tensor:
    if inputs.ndim == 3:
        return inputs.unsqueeze(1)
    if inputs.ndim == 2:
        for channels in (1, 3):
            side = math.isqrt(inputs.shape[1] // channels)
            if channels * side * side == inputs.shape[1]:
                return inputs.unflatten(1, (channels, side, side))
    return inputs
