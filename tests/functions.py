"""Autograd functions as users write them, each of which lacks a derivative or has a wrong one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, x):
        ctx.save_for_backward(g, x)
        return 3 * g * x**2


class CubeOnce(_Cube):
    """once_differentiable keeps it from second derivatives."""

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class CubeDetached(_Cube):
    """Its backward is right, and has no derivative."""

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * g


class CubeAlmost(_Cube):
    """The derivative of its backward is wrong by one part in ten thousand."""

    @staticmethod
    def backward(ctx, g):
        return SlopeAlmost.apply(g, *ctx.saved_tensors)


class SlopeAlmost(_Slope):
    @staticmethod
    def backward(ctx, along):
        g, x = ctx.saved_tensors
        return 3 * x**2 * along, 6.0006 * x * g * along


class CubeTwice(_Cube):
    """It has a second derivative, and no third."""

    @staticmethod
    def backward(ctx, g):
        return SlopeOnce.apply(g, *ctx.saved_tensors)


class SlopeOnce(_Slope):
    @staticmethod
    def backward(ctx, along):
        return BendOnce.apply(along, *ctx.saved_tensors)


class BendOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, along, g, x):
        return 3 * along * x**2, 6 * along * g * x

    @staticmethod
    @once_differentiable
    def backward(ctx, *_):
        raise NotImplementedError


class FusedCrossEntropy(torch.autograd.Function):
    """The gradient is computed in the forward pass, as fused kernels do."""

    @staticmethod
    def forward(ctx, z, y):
        ctx.gradient = (torch.softmax(z, 1) - F.one_hot(y, z.shape[1])) / len(z)
        return F.cross_entropy(z, y)

    @staticmethod
    def backward(ctx, g):
        return ctx.gradient * g, None
