"""A forecast of what a Gram matrix costs, from sizes and counts of operations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.features import Plan
from pyhessian_spectra.curvature.gram import LIMIT
from pyhessian_spectra.curvature.operators import GGNOperator, HessianOperator
from pyhessian_spectra.curvature.partition import Group, Partition
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.rows import output_factors
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.settings import Settings

# Products with the whole matrix and with a layer, in gradients, and those for the extreme eigenvalues of H - G.
_WHOLE, _LAYER, _RESIDUAL = 3.0, 0.5, 30

# The Gram matrix is taken if it is expected to cost at most this share of all other products.
_SHARE = 0.2

# Examples that are tried.
_FEW = 4

# In gradients: a backward pass for the rows with what follows from it, and the pass in float64 that measures them.
_PASS, _REFERENCE = 1.2, 12.0

# Operations in the time of one of a gradient: of products of large matrices, and of eigenvalues.
_DENSE, _EIGENVALUES = 2.0, 0.3


@dataclass(frozen=True)
class GramCost:
    """The rows of a Gram matrix, its cost in gradients of the risk, and the bytes of what is kept."""

    rows: int
    gradients: float
    num_bytes: int


def gram_cost(risk: EmpiricalRisk, num_groups: int) -> GramCost:
    """What :func:`ggn_gram` costs for all examples and so many groups, from a few examples of the first batch.

    Raises InputError where there is no Gram matrix: without outputs or for a loss that is not convex in them.
    """
    if risk.sample.processes:
        raise InputError("a Gram matrix is built in one process; pass the risk without a process group")
    point, batch = risk.point(), next(iter(risk.sample.read()))[1]
    few = batch.rows(0, _FEW)
    try:
        factors = output_factors(risk.objective, point, few)
    except InputError:  # of a model that needs its whole batch
        few, factors = batch, output_factors(risk.objective, point, batch)
    plan = Plan(set(range(len(point.coordinates))))
    plan.try_out(risk.objective, point, few, factors)
    with FlopCounterMode(display=False) as counter:
        autodiff.gradient(risk.objective, point, few)
    count, rank = risk.num_examples, int((factors.abs().amax(dim=2) > 0).sum(dim=1).max())
    gradient = max(1, counter.get_total_flops()) * count / few.num_examples
    rows, itemsize = count * rank, torch.empty(0, dtype=point.dtype).element_size()
    inner = kept = 0.0
    for number, coordinate in enumerate(point.coordinates):
        n, use = coordinate.numel(), (plan.paired or {}).get(number)
        positions = 0 if use is None else use.features(use.given[:1]).shape[3]
        width = n if use is None else use.shape[1:].numel()
        inner += 2 * rows**2 * width if positions == 1 else 1.25 * rows**2 * n + 2 * rows * n * positions
        kept += rows * width + (0 if use is None else count * use.given[0].numel())
    solved = (num_groups + 1) * 4 / 3 * rows**3
    passes = _PASS * rank * (1 if plan.tapped or not plan.alone else count) + _REFERENCE
    return GramCost(
        rows,
        passes + (inner / _DENSE + solved / _EIGENVALUES) / gradient,
        int(kept * itemsize + 8 * (num_groups + 3) * rows**2),
    )


def worth_taking(
    op: LinearOperator, risk: EmpiricalRisk, settings: Settings, groups: Sequence[Group], forecasts: Sequence[int]
) -> GramCost | None:
    """What the Gram matrix and all that an analysis takes with it will cost, or None if it is not to be taken.

    ``forecasts`` are the products of the whole and of the layers without it. Raises InputError where it is wanted
    always and cannot be had.
    """
    always = settings.gauss_newton == "always"
    if settings.gauss_newton == "never" or type(op) not in (HessianOperator, GGNOperator):
        if always:
            raise InputError(f"gauss_newton='always' is for the Hessian and for G, and the matrix is {op.kind}")
        return None
    try:
        cost = gram_cost(risk, len(groups))
    except InputError:
        if always:
            raise
        return None
    cost = replace(cost, gradients=cost.gradients + _WHOLE * (_RESIDUAL + len(Partition.by_module(risk.layout))))
    others = _WHOLE * forecasts[0] + _LAYER * sum(forecasts[1:])
    return cost if always or (cost.rows <= LIMIT and cost.gradients <= _SHARE * others) else None
