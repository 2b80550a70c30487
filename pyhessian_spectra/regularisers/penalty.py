"""The trace of a curvature matrix as a term of the training loss, with gradients in the model's parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.operators import GGNOperator, HessianOperator
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.partition import GroupSpec, Partition
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.regularisers.derivatives import require_derivatives
from pyhessian_spectra.regularisers.head import head_trace
from pyhessian_spectra.spectra.space import VectorSpace, fresh_generator

_Draw = Callable[[VectorSpace, torch.Generator, int], Tensor]
_PROBES: dict[str, _Draw] = {
    "rademacher": VectorSpace.rademacher,
    "gaussian": VectorSpace.randn,
}

# Those whose block of a last linear layer is known in closed form.
_WITH_HEAD = (HessianOperator, GGNOperator)


def trace_penalty(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    *,
    groups: GroupSpec = "all",
    matrix: Callable[..., RiskOperator] = GGNOperator,
    num_probes: int = 1,
    probes: str = "rademacher",
    start: int = 0,
    every: int = 1,
    mode: str | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    select: Callable[[Any], Tensor | tuple[Tensor, ...]] | None = None,
    generator: torch.Generator | None = None,
) -> TracePenalty:
    """The trace of a curvature matrix on the batch of a training step, to be added to the loss of that step.

    The penalty of Sankar et al. 2020 (Hessian trace regularisation): ``(1/p) sum_i v_i^T A v_i`` with random ``v_i``
    that are zero outside the chosen groups. Its expectation is ``sum_l tr A_ll`` over the groups, and that of its
    gradient is the gradient of this sum; neither is divided by the number of parameters. A probe covers all groups at
    once: with ``L`` groups this never has more variance than ``L`` products with one group each, for a semidefinite
    matrix and Gaussian probes, since then ``sum_kl ||A_kl||_F^2 <= L sum_l ||A_ll||_F^2``. Where ``num_probes`` are
    enough for a unit vector a coordinate, these take the place of random ones, and the trace is exact. So it is where
    the one group is the last linear layer, in closed form, if the loss does not mix the outputs of examples.

    Parameters
    ----------
    model : torch.nn.Module
        It is not changed: no running statistics move, no ``.grad`` is written. Under autocast the trace has the
        precision of that.
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``, as for :class:`EmpiricalRisk`. The trace is that of its own matrix: of
        the mean of a mean, of the sum with ``reduction="sum"``.
    groups : str, int, sequence, mapping or Partition
        ``"all"`` parameters; the ``"middle"`` ones, tensors number ``len // 4`` to ``3 len // 4`` inclusive, as
        published; a ``"random"`` set of as many modules as the middle has, drawn now; or what :meth:`Partition.of`
        takes: names and globs, ``"layer"``, a depth, a partition of ``EmpiricalRisk(...).layout``.
    matrix : callable
        ``matrix(risk, point=...)``, a :class:`RiskOperator`. The Gauss-Newton matrix is semidefinite for a convex loss,
        so that the penalty has the lower bound 0. Signed traces of ``HessianOperator`` have none: a large weight drives
        them to minus infinity. ``penalty(batch).abs()`` is bounded, and biased: upwards, as a mean of moduli.
    num_probes : int
        Products a step, ``p``.
    probes : {"rademacher", "gaussian"}
        Entries of the probes. Signs have the smaller variance, by ``2 sum_i A_ii^2``.
    start, every : int
        The penalty is on at calls ``start``, ``start + every``, ..., counted from 0; other calls return 0 at no cost.
    mode : {"train", "eval"}, optional
        What BatchNorm uses; by default the batch's statistics or the running ones, as the model does at that step.
    unpack, select : callable, optional
        As for :class:`EmpiricalRisk`.
    generator : torch.Generator, optional
        Source of the probes and of the random modules; None draws a fresh seed.

    Returns
    -------
    TracePenalty
        ``penalty(batch)`` is a scalar tensor. With its backward pass it took, in gradients of the loss, 4.9, 11 and 31
        for 1, 3 and 10 probes of a LeNet (the middle parameters 3.0, 5.8 and 16, the last layer exactly 1.6), and 8.6,
        19 and 59 of a narrow ResNet20; the Hessian takes up to a half more (``benchmarks/penalty.py``, on one core
        among other programs). The graphs of all probes are held until then.

    Raises
    ------
    InputError
        A wrong argument, a name that no parameter has (the nearest is offered), or active dropout.

    Examples
    --------
    >>> model, loss_fn = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), nn.CrossEntropyLoss()
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> penalty = trace_penalty(model, loss_fn, every=50)
    >>> (loss_fn(model(x), y) + 0.01 * penalty((x, y))).backward()
    """
    if probes not in _PROBES:
        raise InputError(f"probes must be one of {', '.join(_PROBES)}, got {probes!r}")
    counts = (num_probes, every, start)
    if not all(isinstance(each, int) for each in counts) or num_probes < 1 or start < 0 or every < 1:
        raise InputError(
            f"num_probes and every must be whole numbers of at least 1 and start of at least 0, got {num_probes}, "
            f"{every} and {start}"
        )
    if not callable(matrix):
        raise InputError(f"matrix must be GGNOperator, HessianOperator or another RiskOperator, got {matrix!r}")
    generator = generator or fresh_generator()

    @functools.cache
    def risk_in(mode: str) -> EmpiricalRisk:
        # a single batch's weight cancels
        return EmpiricalRisk(model, loss_fn, [], mode=mode, unpack=unpack, weight=lambda batch: 1.0, select=select)

    def risk() -> EmpiricalRisk:
        return risk_in(mode or _mode_of(model))

    partition = _partition(risk().layout, groups, generator)
    if not len(partition):
        raise InputError("groups choose no parameter; name some, or take 'all'")
    return TracePenalty(risk, partition, matrix, num_probes, _PROBES[probes], (start, every), generator)


class TracePenalty:
    """A penalty that :func:`trace_penalty` makes; it counts its calls.

    Attributes
    ----------
    step : int
        Number of calls so far.
    partition : Partition
        The chosen groups.
    traces : dict of str to Tensor
        Estimated trace of each group's block, without a graph, when the penalty was on last.
    """

    def __init__(
        self,
        risk: Callable[[], EmpiricalRisk],
        partition: Partition,
        matrix: Callable[..., RiskOperator],
        num_probes: int,
        draw: _Draw,
        schedule: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        self.step, self.traces = 0, dict[str, Tensor]()
        self._risk, self._matrix, self._num_probes, self._draw = risk, matrix, num_probes, draw
        self._choose(partition)
        self._start, self._every = schedule
        self._generator, self._checked = generator, False

    def _choose(self, partition: Partition) -> None:
        self.partition, self._groups = partition, _within_their_parameters(partition)
        self._chosen = torch.cat([group.indices for group in self._groups])
        (first, *more) = self._groups
        modules = {name.rpartition(".")[0] for name in first.names}
        self._may_be_head = not more and first.whole and len(modules) == 1 and self._matrix in _WITH_HEAD

    def __call__(self, batch: Any) -> Tensor:
        """The penalty on a batch: a scalar with a graph in the model's parameters; 0 without one where it is off.

        Raises
        ------
        SecondDerivativeError
            The loss has no second or no third derivative on the first batch where it is on, so that the penalty would
            change nothing. A function of the model that silently drops higher derivatives is not found.
        NonFiniteError
            The trace is NaN or infinite.
        InputError
            Derivatives are switched off, modules are in both modes, or what :class:`EmpiricalRisk` raises for a batch.
        """
        if not torch.is_grad_enabled():
            raise InputError("a penalty needs derivatives; call it outside of torch.no_grad() and inference mode")
        risk, now = self._risk(), self.step
        self.step += 1
        if now < self._start or (now - self._start) % self._every:
            return torch.zeros((), dtype=risk.dtype, device=risk.device)
        whole = risk.replace(data=[batch])
        part = whole.restrict(self._groups.layout.names)  # backward passes end at these parameters
        op = self._matrix(part, point=part.live())
        traces = self._traces(op)
        value = torch.stack([*traces.values()]).sum()
        seen = [value.detach(), *([] if risk.objective.latest is None else [risk.objective.latest])]
        if not all(bool(torch.isfinite(each)) for each in seen):
            raise NonFiniteError(
                "the trace is NaN or infinite on this batch; look at its inputs, and whether it has any target that "
                "counts"
            )
        if not self._checked:
            require_derivatives(op, value, whole)
            self._checked = True
        self.traces = {label: trace.detach() for label, trace in traces.items()}
        return value

    def _traces(self, op: RiskOperator) -> dict[str, Tensor]:
        """The trace of each group's block, with a graph: exact where that is cheap."""
        if self._may_be_head:
            trace = head_trace(op)
            if trace is not None:
                return {group.label: trace for group in self._groups}
            self._may_be_head = False
        v = self._vectors(op.space)
        diagonal = (v * op.product(v)).sum(dim=1)
        return {group.label: group.take(diagonal).sum() for group in self._groups}

    def _vectors(self, space: VectorSpace) -> Tensor:
        """Columns (n, k) in the chosen coordinates; the expected sum of their outer products is the identity there."""
        chosen, count = self._chosen.to(space.device), len(self._chosen)
        if count <= self._num_probes:
            vectors = torch.zeros(space.n, count, dtype=space.dtype, device=space.device)
            vectors[chosen, range(count)] = 1
            return vectors
        support = torch.zeros(space.n, 1, dtype=space.dtype, device=space.device)
        support[chosen] = self._num_probes**-0.5
        return support * self._draw(space, self._generator, self._num_probes)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to repeat this one: the count, the random numbers to come, the chosen groups."""
        groups = {group.label: group.indices for group in self.partition}
        return {"step": self.step, "generator": self._generator.get_state(), "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.step = state["step"]
        self._choose(Partition(self.partition.layout, state["groups"]))
        self._generator.set_state(state["generator"])


def _partition(layout: ParameterLayout, groups: GroupSpec, generator: torch.Generator) -> Partition:
    if groups == "all":
        return Partition(layout, {"all": torch.arange(layout.n)})
    if groups not in ("middle", "random"):
        return Partition.of(layout, groups)
    count = len(layout.names)
    middle = Partition.by_module(layout, layout.names[count // 4 : 3 * count // 4 + 1])
    if groups == "middle":
        return middle
    modules = [*Partition.by_module(layout)]
    drawn = sorted(torch.randperm(len(modules), generator=generator)[: len(middle)].tolist())
    return Partition(layout, {modules[i].label: modules[i].indices for i in drawn})


def _within_their_parameters(partition: Partition) -> Partition:
    """The same groups as coordinates of a layout that has no other parameters than theirs."""
    layout = partition.layout
    names = {name for group in partition for name in group.names}
    kept = torch.cat([torch.arange(s.start, s.stop) for name, s in layout.slices.items() if name in names])
    groups = {group.label: torch.searchsorted(kept, group.indices) for group in partition}
    return Partition(layout.restrict([name for name in layout.names if name in names]), groups)


def _mode_of(model: nn.Module) -> str:
    """The mode that all modules of the model are in; raises InputError if they differ."""
    name = next((name for name, module in model.named_modules() if module.training != model.training), None)
    mode, other = ("train", "eval") if model.training else ("eval", "train")
    if name is not None:
        raise InputError(
            f"the model is in {mode} mode and its module {name} in {other} mode; pass mode='train' or mode='eval', "
            "which then holds for all modules in the penalty"
        )
    return mode
