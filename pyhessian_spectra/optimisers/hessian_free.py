"""Hessian-free optimisation (Martens 2010), also block-diagonal (Zhang, Xiong, Bradbury and Socher 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature.operators import GGNOperator
from pyhessian_spectra.curvature.partition import Group, Partition
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers.base import CurvatureOptimizer, LineSearch
from pyhessian_spectra.optimisers.blocks import Blocks, blocks_of, complete
from pyhessian_spectra.optimisers.checks import require_convex_loss, require_range
from pyhessian_spectra.optimisers.proposals import Proposal, along_step, of_cg
from pyhessian_spectra.optimisers.records import SolveRecord, StepRecord
from pyhessian_spectra.spectra.cg import cg
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.structured import CongruenceOperator, DiagonalOperator


class HessianFree(CurvatureOptimizer):
    """Hessian-free optimisation, of one block or of several whose systems are solved apart.

    For each block ``b``, conjugate gradients solve ``(A_bb + damping I) d_b = -g_b`` with the gradient ``g`` of a
    minibatch and the curvature ``A`` of a part of it, starting from ``cg_momentum`` times the last step's solution, or
    from zero after a step that was taken back. The solutions together, times ``lr``, are the step. One block is
    ordinary Hessian-free. The blocks share one linearisation, and passes for a block of whole parameters end at these.
    At a direction of negative curvature the iteration ends with what it has, or with the negative gradient if that is
    nothing (Nocedal and Wright 2006, algorithm 7.1).

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
        The blocks, which must have every parameter: None for one; ``"module"``, ``"parameter"``, ``"layer"`` (of
        networks without normalisation), a depth, or globs, as for :meth:`Partition.of`; lists of parameters or of their
        names; a :class:`Partition`; or a function from a layout to one, such as ``lambda layout:
        Partition.at_random(layout, 3, generator=generator)``.
    curvature : callable
        ``curvature(risk, point=...)``: ``GGNOperator``, ``HessianOperator`` or another operator. The Gauss-Newton
        matrix leaves out what a loss has beside the outputs, such as a penalty on weights.
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
        ``adapt_damping(damping, ratio) -> damping`` with the ratio of the actual to the predicted reduction, minus
        infinity for a step that was taken back; called after each step whose predicted reduction is more than rounding.
        For example :func:`levenberg_marquardt`.
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
    >>> print(f"{model.weight.item():.4f} {model.bias.item():.4f}")
    2.0000 1.0000
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
        line_search: LineSearch | None = None,
        averaging: float = 0.0,
        group: Any | None = None,
    ) -> None:
        options = {"cg_stop": cg_stop, "preconditioner": preconditioner, "adapt_damping": adapt_damping}
        for name, option in {**options, "curvature": curvature}.items():
            if not (callable(option) or (option is None and name != "curvature")):
                raise InputError(f"{name} must be a function, got {option!r}")
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
        self.partition = blocks_of(self.layout, self._blocks, self._params)
        self._block_settings()

    def _block_settings(self) -> dict[str, dict[str, Any]]:
        """The settings of each block, by label; raises InputError if parameters of one do not share them."""
        settings = self._settings()
        for group in self.param_groups:
            for key in ("damping", "cg_rtol", "cg_momentum"):
                require_range(key, group[key])
            if not isinstance(group["max_cg_iterations"], int) or group["max_cg_iterations"] < 1:
                raise InputError(
                    f"max_cg_iterations must be a whole number of at least 1, got {group['max_cg_iterations']!r}"
                )
            if group["cg_momentum"] > 1:
                raise InputError(f"cg_momentum must be between 0 and 1, got {group['cg_momentum']}")
        found = {}
        for block in self.partition:
            first, *others = (settings[name] for name in block.names)
            for key in self._SETTINGS[1:]:
                if any(other[key] != first[key] for other in others):
                    raise InputError(
                        f"parameters of block {block.label!r} have different {key}; give them one, or blocks of their "
                        "own"
                    )
            found[block.label] = {**first, "lrs": {float(group["lr"]) for group in (first, *others)}}
        return found

    def _propose(self, risk: EmpiricalRisk, subset: EmpiricalRisk | None, gradient: Tensor) -> Proposal:
        of, settings = subset or risk, self._block_settings()
        if self._adapt is not None and not all(group["damping"] > 0 for group in self.param_groups):
            raise InputError("adapt_damping multiplies the damping, which is 0; start from one above 0")
        op = self._operator(self._curvature, risk, subset)
        if self._curvature is GGNOperator and not self._checked:
            require_convex_loss(of, self._point)
        inverse, last = self._inverse(of), self._last()
        direction, slope, bend, solves = torch.empty_like(gradient), 0.0, 0.0, []
        for block in self.partition:
            own, g = settings[block.label], block.take(gradient)
            meter = Meter(self._block_operator(op, block))
            found = cg(
                meter,
                -g,
                x0=None if last is None or not own["cg_momentum"] else own["cg_momentum"] * block.take(last),
                shift=own["damping"],
                max_iterations=own["max_cg_iterations"],
                rtol=own["cg_rtol"],
                preconditioner=None if inverse is None else DiagonalOperator(block.take(inverse)),
                stop=self._stop,
            )
            d, curvature = of_cg(found, meter, g, own["damping"])
            block.put(d, direction)
            falls, bends = along_step(meter.space.inner(g, d), curvature, own["lrs"])
            slope, bend = slope + falls, bend + bends
            solves.append(SolveRecord.of(block.label, found, meter.num_products))
        dampings = tuple(own["damping"] for own in settings.values())
        return Proposal(direction, slope, bend, dampings, tuple(solves))

    def _block_operator(self, op: LinearOperator, block: Group) -> LinearOperator:
        if len(block) == self.layout.n:
            return op
        if isinstance(op, RiskOperator) and block.whole:
            return op.block(block.names)
        return CongruenceOperator(op, block.indices)

    def _inverse(self, risk: EmpiricalRisk) -> Tensor | None:
        """The preconditioner's diagonal (n,)."""
        if self._preconditioner is None:
            return None
        groups = self._settings().values()
        dampings = [torch.full_like(p, group["damping"]) for p, group in zip(self._params, groups, strict=True)]
        found = self._preconditioner(risk, self._point, self.layout.flatten(dampings))
        if (
            not isinstance(found, Tensor)
            or found.shape != (self.layout.n,)
            or not bool((found > 0).all() & found.isfinite().all())
        ):
            raise InputError(
                f"the preconditioner must give {self.layout.n:,} positive and finite numbers; pass a damping above 0, "
                "since gradients may vanish"
            )
        return found.to(self._space.dtype)

    def _last(self) -> Tensor | None:
        """The last step's solution (n,); None before the first, and after a step that was taken back."""
        if not all("direction" in self.state[p] for p in self._params):
            return None
        return self.layout.flatten([self.state[p]["direction"].to(p) for p in self._params])

    def _finish(self, record: StepRecord, proposal: Proposal) -> None:
        for p, part in zip(self._params, self.layout.unflatten(proposal.direction), strict=True):
            if record.rejected is None:
                self.state[p]["direction"] = part.clone()
            else:
                self.state[p].pop("direction", None)
        promised = -(proposal.slope + proposal.curvature / 2)  # without a line search
        if self._adapt is None or abs(promised) <= self._space.eps * abs(record.loss):  # of which no more than rounding
            return
        if math.isnan(promised) and not record.rejected:
            return
        ratio = -math.inf if record.rejected else record.actual / record.predicted
        for group in self.param_groups:
            group["damping"] = require_range("what adapt_damping returns", self._adapt(group["damping"], ratio))

    def _shared(self) -> dict[str, Any]:
        blocks = {block.label: hash(tuple(block.indices.tolist())) for block in self.partition if not block.whole}
        return {**super()._shared(), "blocks": [*self.partition.groups, blocks]}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit; blocks that cut parameters are part of it."""
        found = super().state_dict()
        if all(block.whole for block in self.partition):
            return found
        return {**found, "blocks": {block.label: block.indices for block in self.partition}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; raises InputError for one of another optimiser or of other parameters."""
        super().load_state_dict(state_dict)
        if "blocks" in state_dict:
            self.partition = complete(Partition(self.layout, state_dict["blocks"]))

    _SETTINGS = ("lr", "damping", "max_cg_iterations", "cg_rtol", "cg_momentum")
    _COPIED = (
        *CurvatureOptimizer._COPIED,
        *("partition", "_blocks", "_curvature", "_stop", "_preconditioner", "_adapt"),
    )
