"""Point: the values of parameters and buffers at which derivatives are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.parameters import ParameterLayout


@dataclass(frozen=True)
class Point:
    """Values of a model's parameters and buffers at which a risk and its derivatives are evaluated.

    A *copied* point does not change with the model (for analysis). A *live* point is the model's own parameters,
    without a copy (for training). A *moved* point is another point plus a step along a vector (for differences,
    surfaces).

    Parameters
    ----------
    layout : ParameterLayout
        Layout of the coordinates.
    coordinates : tuple of Tensor
        Leaf tensors that require a gradient, in the order of the layout.
    values : mapping of str to Tensor
        Values that replace the model's parameters and buffers, by name; all others are the model's own.
    is_models : bool
        Whether the values are a copy of the model's.
    """

    layout: ParameterLayout
    coordinates: tuple[Tensor, ...]
    values: Mapping[str, Tensor]
    is_models: bool = False

    @classmethod
    def copied(cls, model: nn.Module, layout: ParameterLayout) -> Point:
        """A point with copies of the trainable parameters and of the buffers; frozen parameters are the model's own."""
        values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        coordinates = tuple(values[name].requires_grad_() for name in layout.names)
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        return cls(layout, coordinates, values | buffers, is_models=True)

    @classmethod
    def live(cls, layout: ParameterLayout, parameters: Iterable[Tensor]) -> Point:
        """The model's own parameters, with the values that they have whenever a product is taken."""
        return cls(layout, tuple(parameters), {})

    @classmethod
    def of(cls, layout: ParameterLayout, flat: Tensor) -> Point:
        """The point with the coordinates of ``flat`` (n,), which share its memory; all else is the model's own."""
        coordinates = tuple(part.detach().requires_grad_() for part in layout.unflatten(flat))
        return cls(layout, coordinates, dict(zip(layout.names, coordinates, strict=True)))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the coordinates."""
        return self.coordinates[0].dtype

    def moved(self, direction: Tensor, step: float = 1.0) -> Point:
        """The point ``theta + step * direction``, for a direction (n,)."""
        parts = zip(self.coordinates, self.layout.unflatten(direction), strict=True)
        moved = tuple(torch.add(c.detach(), part, alpha=step).requires_grad_() for c, part in parts)
        values = {**self.values, **dict(zip(self.layout.names, moved, strict=True))}
        return replace(self, coordinates=moved, values=values, is_models=False)

    def restrict(self, layout: ParameterLayout) -> Point:
        """The same point with fewer coordinates, those of ``layout``; all other parameters are constants."""
        places = dict(zip(self.layout.names, self.coordinates, strict=True))
        return replace(self, layout=layout, coordinates=tuple(places[name] for name in layout.names))

    def cast(self, model: nn.Module, dtype: torch.dtype) -> Point:
        """The point in another floating dtype, with values for all the model's parameters and buffers."""
        own = {**dict(model.named_parameters()), **dict(model.named_buffers()), **self.values}
        values = {k: v.detach().to(dtype) if v.is_floating_point() else v for k, v in own.items()}
        coordinates = tuple(c.detach().to(dtype, copy=True).requires_grad_() for c in self.coordinates)
        return Point(self.layout, coordinates, {**values, **dict(zip(self.layout.names, coordinates, strict=True))})

    def flat(self) -> Tensor:
        """A copy of the coordinates as one vector (n,)."""
        return self.layout.flatten([c.detach() for c in self.coordinates])
