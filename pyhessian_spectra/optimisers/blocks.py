"""The blocks of parameters that an optimiser solves apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.partition import GroupSpec, Partition
from pyhessian_spectra.errors import InputError

#: How blocks may be given: see :class:`HessianFree`.
Blocks = GroupSpec | Callable[[ParameterLayout], Partition] | Sequence[Sequence[Tensor | str]] | None


def blocks_of(layout: ParameterLayout, blocks: Blocks, params: Sequence[Tensor]) -> Partition:
    """The blocks as a partition of all parameters; raises InputError if one has none."""
    if blocks is None:
        return Partition(layout, {"all": torch.arange(layout.n)})
    if callable(blocks):
        made = blocks(layout)
        if not isinstance(made, Partition):
            raise InputError(f"the function that makes the partition returned a {type(made).__name__}")
        return complete(made)
    if isinstance(blocks, Sequence) and not all(isinstance(block, str) for block in blocks):
        names = {id(p): name for name, p in zip(layout.names, params, strict=True)}
        lists = {f"block {i}": [names.get(id(p), p) for p in block] for i, block in enumerate(blocks)}
        return complete(Partition.by_glob(layout, cast(dict[str, Sequence[str]], lists)))
    if blocks != "parameter" and not isinstance(blocks, Partition) and all(name.isdecimal() for name in layout.names):
        raise InputError(f"partition={blocks!r} goes by names, and parameters have none; pass model.named_parameters()")
    return complete(Partition.of(layout, cast(GroupSpec, blocks)))


def complete(partition: Partition) -> Partition:
    """The partition; raises InputError if a parameter has coordinates in no block."""
    if partition.left_out:
        raise InputError(
            f"no block has {', '.join(partition.left_out)}; put every trainable parameter into one, as 'module' does"
        )
    return partition
