"""Losses of confident predictions, without the cancellation in torch's gradients of them.

For a probability ``p`` near 1, torch computes the gradient ``p - 1`` from a ``p`` that was rounded: at a float32 loss
of 1e-6, a hundredth of a product is rounding. Here ``1 - p`` is the sum of the other probabilities. Where none is near
1, nothing cancels and torch's own versions are used, since they are faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this probability ``1 - p`` keeps all but three bits; this is its logarithm, and its logit.
_NEAR_ONE, _FAR_LOGIT = -0.13, 2.0


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """As ``F.log_softmax``."""
    plain = F.log_softmax(input, dim, _stacklevel, dtype)
    if dim is None or not input.dim() or dtype is not None or _all_below(plain, _NEAR_ONE):
        return plain
    largest = plain.argmax(dim, keepdim=True)
    # 0 at the largest, without a gradient: that of `input - input` would cancel after rounding
    shifted = (input - input.gather(dim, largest)).scatter(dim, largest, 0.0)
    return shifted - shifted.exp().scatter(dim, largest, 0.0).sum(dim, keepdim=True).log1p()


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """As ``F.cross_entropy``; rewritten for class indices without label smoothing."""
    if target.is_floating_point() or label_smoothing or size_average is not None or reduce is not None:
        rest = (size_average, ignore_index, reduce, reduction, label_smoothing)
        return F.cross_entropy(input, target, weight, *rest)
    scores = log_softmax(input, 0 if input.dim() == 1 else 1)
    return F.nll_loss(scores, target, weight, ignore_index=ignore_index, reduction=reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """As ``F.binary_cross_entropy_with_logits``."""
    native = F.binary_cross_entropy_with_logits
    if size_average is not None or reduce is not None or reduction not in ("none", "mean", "sum"):
        return native(input, target, weight, size_average, reduce, reduction, pos_weight)
    if input.shape != target.shape or _all_below(input.detach().abs(), _FAR_LOGIT):
        return native(input, target, weight, reduction=reduction, pos_weight=pos_weight)
    # a sign that is a constant, unlike that of abs, keeps the second derivative at 0
    negative, zero = input.detach() < 0, torch.zeros_like(input)
    small = torch.where(negative, input, -input).exp().log1p()
    positives = small - torch.where(negative, input, zero)
    positives = positives if pos_weight is None else positives * pos_weight
    terms = target * positives + (1 - target) * (small + torch.where(negative, zero, input))
    terms = terms if weight is None else terms * weight
    return terms if reduction == "none" else terms.mean() if reduction == "mean" else terms.sum()


def _all_below(values: Tensor, limit: float) -> bool:
    """Whether this is known of all values; within the transforms of torch.func it is not."""
    if torch._C._are_functorch_transforms_active():
        return False
    return values.numel() == 0 or bool(values.detach().max() < limit)
