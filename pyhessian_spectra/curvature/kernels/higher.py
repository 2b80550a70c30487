"""Third derivatives, by differentiating a composition of simple operations twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def second_derivative(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    g: Tensor,
    along: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of ``(g, inputs) -> gradients`` with ``along``, with a graph for further derivatives.

    ``gradients`` are the inputs' cotangents for the cotangent ``g`` of ``function``. Results are None unless
    ``needed``.
    """
    # views, since partial derivatives are wanted and in the outer graph g may depend on the inputs
    views: list[Any] = [t if t is None else t.view_as(t) for t in (g, *inputs)]
    pulled = [(x, direction) for x, direction, need in zip(views[1:], along, needed[1:], strict=True) if need]
    gradients = torch.autograd.grad(function(*views[1:]), [x for x, _ in pulled], views[0], create_graph=True)
    value = g.new_zeros(())
    for gradient, (_, direction) in zip(gradients, pulled, strict=True):
        if direction is not None:
            value = value + (gradient * direction).sum()
    if not value.requires_grad:  # as for a bias alone, whose gradient is constant
        return (None,) * len(views)
    sources = [t for t, need in zip(views, needed, strict=True) if need]
    found = iter(torch.autograd.grad(value, sources, create_graph=True, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
