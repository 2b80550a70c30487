"""Operations composed of simpler ones, since some derivative of torch's own versions is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.layer_norm``."""
    y = _standardised(input, range(-len(normalized_shape), 0), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.batch_norm``, but without updating the running statistics, which each evaluation would discard."""
    if training or running_mean is None or running_var is None:
        return _affine(_standardised(input, [0, *range(2, input.dim())], eps), weight, bias)
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    return _affine(input, scale, shift if bias is None else shift + bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.instance_norm``."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _affine(_standardised(input, range(2, input.dim()), eps), weight, bias)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """As ``torch._weight_norm``, which both versions of ``weight_norm`` in ``torch.nn.utils`` call."""
    kept = -1 if dim == -1 else dim % v.dim()
    dims = [d for d in range(v.dim()) if d != kept]
    return v * (g * torch.rsqrt(v.square().sum(dims, keepdim=True)))


def _standardised(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    centred = x - x.mean(list(dims), keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(list(dims), keepdim=True) + eps)


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """``x * scale + shift`` for each channel (second dimension)."""
    shape = (-1, *(1,) * (x.dim() - 2))
    x = x if scale is None else x * scale.view(shape)
    return x if shift is None else x + shift.view(shape)
