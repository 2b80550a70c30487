"""Newton's method with the exact Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers.base import CurvatureOptimizer, Proposal
from pyhessian_spectra.optimisers.records import SolveRecord
from pyhessian_spectra.spectra.cg import cg
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.structured import ShiftedOperator

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
        negative curvature it ends with what it has.
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
        line_search: Callable[[Callable[[float], float], float, float], float] | None = None,
        averaging: float = 0.0,
        group: Any | None = None,
    ) -> None:
        if solver not in SOLVERS:
            raise InputError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        if not damping >= 0:
            raise InputError(f"damping must be at least 0, got {damping}")
        self._solver, self._damping = solver, float(damping)
        self._max_iterations, self._rtol = max_cg_iterations, cg_rtol
        super().__init__(params, {"lr": lr}, averaging=averaging, line_search=line_search, group=group)

    def _propose(self, risk: EmpiricalRisk, subset: EmpiricalRisk | None, gradient: Tensor) -> Proposal:
        op = Meter(HessianOperator(subset or risk, point=self._point))
        if self._solver == "cg":
            found = cg(
                ShiftedOperator(op, self._damping), -gradient, max_iterations=self._max_iterations, rtol=self._rtol
            )
            d = found.x if found.num_iterations else -gradient
            solve = SolveRecord(
                "all", found.status, found.num_iterations, op.num_products, found.residuals, found.model
            )
            curvature = self._space.inner(d, op @ d)
        else:
            d, curvature, solve = self._decomposed(op, gradient)
        lrs = {float(group["lr"]) for group in self.param_groups}
        slope, lr = self._space.inner(gradient, d), lrs.pop()
        predicted = float("nan") if lrs else -(lr * slope + lr**2 * curvature / 2)
        return Proposal(d, predicted, (self._damping,), (solve,))

    def _decomposed(self, op: Meter, gradient: Tensor) -> tuple[Tensor, float, SolveRecord]:
        """The direction, its curvature, and the record; eigenvalues and vectors are computed in float64."""
        if op.n > LIMIT:
            raise InputError(
                f"the Hessian of {op.n:,} parameters is too large to be decomposed (at most {LIMIT:,}); take "
                "solver='cg'"
            )
        dense = op.to_dense().double()
        values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
        used = (values.abs() if self._solver == "absolute" else values) + self._damping
        scale = float(values.abs().max())
        if float(used.abs().min()) <= op.n * op.space.eps * max(scale, self._damping):
            raise InputError(self._singular(values, scale, op.space.eps))
        along = vectors.T @ gradient.double()
        d = vectors @ (-along / used)
        model = float(-(along**2 / used).sum() / 2)
        residual = float(torch.linalg.vector_norm(used * (vectors.T @ d) + along))
        norm = float(torch.linalg.vector_norm(along))
        solve = SolveRecord("all", "exact", 0, op.num_products, np.array([norm, residual]), np.array([0.0, model]))
        curvature = float((values * (along / used) ** 2).sum())
        return d.to(gradient), curvature, solve

    def _singular(self, values: Tensor, scale: float, eps: float) -> str:
        least = float(values.abs().min())
        enough = max(0.0, -float(values.min())) * 1.01 + (scale or 1.0) * eps**0.5
        return (
            f"the Hessian{f' with damping {self._damping:g}' if self._damping else ''} is singular: its smallest "
            f"|eigenvalue| is {least:.3g}, its largest {scale:.3g}; pass damping={enough:.3g}, which makes all "
            "eigenvalues positive"
        )
