"""LayerNorm, with a second derivative that uses the fused kernel of the first.

LayerNorm is ``y = w x' + b`` with ``x' = r (x - mean)``. Its gradient in ``x`` is ``r P(w g)`` with the symmetric
``P(u) = u - mean(u) - x' mean(u x')``, for which torch has a fused kernel. The derivative of that gradient is written
here with the same kernel and takes a fraction of the time of torch's own double backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyhessian_spectra.curvature.kernels import composed
from pyhessian_spectra.curvature.kernels.higher import second_derivative

_BACKWARD = torch.ops.aten.native_layer_norm_backward


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.layer_norm``."""
    if not input.numel() or any(t is not None and t.dtype != input.dtype for t in (weight, bias)):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return _LayerNorm.apply(input, weight, bias, tuple(normalized_shape), eps)


class _LayerNorm(torch.autograd.Function):
    """``x, w, b -> y``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], eps: float
    ) -> Tensor:
        y, mean, rstd = torch.ops.aten.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.shape, ctx.eps = shape, eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            return *_LayerNormBackward.apply(g, *ctx.saved_tensors, ctx.shape, ctx.eps, wanted), None, None
        x, weight, bias, mean, rstd = ctx.saved_tensors
        return *_BACKWARD(g, x, ctx.shape, mean, rstd, weight, bias, wanted), None, None


class _LayerNormBackward(torch.autograd.Function):
    """``g, x, w, b`` to the cotangents of ``x, w, b``, given the mean and ``r`` of each row."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        shape: Sequence[int],
        eps: float,
        wanted: list[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight, bias, mean, rstd)
        ctx.shape, ctx.eps = shape, eps
        ctx.set_materialize_grads(False)
        return _BACKWARD(g, x, shape, mean, rstd, weight, bias, wanted)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight, bias, mean, rstd = ctx.saved_tensors
        shape, eps, needed = ctx.shape, ctx.eps, ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():

            def spelled_out(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                return composed.layer_norm(x, shape, weight, bias, eps)

            return *second_derivative(spelled_out, (x, weight, bias), g, along, needed), *(None,) * 5

        def project(u: Tensor) -> Tensor:
            """``r P(u)``."""
            return _BACKWARD(u, x, shape, mean, rstd, None, None, [True, False, False])[0]

        inner, outer = tuple(range(-len(shape), 0)), tuple(range(g.dim() - len(shape)))
        w = g.new_ones(shape) if weight is None else weight
        sizes = g.shape, shape, shape
        a, along_w, along_b = (g.new_zeros(n) if t is None else t for t, n in zip(along, sizes, strict=True))
        scaled = torch.ops.aten.native_layer_norm(x, shape, None, None, eps)[0]  # x'
        moved = project(a)
        product = g * moved
        for_weight = product.sum(outer) if outer else product
        for_g = torch.addcmul(moved * w, scaled, along_w) + along_b
        for_x = None
        if needed[1]:
            # P depends on x', and r on the variance; in place, since most of the time goes into allocating memory
            a_scaled = (a * scaled).mean(inner, keepdim=True) * rstd
            g_scaled = (g * w).mul_(scaled).mean(inner, keepdim=True) * rstd
            turned = torch.addcmul(along_w, w, a_scaled, value=-1).mul_(g).addcmul_(a, g_scaled, value=-1)
            shrunk = (product * w).mean(inner, keepdim=True) * rstd
            for_x = project(turned).addcmul_(scaled, shrunk, value=-1)
        found = for_g, for_x, for_weight, None
        return *(part if need else None for part, need in zip(found, needed, strict=True)), *(None,) * 5
