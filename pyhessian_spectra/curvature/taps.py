"""Where a model multiplies its parameters: operations met in a forward pass, with their inputs and outputs.

What such an operation adds to the derivative of each example's outputs follows from its input and from the cotangent of
its output: no pass through the model for each example is needed (Goodfellow 2015; Rochette, Manoel and Tramel 2019).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Use:
    """An operation that is linear in its parameters, with its input (c, ...) and what autograd knows of its output.

    ``weight`` and ``bias`` are the parameters' numbers, ``shape`` is that of the output, (c, ...).
    """

    weight: int | None
    bias: int | None
    given: Tensor
    out: GradientEdge
    shape: torch.Size

    def rows(self, d: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        """The rows (c, r, p) of the parameters, if wanted, for the cotangents (c, r, ...) of the output."""
        raise NotImplementedError


@dataclass(frozen=True)
class Product(Use):
    """``weight`` (G, O, F) in ``G`` groups times features (G, F) of the input at each of ``P`` positions."""

    features: Callable[[Tensor], Tensor]  # of inputs (c, ...) to (c, G, F, P)
    channels: int  # the axis of the output that has them, counted from the end
    groups: int = 1

    def cotangents(self, d: Tensor) -> Tensor:
        """The cotangents (c, r, ...) of the output by channel and position, (c, r, G, O, P)."""
        moved = d.movedim(self.channels, 2)
        return moved.reshape(*d.shape[:2], self.groups, d.shape[self.channels] // self.groups, -1)

    def rows(self, d: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        """See :class:`Use`."""
        found: dict[int, Tensor] = {}
        by_position = self.cotangents(d)
        if self.weight in wanted:
            found[self.weight] = products(by_position, self.features(self.given)).flatten(2)
        if self.bias in wanted:
            found[self.bias] = by_position.sum(dim=4).flatten(2)
        return found


def products(d: Tensor, a: Tensor) -> Tensor:
    """The rows (c, r, G, O, F) of a weight, for cotangents (c, r, G, O, P) and features (c, G, F, P)."""
    c, r, g, o, p = d.shape
    columns = d.transpose(1, 2).reshape(c * g, r * o, p)
    return (columns @ a.flatten(0, 1).mT).view(c, g, r, o, -1).transpose(1, 2)


@dataclass(frozen=True)
class Scale(Use):
    """``weight * x + bias`` with a normalised input ``x``; parameters are along the axes ``along``."""

    along: Callable[[Tensor], Tensor]  # (c, ...) to (c, parameters, positions)

    def rows(self, d: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        """See :class:`Use`."""
        flat = self.along(d.flatten(0, 1)).unflatten(0, d.shape[:2])
        found = {self.bias: flat.sum(dim=3)} if self.bias in wanted else {}
        if self.weight in wanted:
            found[self.weight] = torch.einsum("crap,cap->cra", flat, self.along(self.given))
        return found


class Taps(TorchFunctionMode):
    """Records the uses of the coordinates in a forward pass over ``count`` examples, within this context.

    ``others`` are the coordinates that also enter operations of other kinds.
    """

    def __init__(self, coordinates: Sequence[Tensor], count: int) -> None:
        super().__init__()
        self._numbers, self._count = {id(c): i for i, c in enumerate(coordinates)}, count
        self.uses: list[Use] = []
        self.others: set[int] = set()
        self._versions: list[tuple[Use, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        met = {self._numbers[id(x)] for x in tree_leaves((args, kwargs)) if id(x) in self._numbers}
        if not met or not any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(result)):
            return result
        use = self._use(func, args, kwargs, result)
        if use is None or met - {use.weight, use.bias}:
            self.others |= met
        else:
            self.uses.append(use)
            self._versions.append((use, use.given._version))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for use, version in self._versions:  # an input that was changed later is not what was multiplied
            if use.given._version != version:
                self.others |= {i for i in (use.weight, use.bias) if i is not None}

    def _use(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Tensor) -> Use | None:
        if func not in _KNOWN:
            return None
        names, build = _KNOWN[func]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, weight, bias = (given.get(name) for name in ("input", "weight", "bias"))
        if not isinstance(x, Tensor) or x.dim() < 2 or len(x) % self._count:
            return None
        if len(result) != len(x) or x.dtype != result.dtype:
            return None
        x, shape = x.detach(), result.shape
        if len(x) != self._count:  # positions of all examples in one dimension
            if func is not F.linear:
                return None
            x = x.reshape(self._count, -1, x.shape[-1])
            shape = torch.Size((*x.shape[:2], shape[-1]))
        number = self._numbers.get
        return build(given, Use(number(id(weight)), number(id(bias)), x, get_gradient_edge(result), shape))


def _linear(given: Mapping[str, Any], use: Use) -> Product:
    return Product(**vars(use), features=lambda a: a.reshape(len(a), -1, a.shape[-1]).mT[:, None], channels=-1)


def _convolution(given: Mapping[str, Any], use: Use) -> Product | None:
    dimensions = given["weight"].dim() - 2
    settings = [given.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    groups = given.get("groups", 1)
    if any(isinstance(s, str) for s in settings) or dimensions not in (1, 2) or use.given.dim() != dimensions + 2:
        return None
    pairs = [
        (s,) * dimensions if isinstance(s, int) else tuple(s) * (dimensions if len(s) == 1 else 1) for s in settings
    ]
    kernel = tuple(given["weight"].shape[2:])
    if dimensions == 1:
        kernel, pairs = (1, *kernel), [(one, *s) for one, s in zip((1, 0, 1), pairs, strict=True)]
    stride, padding, dilation = pairs

    def features(a: Tensor) -> Tensor:
        image = a[:, :, None] if dimensions == 1 else a
        columns = F.unfold(image, kernel, dilation, padding, stride)
        return columns.view(len(a), groups, -1, columns.shape[-1])

    return Product(**vars(use), features=features, channels=-1 - dimensions, groups=groups)


def _batch_norm(given: Mapping[str, Any], use: Use) -> Scale | None:
    mean, variance = given.get("running_mean"), given.get("running_var")
    if given.get("training", False) or mean is None or variance is None:
        return None
    normalised = F.batch_norm(use.given, mean.detach(), variance.detach(), eps=given.get("eps", 1e-5))
    return Scale(**{**vars(use), "given": normalised}, along=lambda t: t.reshape(*t.shape[:2], -1))


def _layer_norm(given: Mapping[str, Any], use: Use) -> Scale:
    shape = tuple(given["normalized_shape"])
    normalised = F.layer_norm(use.given, shape, eps=given.get("eps", 1e-5))
    return Scale(**{**vars(use), "given": normalised}, along=lambda t: t.reshape(len(t), -1, *shape).flatten(2).mT)


def _group_norm(given: Mapping[str, Any], use: Use) -> Scale:
    normalised = F.group_norm(use.given, given["num_groups"], eps=given.get("eps", 1e-5))
    return Scale(**{**vars(use), "given": normalised}, along=lambda t: t.reshape(*t.shape[:2], -1))


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

_Build = Callable[[Mapping[str, Any], Use], Use | None]
_NORMALISATIONS: dict[Any, _Build] = {F.batch_norm: _batch_norm, F.layer_norm: _layer_norm, F.group_norm: _group_norm}

# The operations that are known, with the names of their arguments.
_KNOWN: dict[Any, tuple[Sequence[str], _Build]] = {
    F.linear: (("input", "weight", "bias"), _linear),
    torch.conv1d: (_CONVOLUTION, _convolution),
    torch.conv2d: (_CONVOLUTION, _convolution),
    **{func: (tuple(inspect.signature(func).parameters), build) for func, build in _NORMALISATIONS.items()},
}
