"""Weights that may be changed in place: those that no other layer shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.parameters import trainable_layout
from pyhessian_spectra.errors import InputError


def own_weights(
    model: nn.Module, names: Sequence[str], optimizer: torch.optim.Optimizer | None, unit: str
) -> dict[str, Tensor]:
    """The parameters of these names, as the model has them now.

    Raises InputError for a weight that is tied to another or lies in its memory, that the optimiser does not hold, or
    whose rows and columns are not those of a linear layer where ``unit`` asks for these.
    """
    layout, found = trainable_layout(model)[0], dict[str, Tensor]()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
    for name in names:
        tied = next((alias for alias, own in layout.aliases.items() if name in (alias, own)), None)
        if tied is not None:
            other = layout.aliases[tied] if tied == name else tied
            raise InputError(f"{name} is tied to {other}, and a reset would change both layers; {_REMEDY}")
        weight = model.get_parameter(name)
        if any(size > 1 and step == 0 for size, step in zip(weight.shape, weight.stride(), strict=True)):
            raise InputError(f"{name} is an expanded tensor, whose entries share memory; {_REMEDY}")
        for other, parameter in model.named_parameters():
            if parameter is not weight and _overlap(weight, parameter):
                raise InputError(f"{name} lies in the memory of {other}, and a reset would change both; {_REMEDY}")
        if optimizer and id(weight) not in held:
            raise InputError(f"the optimizer does not hold {name}; pass the one that trains it")
        module = model.get_submodule(name.rpartition(".")[0])
        grouped = getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False)
        if unit != "weight" and isinstance(module, nn.modules.conv._ConvNd) and grouped:
            raise InputError(
                f"rows and columns of {name} are not its units, since the convolution is grouped or transposed; take "
                "unit='weight'"
            )
        found[name] = weight
    return found


_REMEDY = "name layers whose weights are their own"


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether the ranges of memory that two tensors lie in meet."""
    if one.device != other.device or one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    (a, b), (c, d) = (_range(t) for t in (one, other))
    return a < d and c < b


def _range(t: Tensor) -> tuple[int, int]:
    """The first byte and the end of the tensor's entries in its storage."""
    first = int(t.storage_offset()) * t.element_size()
    reach = int(sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))) + 1
    return first, first + reach * t.element_size()
