"""Third derivatives: the second ones that are written out here are not differentiated again, compositions are."""

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
    """Cotangents of ``g`` and the inputs, for those ``along`` the gradients that ``g`` is pulled back to; with graph.

    ``needed`` says for ``g`` and each of the inputs whether its cotangent is wanted; the others get None.
    """
    # views, since in the graph outside g may depend on the inputs, and partial derivatives are wanted
    views: list[Any] = [t if t is None else t.view_as(t) for t in (g, *inputs)]
    pulled = [(x, direction) for x, direction, need in zip(views[1:], along, needed[1:], strict=True) if need]
    gradients = torch.autograd.grad(function(*views[1:]), [x for x, _ in pulled], views[0], create_graph=True)
    value = g.new_zeros(())
    for gradient, (_, direction) in zip(gradients, pulled, strict=True):
        if direction is not None:
            value = value + (gradient * direction).sum()
    if not value.requires_grad:  # a bias by itself
        return (None,) * len(views)
    sources = [t for t, need in zip(views, needed, strict=True) if need]
    found = iter(torch.autograd.grad(value, sources, create_graph=True, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
