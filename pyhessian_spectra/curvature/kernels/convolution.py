"""Convolutions whose second derivatives are convolutions; torch's own double backward copies transposed tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class _Settings(NamedTuple):
    """The arguments of a convolution other than its operands."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.aten.convolution(
            x, weight, None, self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups
        )

    def pull_back(self, g: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """The cotangents of ``x`` and ``weight``, each None unless ``wanted``."""
        return torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * len(self.stride),
            self.groups,
            [*wanted, False],
        )[:2]


def convolution(
    native: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """As ``native``, one of the functions in ``CONVOLUTIONS``."""
    dimensions = CONVOLUTIONS[native]
    if isinstance(padding, str) or input.dim() != dimensions + 2:  # rare forms are left to torch
        return native(input, weight, bias, stride, padding, dilation, groups)
    sizes = [[v] * dimensions if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    out = _Convolution.apply(input, weight, _Settings(sizes[0], sizes[1], sizes[2], groups))
    return out if bias is None else out + bias.view(-1, *(1,) * dimensions)


class _Convolution(torch.autograd.Function):
    """``y = x * w``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, settings: _Settings) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return settings.apply(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *_ConvolutionBackward.apply(g, x, weight, ctx.settings, tuple(ctx.needs_input_grad[:2])), None


class _ConvolutionBackward(torch.autograd.Function):
    """``g -> (g * w^T, g * x^T)``, bilinear in each pair, so that its derivative consists of convolutions."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, settings: _Settings, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, weight)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return settings.pull_back(g, x, weight, wanted)

    @staticmethod
    def backward(ctx: Any, along_x: Tensor | None, along_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        settings, (needs_g, needs_x, needs_weight) = ctx.settings, ctx.needs_input_grad[:3]
        for_g = None
        if needs_g and along_x is not None:
            for_g = settings.apply(along_x, weight)
        if needs_g and along_weight is not None:
            other = settings.apply(x, along_weight)
            for_g = other if for_g is None else for_g + other
        # the cotangent of each operand depends on the other's direction; one call serves both if both are wanted
        wanted = needs_x and along_weight is not None, needs_weight and along_x is not None
        for_x = for_weight = None
        if any(wanted):
            for_x, for_weight = settings.pull_back(
                g, x if along_x is None else along_x, weight if along_weight is None else along_weight, wanted
            )
        return for_g, for_x, for_weight, None, None
