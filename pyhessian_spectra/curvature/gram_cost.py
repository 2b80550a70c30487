"""A forecast of what a Gram matrix costs, from sizes and counts of operations alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.features import Plan
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.rows import output_factors
from pyhessian_spectra.errors import InputError

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
