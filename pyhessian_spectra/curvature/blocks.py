"""Diagonal blocks of a curvature matrix, and the check that precedes an analysis of a risk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.partition import Group, GroupSpec, Partition
from pyhessian_spectra.curvature.risk import RANDOM, EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.structured import CongruenceOperator


def chosen_layers(layout: ParameterLayout, layers: bool | GroupSpec) -> Sequence[Group]:
    """The groups of parameters that ``layers`` selects; for its values see :func:`analyze`."""
    if isinstance(layers, bool):
        return list(Partition.by_layer(layout)) if layers else []
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        return list(Partition.by_module(layout, layers)) if layers else []
    return list(Partition.of(layout, layers))


def block_operator(
    matrix: Callable[[EmpiricalRisk], LinearOperator], risk: EmpiricalRisk, group: Group
) -> LinearOperator:
    """The diagonal block of one group; for whole parameters, the backward pass ends at these."""
    part = risk.restrict(group.names)
    op = matrix(part)
    if group.whole:
        return op
    positions = torch.cat([torch.arange(s.start, s.stop) for s in (risk.layout.slices[n] for n in part.layout.names)])
    return CongruenceOperator(op, torch.searchsorted(positions, group.indices))


def repeatable_gradient(risk: EmpiricalRisk) -> float:
    """Seconds for one gradient; raises InputError if two gradients at the same point differ."""
    first = risk.gradient()
    start = time.perf_counter()
    second = risk.gradient()
    norm = float(torch.linalg.vector_norm(first))  # the conversion waits for the device
    seconds = time.perf_counter() - start
    change = float(torch.linalg.vector_norm(first - second))
    if change > torch.finfo(risk.dtype).eps ** 0.5 * norm:
        raise InputError(f"two gradients at the same parameters differ by {change / norm:.2g}, relative: {RANDOM}")
    return seconds
