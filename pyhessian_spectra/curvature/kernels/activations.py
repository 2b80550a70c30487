"""Activations whose second derivative is computed once for a linearisation and not in each product."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL = 2**15  # entries


class _Rule(NamedTuple):
    """An elementwise function ``f`` and its derivatives.

    ``pull_back`` maps ``g`` and ``x`` to ``g f'(x)`` in one pass over memory; ``bend`` is the second derivative. If
    ``f`` is piecewise linear, ``bend`` is None, and ``pull_back`` takes ``f(x)`` in place of ``x``, since other
    operations keep it anyway.
    """

    apply: Callable[[Tensor], Tensor]
    pull_back: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor], Tensor] | None


def _gelu_bend(x: Tensor) -> Tensor:
    """``(2 - x^2) phi(x)``, where ``phi`` is the density of the standard normal distribution."""
    square = x * x
    return (2 - square) * torch.exp(-0.5 * square - 0.5 * math.log(2 * math.pi))


def _tanh_gelu_bend(x: Tensor) -> Tensor:
    """The second derivative of ``x (1 + tanh u) / 2`` with ``u = k (x + c x^3)``."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t, slope = torch.tanh(k * x * (1 + c * square)), k * (1 + 3 * c * square)
    return (1 - t * t) * (slope + 3 * k * c * square - x * t * slope * slope)


_RELU = _Rule(torch.relu, lambda g, y: torch.ops.aten.threshold_backward(g, y, 0), None)
_GELU = {
    "none": _Rule(F.gelu, torch.ops.aten.gelu_backward, _gelu_bend),
    "tanh": _Rule(
        functools.partial(F.gelu, approximate="tanh"),
        functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
        _tanh_gelu_bend,
    ),
}


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """As ``F.relu``."""
    return F.relu(input, inplace=inplace) if inplace or is_small(input) else _Activation.apply(input, _RELU)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """As ``F.gelu``."""
    rule = _GELU.get(approximate)
    if rule is None or is_small(input):
        return F.gelu(input, approximate=approximate)
    return _Activation.apply(input, rule)


def is_small(x: Tensor) -> bool:
    """Whether a function written in Python would cost more overhead than it saves in passes over memory."""
    return x.numel() < _SMALL


class _Activation(torch.autograd.Function):
    """``x -> f(x)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: _Rule) -> Tensor:
        y = rule.apply(x)
        ctx.rule = rule
        ctx.save_for_backward(y if rule.bend is None else x)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _ActivationBackward.apply(g, x, ctx.rule), None
        return ctx.rule.pull_back(g, x), None


class _ActivationBackward(torch.autograd.Function):
    """``g, x -> g f'(x)``; it computes the second derivative in its forward pass."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, rule: _Rule) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*((x, None, None) if rule.bend is None else (x, g, g * rule.bend(x))))
        return rule.pull_back(g, x)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:
        x, g, bent = ctx.saved_tensors
        for_g = ctx.rule.pull_back(along, x) if ctx.needs_input_grad[0] else None
        if bent is None or not ctx.needs_input_grad[1]:
            return for_g, None, None
        if torch.is_grad_enabled():  # a third derivative needs the graph of g and x
            bent = g * ctx.rule.bend(x)
        return for_g, along * bent, None
