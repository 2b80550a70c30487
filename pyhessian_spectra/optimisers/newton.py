"""Newton's method with the exact Hessian."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers.base import CurvatureOptimizer, LineSearch
from pyhessian_spectra.optimisers.checks import require_range
from pyhessian_spectra.optimisers.proposals import Proposal, along_step, of_cg
from pyhessian_spectra.optimisers.records import SolveRecord
from pyhessian_spectra.spectra.cg import cg
from pyhessian_spectra.spectra.meter import Meter

SOLVERS = ("exact", "absolute", "cg")

#: Most parameters whose Hessian is decomposed: 800 MB and some minutes.
LIMIT = 10_000


class Newton(CurvatureOptimizer):
    """Newton's method: ``theta <- theta - lr (H + damping I)^-1 g``.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters, or groups of them with an ``lr`` of their own.
    lr : float
        1 is Newton's step, which solves a quadratic problem at once.
    damping : float
        Added to the eigenvalues.
    solver : {"exact", "absolute", "cg"}
        ``"exact"`` decomposes the Hessian, and goes to the next stationary point: to a saddle as soon as to a minimum.
        ``"absolute"`` takes the absolute values of its eigenvalues, and leaves saddles (saddle-free Newton; Dauphin et
        al. 2014). ``"cg"`` solves by conjugate gradients, for networks whose Hessian is too large to be built; at
        negative curvature it ends with what it has, which may lead uphill without a damping or a line search.
    max_cg_iterations, cg_rtol :
        Of ``"cg"``, as for :func:`cg`.
    line_search, averaging, group :
        As for :class:`HessianFree`.

    Raises
    ------
    InputError
        A setting out of range; in a step, a Hessian that is singular to within rounding or larger than 10,000 rows.

    Examples
    --------
    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> optimizer = Newton([w])
    >>> loss = optimizer.step(lambda: 100 * w[0] ** 2 + w[1] ** 2)
    >>> w
    tensor([0., 0.], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1.0,
        damping: float = 0.0,
        solver: str = "exact",
        max_cg_iterations: int = 250,
        cg_rtol: float = 1e-6,
        line_search: LineSearch | None = None,
        averaging: float = 0.0,
        group: Any | None = None,
    ) -> None:
        if solver not in SOLVERS:
            raise InputError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        self._solver, self._max_iterations, self._rtol = solver, max_cg_iterations, cg_rtol
        defaults = {"lr": lr, "damping": damping}
        super().__init__(params, defaults, averaging=averaging, line_search=line_search, group=group)

    def _arrange(self) -> None:
        super()._arrange()
        self._damping()

    def _damping(self) -> float:
        """The damping of all groups."""
        first, *others = (require_range("damping", group["damping"]) for group in self.param_groups)
        if any(other != first for other in others):
            raise InputError("parameter groups have different damping; Newton has one for all")
        return first

    def _propose(self, risk: EmpiricalRisk, subset: EmpiricalRisk | None, gradient: Tensor) -> Proposal:
        op, damping = Meter(self._operator(HessianOperator, risk, subset)), self._damping()
        if self._solver == "cg":
            found = cg(op, -gradient, shift=damping, max_iterations=self._max_iterations, rtol=self._rtol)
            d, curvature = of_cg(found, op, gradient, damping)
            solve = SolveRecord.of("all", found, op.num_products)
        else:
            d, curvature, solve = self._decomposed(op, gradient, damping)
        lrs = {float(group["lr"]) for group in self.param_groups}
        slope, curvature = along_step(self._space.inner(gradient, d), curvature, lrs)
        return Proposal(d, slope, curvature, (damping,), (solve,))

    _SETTINGS = ("lr", "damping")
    _COPIED = (*CurvatureOptimizer._COPIED, "_solver", "_max_iterations", "_rtol")

    def _decomposed(self, op: Meter, gradient: Tensor, damping: float) -> tuple[Tensor, float, SolveRecord]:
        """The direction, its curvature, and the record; eigenvalues and vectors are computed in float64."""
        if op.n > LIMIT:
            raise InputError(
                f"the Hessian of {op.n:,} parameters is too large to be decomposed (at most {LIMIT:,}); take "
                "solver='cg'"
            )
        dense = op.to_dense().double()
        values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
        used = (values.abs() if self._solver == "absolute" else values) + damping
        scale = float(values.abs().max())
        if float(used.abs().min()) <= op.n * op.space.eps * max(scale, damping):
            raise InputError(_singular(values, damping, op.space.eps))
        along = vectors.T @ gradient.double()
        d = vectors @ (-along / used)
        model = float(-(along**2 / used).sum() / 2)
        residual = float(torch.linalg.vector_norm(used * (vectors.T @ d) + along))
        norm = float(torch.linalg.vector_norm(along))
        solve = SolveRecord("all", "exact", 0, op.num_products, np.array([norm, residual]), np.array([0.0, model]))
        curvature = float((values * (along / used) ** 2).sum())
        return d.to(gradient), curvature, solve


def _singular(values: Tensor, damping: float, eps: float) -> str:
    least, scale = float(values.abs().min()), float(values.abs().max())
    enough = max(0.0, -float(values.min())) * 1.01 + (scale or 1.0) * eps**0.5
    return (
        f"the Hessian{f' with damping {damping:g}' if damping else ''} is singular: its smallest |eigenvalue| is "
        f"{least:.3g}, its largest {scale:.3g}; pass damping={enough:.3g}, which makes all eigenvalues positive"
    )
