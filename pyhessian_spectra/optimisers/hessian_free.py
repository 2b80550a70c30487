"""Hessian-free optimisation (Martens 2010), also block-diagonal (Zhang, Xiong, Bradbury and Socher 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pyhessian_spectra.curvature.objective import ClosureObjective
from pyhessian_spectra.curvature.operators import GGNOperator
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.partition import Group, GroupSpec, Partition
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers.base import CurvatureOptimizer, Proposal
from pyhessian_spectra.optimisers.convexity import require_convex_loss
from pyhessian_spectra.optimisers.records import SolveRecord, StepRecord
from pyhessian_spectra.spectra.cg import CGResult, cg
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.structured import CongruenceOperator, ShiftedOperator

#: How blocks may be given: see :class:`HessianFree`.
Blocks = GroupSpec | Callable[[ParameterLayout], Partition] | Sequence[Sequence[Tensor | str]] | None

_PER_BLOCK = ("damping", "max_cg_iterations", "cg_rtol", "cg_momentum")


class HessianFree(CurvatureOptimizer):
    """Hessian-free optimisation, of one block or of several whose systems are solved apart.

    For each block ``b``, conjugate gradients solve ``(A_bb + damping I) d_b = -g_b`` with the gradient ``g`` of a
    minibatch and the curvature ``A`` of a part of it, starting from ``cg_momentum`` times the last step's solution. The
    solutions together, times ``lr``, are the step. One block is ordinary Hessian-free. The blocks share one
    linearisation, and passes for a block of whole parameters end at these. At a direction of negative curvature the
    iteration ends with what it has, or with the negative gradient if that is nothing (Nocedal and Wright 2006,
    algorithm 7.1).

    Parameters
    ----------
    params : iterable
        ``model.named_parameters()``, so that blocks can be chosen by name (torch 2.6), ``model.parameters()``, or
        groups with settings of their own: ``lr`` and all that a block has. Frozen parameters are left alone.
    lr : float
        Length of steps; schedulers change it.
    damping : float
        Added to the diagonal.
    partition : optional
        The blocks: None for one; ``"layer"``, ``"module"``, ``"parameter"``, a depth, or globs, as for
        :meth:`Partition.of`; lists of parameters or of their names; a :class:`Partition`; or a function from a layout
        to one, such as ``lambda layout: Partition.at_random(layout, 3, generator=generator)``.
    curvature : callable
        ``curvature(risk, point=...)``: ``GGNOperator``, ``HessianOperator`` or another operator.
    max_cg_iterations : int
    cg_rtol : float
        A block's iteration ends when its residual is at most this times its gradient's norm.
    cg_momentum : float
        Between 0 and 1.
    cg_stop : callable, optional
        For example :func:`relative_progress`, Martens' criterion; see :func:`cg`.
    preconditioner : callable, optional
        ``preconditioner(risk, point, damping) -> (n,)``, the diagonal of an approximate inverse; for example
        :func:`squared_gradients`, Martens'. ``damping`` is that of each coordinate.
    adapt_damping : callable, optional
        ``adapt_damping(damping, ratio) -> damping``, called after each step; for example :func:`levenberg_marquardt`.
    line_search : callable, optional
        For example :func:`backtracking`.
    averaging : float
        Decay of the exponential average of the parameters (see :meth:`averaged`); 0 keeps none.
    group : torch.distributed.ProcessGroup, optional
        For closures of several processes, each with its own part of the minibatch: all take the step of the mean of
        their losses. Risks bring their own.

    Attributes
    ----------
    partition : Partition

    Raises
    ------
    InputError
        Blocks that overlap or leave a parameter out, a block whose parameters have different settings, or a setting
        out of range; in the first step, a loss that is not convex in the outputs, for ``GGNOperator``.

    Examples
    --------
    >>> from pyhessian_spectra import EmpiricalRisk
    >>> x = torch.linspace(-1, 1, 8)[:, None]
    >>> model = torch.nn.Linear(1, 1)
    >>> optimizer = HessianFree(model.named_parameters(), lr=1.0)
    >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), (x, 2 * x + 1))
    >>> loss = optimizer.step(risk)
    >>> model.weight.item(), model.bias.item()
    (2.0, 1.0)
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.1,
        damping: float = 0.0,
        partition: Blocks = None,
        curvature: Callable[..., LinearOperator] = GGNOperator,
        max_cg_iterations: int = 30,
        cg_rtol: float = 1e-4,
        cg_momentum: float = 0.95,
        cg_stop: Callable[[Floats], bool] | None = None,
        preconditioner: Callable[[EmpiricalRisk, Point, Tensor], Tensor] | None = None,
        adapt_damping: Callable[[float, float], float] | None = None,
        line_search: Callable[[Callable[[float], float], float, float], float] | None = None,
        averaging: float = 0.0,
        group: Any | None = None,
    ) -> None:
        self._blocks, self._curvature, self._stop = partition, curvature, cg_stop
        self._preconditioner, self._adapt = preconditioner, adapt_damping
        defaults = {
            "lr": lr,
            "damping": damping,
            "max_cg_iterations": max_cg_iterations,
            "cg_rtol": cg_rtol,
            "cg_momentum": cg_momentum,
        }
        super().__init__(params, defaults, averaging=averaging, line_search=line_search, group=group)

    def _arrange(self) -> None:
        super()._arrange()
        self.partition = _partition(self.layout, self._blocks, self._params)
        settings = self._settings()
        for group in self.param_groups:
            _require_range(group)
            if self._adapt is not None and not group["damping"] > 0:
                raise InputError("adapt_damping multiplies the damping, which is 0; start from one above 0")
        for block in self.partition:
            self._of_block(block, settings)

    def _of_block(self, block: Group, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The settings of a block; raises InputError if its parameters do not share them."""
        first, *others = (settings[name] for name in block.names)
        for key in _PER_BLOCK:
            if any(other[key] != first[key] for other in others):
                raise InputError(
                    f"parameters of block {block.label!r} have different {key}; give them one, or blocks of their own"
                )
        return first

    def _propose(self, risk: EmpiricalRisk, subset: EmpiricalRisk | None, gradient: Tensor) -> Proposal:
        full, settings = _num_examples(risk), self._settings()
        of = risk if subset is None else subset
        if self._curvature is GGNOperator and not self._num_steps:
            require_convex_loss(of, self._point)
        op = self._curvature(of.unchecked(), point=self._point)
        if isinstance(op, RiskOperator):
            op.linearise()
        if subset is not None and full is not None and (_num_examples(subset) or 0) >= full:
            raise InputError(
                f"the curvature's {_num_examples(subset)} examples are not fewer than the gradient's {full}; pass a "
                "smaller subset, or none"
            )
        inverse = self._inverse(of, settings)
        last = self._last()
        direction, predicted, solves = torch.empty_like(gradient), 0.0, []
        for block in self.partition:
            own = self._of_block(block, settings)
            found, meter = self._solve(block, op, own, gradient, last, inverse)
            d = found.x
            if found.status == "negative curvature" and not found.num_iterations:
                d = -block.take(gradient)
            block.put(d, direction)
            predicted += self._predicted(block, settings, own["damping"], d, found, gradient)
            solves.append(
                SolveRecord(
                    block.label, found.status, found.num_iterations, meter.num_products, found.residuals, found.model
                )
            )
        dampings = tuple(float(self._of_block(block, settings)["damping"]) for block in self.partition)
        return Proposal(direction, predicted, dampings, tuple(solves))

    def _solve(
        self,
        block: Group,
        op: LinearOperator,
        own: dict[str, Any],
        gradient: Tensor,
        last: Tensor | None,
        inverse: Tensor | None,
    ) -> tuple[CGResult, Meter]:
        meter = Meter(self._block_operator(op, block))
        diagonal = None if inverse is None else block.take(inverse)
        x0 = None if last is None or not own["cg_momentum"] else own["cg_momentum"] * block.take(last)
        found = cg(
            ShiftedOperator(meter, own["damping"]) if own["damping"] else meter,
            -block.take(gradient),
            x0=x0,
            max_iterations=own["max_cg_iterations"],
            rtol=own["cg_rtol"],
            preconditioner=None if diagonal is None else lambda r: diagonal * r,
            stop=self._stop,
        )
        return found, meter

    def _block_operator(self, op: LinearOperator, block: Group) -> LinearOperator:
        if len(block) == self.layout.n:
            return op
        if isinstance(op, RiskOperator) and block.whole:
            return op.block(block.names)
        return CongruenceOperator(op, block.indices)

    def _inverse(self, risk: EmpiricalRisk, settings: dict[str, dict[str, Any]]) -> Tensor | None:
        """The preconditioner's diagonal (n,)."""
        if self._preconditioner is None:
            return None
        dampings = [
            torch.full_like(p, group["damping"]) for p, group in zip(self._params, settings.values(), strict=True)
        ]
        return self._preconditioner(risk, self._point, self.layout.flatten(dampings))

    def _predicted(
        self,
        block: Group,
        settings: dict[str, dict[str, Any]],
        damping: float,
        d: Tensor,
        found: CGResult,
        gradient: Tensor,
    ) -> float:
        """By how much the block's quadratic model without damping falls; its curvature is what the solver has seen."""
        lrs = {float(settings[name]["lr"]) for name in block.names}
        if len(lrs) > 1 or d is not found.x:
            return math.nan
        (lr,) = lrs
        slope = self._space.inner(block.take(gradient), d)
        curvature = 2 * (float(found.model[-1]) - slope) - damping * self._space.inner(d, d)
        return -(lr * slope + lr**2 * curvature / 2)

    def _last(self) -> Tensor | None:
        """The last step's solution (n,); None before the first."""
        if not all("direction" in self.state[p] for p in self._params):
            return None
        return self.layout.flatten([self.state[p]["direction"] for p in self._params])

    def _finish(self, record: StepRecord, proposal: Proposal) -> None:
        keep = record.rejected is None
        for p, part in zip(self._params, self.layout.unflatten(proposal.direction), strict=True):
            self.state[p]["direction"] = part.clone() if keep else torch.zeros_like(part)
        if self._adapt is not None and not math.isnan(record.predicted):
            ratio = record.actual / record.predicted if keep and record.predicted > 0 else -math.inf
            for group in self.param_groups:
                group["damping"] = self._adapt(group["damping"], ratio)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit; blocks that cut parameters are part of it."""
        found = super().state_dict()
        if all(block.whole for block in self.partition):
            return found
        return {**found, "blocks": {block.label: block.indices for block in self.partition}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        if "blocks" in state_dict:
            self.partition = Partition(self.layout, state_dict["blocks"])


def _partition(layout: ParameterLayout, blocks: Blocks, params: Sequence[Tensor]) -> Partition:
    """The blocks as a partition of all parameters; raises InputError if one has none."""
    names = {id(p): name for name, p in zip(layout.names, params, strict=True)}
    if blocks is None:
        partition = Partition(layout, {"all": torch.arange(layout.n)})
    elif callable(blocks):
        partition = blocks(layout)
    elif isinstance(blocks, Sequence) and not all(isinstance(block, str) for block in blocks):
        lists = {f"block {i}": [names.get(id(p), p) for p in block] for i, block in enumerate(blocks)}
        partition = Partition.by_glob(layout, cast(dict[str, Sequence[str]], lists))
    else:
        partition = Partition.of(layout, cast(GroupSpec, blocks))
    if partition.left_out:
        raise InputError(
            f"no block has {', '.join(partition.left_out)}; put every trainable parameter into one, as 'module' does"
        )
    return partition


def _num_examples(risk: EmpiricalRisk) -> int | None:
    """Examples of a risk, or of closures that were called, on all ranks; None if one of these returned no outputs."""
    if not isinstance(risk.objective, ClosureObjective):
        return risk.num_examples
    counts = risk.sample.processes.gather(risk.objective.num_examples)
    return None if None in counts else sum(count or 0 for count in counts)


def _require_range(group: dict[str, Any]) -> None:
    for key, fits, wanted in (
        ("damping", group["damping"] >= 0, "at least 0"),
        ("max_cg_iterations", group["max_cg_iterations"] >= 1, "at least 1"),
        ("cg_rtol", group["cg_rtol"] >= 0, "at least 0"),
        ("cg_momentum", 0 <= group["cg_momentum"] <= 1, "between 0 and 1"),
    ):
        if not fits:
            raise InputError(f"{key} must be {wanted}, got {group[key]}")
