"""Point: where derivatives are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.parameters import ParameterLayout


@dataclass(frozen=True)
class Point:
    """Values of a model's parameters and buffers at which a risk and its derivatives are evaluated.

    *Copied*, it stays where it is whatever becomes of the model (analysis). *Live*, it is the model's own parameters,
    and nothing is copied (training). *Moved*, it is another one and a step along a vector (differences, surfaces).

    Parameters
    ----------
    layout : ParameterLayout
        Of the coordinates.
    coordinates : tuple of Tensor
        Leaves that require a gradient, in the order of the layout.
    values : mapping of str to Tensor
        What stands in for the model's own parameters and buffers, by name; empty where its own are meant.
    """

    layout: ParameterLayout
    coordinates: tuple[Tensor, ...]
    values: Mapping[str, Tensor]

    @classmethod
    def copied(cls, model: nn.Module, layout: ParameterLayout) -> Point:
        """A copy of all that training would change: trainable parameters and buffers. Frozen ones are shared."""
        values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        coordinates = tuple(values[name].requires_grad_() for name in layout.names)
        return cls(layout, coordinates, values | {name: b.detach().clone() for name, b in model.named_buffers()})

    @classmethod
    def live(cls, model: nn.Module, layout: ParameterLayout) -> Point:
        """The model's own parameters as they are whenever a product is taken."""
        return cls(layout, tuple(model.get_parameter(name) for name in layout.names), {})

    @classmethod
    def of(cls, layout: ParameterLayout, flat: Tensor) -> Point:
        """The coordinates of a flat vector (n,), which they share their memory with; all else is the model's own."""
        coordinates = tuple(part.detach().requires_grad_() for part in layout.unflatten(flat))
        return cls(layout, coordinates, dict(zip(layout.names, coordinates, strict=True)))

    def moved(self, direction: Tensor, step: float = 1.0) -> Point:
        """The point ``theta + step * direction``, for a direction (n,)."""
        parts = zip(self.coordinates, self.layout.unflatten(direction), strict=True)
        moved = tuple(torch.add(c.detach(), part, alpha=step).requires_grad_() for c, part in parts)
        return replace(
            self, coordinates=moved, values={**self.values, **dict(zip(self.layout.names, moved, strict=True))}
        )

    def cast(self, model: nn.Module, dtype: torch.dtype) -> Point:
        """A copy in another floating dtype, of all the model's parameters and buffers."""
        own = {**dict(model.named_parameters()), **dict(model.named_buffers()), **self.values}
        values = {k: v.detach().to(dtype) if v.is_floating_point() else v for k, v in own.items()}
        coordinates = tuple(c.detach().to(dtype, copy=True).requires_grad_() for c in self.coordinates)
        return Point(self.layout, coordinates, {**values, **dict(zip(self.layout.names, coordinates, strict=True))})

    def flat(self) -> Tensor:
        """The coordinates as one vector (n,), a copy."""
        return self.layout.flatten([c.detach() for c in self.coordinates])
