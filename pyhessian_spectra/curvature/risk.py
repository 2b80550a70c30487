"""EmpiricalRisk: the function whose curvature is analysed, the mean of an objective over a sample."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batch, Batches, Share, num_terms, setting
from pyhessian_spectra.curvature.distributed import Processes
from pyhessian_spectra.curvature.failures import tensors_in
from pyhessian_spectra.curvature.losses import BatchObjective, ClosureObjective
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.parameters import ParameterLayout, trainable_layout
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.sample import Sample
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import one_line

RANDOM = (
    "the data or the model draw at random, or change, and the Hessian would change with every product; switch off "
    "augmentation and functional dropout, or load the batches into a list first"
)


class EmpiricalRisk:
    r"""The empirical risk :math:`L(\theta) = \sum_b w_b \ell_b(\theta) / \sum_b w_b` over batches (and ranks).

    The model is never changed: it is called with copies of its parameters and buffers in place of its own, and its mode
    is restored after each call.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters with ``requires_grad`` are the coordinates; tied ones count once.
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``, the mean over its terms, or their sum if it has ``reduction="sum"``:
        the risk and its matrices are then sums over batches. It may also use the model, its parameters and their
        derivatives. For a loss of another form see :meth:`from_batch_loss`.
    data : iterable of batches, or one batch
        Any object that can be iterated repeatedly: a list, a DataLoader. A tuple ``(x, y)`` of tensors or a mapping is
        one batch. Floating inputs are moved to the parameters' device and dtype.
    params : str or sequence of str, optional
        Restrict the coordinates: parameter names, module names, or globs.
    mode : {"eval", "train"}
        Whether BatchNorm uses its running (eval) or the batch's (train) statistics. In train mode dropout is refused,
        since it would draw a different matrix for each product.
    unpack : callable, optional
        ``batch -> (inputs, targets)``. A tuple of inputs holds the model's positional arguments; a mapping holds its
        keyword arguments, or is its one argument if the model has no such keywords. By default batches are ``(x, y)``
        pairs, or mappings with the targets under ``labels``, ``targets`` or ``y``.
    weight : callable, optional
        ``batch -> float``, the number of terms that the batch's loss averages, by default :meth:`num_terms` of its
        targets. With it the risk does not depend on how the data are cut into batches.
    select : callable, optional
        ``outputs -> tensor`` or tuple of tensors: the tensors that the loss is a function of, if the model returns a
        mapping or another object. Gauss-Newton and Fisher matrices need them.
    group : torch.distributed.ProcessGroup, optional
        Average over these ranks, each with its own data; a rank may have none.
    memory_budget : int, optional
        Bytes that each operator's kept linearisations may take, by default half of the memory free on the device.

    Attributes
    ----------
    layout : ParameterLayout
        Names and positions of the coordinates.
    objective : Objective
        Model, loss and mode.
    sample : Sample
        The data on all ranks, and means over them.
    reduction : {"mean", "sum"}

    Raises
    ------
    InputError
        A wrong argument, a model without trainable parameters, or active dropout; empty data when they are first read.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Iterable[Any],
        *,
        params: str | Sequence[str] | None = None,
        mode: str = "eval",
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        weight: Callable[[Any], float] | None = None,
        select: Callable[[Any], Tensor | tuple[Tensor, ...]] | None = None,
        group: Any | None = None,
        memory_budget: int | None = None,
    ) -> None:
        self.objective = Objective(model, loss_fn, mode=mode, select=select)
        self._finish(data, unpack, weight, params, group, memory_budget)

    @classmethod
    def from_batch_loss(
        cls,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        data: Iterable[Any],
        *,
        weight: Callable[[Any], float] | None = None,
        params: str | Sequence[str] | None = None,
        mode: str = "eval",
        group: Any | None = None,
        memory_budget: int | None = None,
    ) -> EmpiricalRisk:
        """A risk with a loss of the model and a whole batch: ``loss_fn(model, batch) -> scalar``.

        An example is the residual of a differential equation. ``weight`` is ``batch -> float`` as for
        :class:`EmpiricalRisk`, by default the length of the batch's first tensor. Gauss-Newton and Fisher matrices of
        such a risk are not defined.
        """
        risk = cls.__new__(cls)
        risk.objective = BatchObjective(model, loss_fn, mode=mode)
        risk._finish(data, lambda batch: (batch, None), weight or _length, params, group, memory_budget)
        risk.weights_guessed = weight is None
        return risk

    @classmethod
    def from_closure(
        cls, named: Mapping[str, Tensor], closure: Callable[[], Any], *, group: Any | None = None
    ) -> EmpiricalRisk:
        """A risk that a function computes at the parameters as they are: ``closure() -> loss`` or ``(loss, outputs)``.

        ``named`` maps names to the leaf tensors that the loss depends on; those that require a gradient are the
        coordinates. It has no point but the live one. Gauss-Newton and Fisher matrices need the outputs, a tensor or
        several. The function calls the model in the mode that it is in, and what it changes is changed. Of another
        function it is ``risk.replace(data=[closure])``.
        """
        risk = cls.__new__(cls)
        risk.objective = ClosureObjective(named)
        risk._finish([closure], lambda batch: (batch, None), lambda batch: 1.0, None, group, None)
        return risk

    def _finish(
        self,
        data: Iterable[Any],
        unpack: Callable[[Any], tuple[Any, Any]] | None,
        weight: Callable[[Any], float] | None,
        params: str | Sequence[str] | None,
        group: Any | None,
        memory_budget: int | None,
    ) -> None:
        reduction = setting(self.objective.loss_fn, "reduction", "mean")
        if reduction not in ("mean", "sum", "batchmean") and weight is None:
            raise InputError(f"loss_fn has reduction={reduction!r}; use reduction='mean' or 'sum'")
        self.reduction = "sum" if reduction == "sum" else "mean"
        self.weights_guessed = weight is None
        self._values: list[float] | None = None  # the first value, shared by restrictions, while it is to be held
        self.memory_budget = memory_budget
        whole, self.dtype, self.device = trainable_layout(self.model)
        self.layout: ParameterLayout = whole if params is None else whole.restrict(params)
        self._read = functools.partial(Batches, unpack=unpack, weight=weight, num_terms=self.num_terms)
        self._processes = Processes(group)
        self.sample = self._sample(data)

    @property
    def model(self) -> nn.Module:
        """The model, without the wrapper of ``torch.compile``."""
        return self.objective.model

    @property
    def loss_fn(self) -> Callable[..., Tensor]:
        """The loss."""
        return self.objective.loss_fn

    @property
    def mode(self) -> str:
        """Whether BatchNorm uses its running (``"eval"``) or the batch's (``"train"``) statistics."""
        return self.objective.mode

    @property
    def data(self) -> Iterable[Any]:
        """The batches as the user gave them."""
        return self.sample.data

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return one_line(
            self, [type(self.model).__name__, f"n={self.n:,}", f"mode={self.mode}", dtype, str(self.device)]
        )

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return self.layout.n

    @property
    def num_examples(self) -> int:
        """Number ``N`` of examples in the data of all ranks."""
        return self.sample.survey.num_examples

    @property
    def num_batches(self) -> int:
        """Number of batches in the data of all ranks."""
        return len(self.sample.survey.weights)

    def num_terms(self, targets: Any) -> float:
        """How many terms the mean loss averages: counted labels, their class weights or entries of float targets."""
        return num_terms(self.loss_fn, targets)

    def weight_of(self, batch: Batch) -> float:
        """The weight that a batch has if none are given: the terms of its targets, or its length if it has none."""
        return float(batch.num_examples) if batch.targets is None else self.num_terms(batch.targets)

    def restrict(self, params: str | Sequence[str]) -> EmpiricalRisk:
        """The same risk as a function of some coordinates only, chosen by parameter names, module names or globs."""
        part = copy.copy(self)  # shares the sample and its survey
        part.layout = self.layout.restrict(params)
        return part

    def replace(
        self,
        *,
        data: Iterable[Any] | None = None,
        memory_budget: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> EmpiricalRisk:
        """The same objective with other data or another memory budget, or at points of another floating dtype.

        With ``dtype`` the model's own parameters no longer fit: points come from :meth:`Point.cast`.
        """
        other = copy.copy(self)
        if dtype is not None:
            other.dtype, other.sample = dtype, self.sample.cast(dtype)
        if data is not None:
            other.sample, other._values = self._sample(data), None if self._values is None else []
        if memory_budget is not None:
            other.memory_budget = memory_budget
        return other

    def along(self, layout: ParameterLayout) -> EmpiricalRisk:
        """The same risk at points of another layout of its parameters, in another order or under other names."""
        other = copy.copy(self)
        other.layout = layout
        return other

    def unchecked(self) -> EmpiricalRisk:
        """The same risk, whose products are not read back to look for NaN and infinity: the caller does."""
        other = copy.copy(self)
        other.sample = self.sample.unchecked()
        return other

    def dealt(self, processes: Processes) -> EmpiricalRisk:
        """The same risk with its batches distributed over processes; itself if there is one process only."""
        if not processes or self.sample.processes:
            return self
        other = copy.copy(self)
        other._processes = processes
        other.sample = other._sample(Share(self.data, processes.rank, processes.size))
        return other

    def point(self) -> Point:
        """A copy of the model's current parameters and buffers; of a closure, which has no other, the live point."""
        if isinstance(self.objective, ClosureObjective):
            return self.live()
        return Point.copied(self.model, self.layout)

    def live(self) -> Point:
        """The model's own parameters, with the values that they have whenever they are used."""
        return Point.live(self.layout, map(self.objective.parameter, self.layout.names))

    def _sample(self, data: Iterable[Any]) -> Sample:
        return Sample(self._read(data), self._processes, self.reduction, dtype=self.dtype, device=self.device)

    def loss(self, point: Point | None = None) -> float:
        """The value of the risk at ``point``, by default at the model's current parameters."""
        point = point or self.point()
        return float(
            self.sample.mean(lambda batch: autodiff.loss(self.objective, point, batch), over=self.batches(point))
        )

    def loss_and_gradient(self, point: Point) -> tuple[Tensor, Tensor]:
        """The value of the risk, a scalar, and its gradient (n,) at ``point``, from one pass; they may be NaN."""
        both = self.sample.unchecked().mean(
            lambda batch: autodiff.loss_and_gradient(self.objective, point, batch),
            (self.n + 1,),
            over=self.batches(point),
        )
        return both[0], both[1:]

    def gradient(self, point: Point | None = None) -> Tensor:
        """The gradient (n,) at ``point``, by default at the model's current parameters."""
        point = point or self.point()
        return self.sample.mean(
            lambda batch: autodiff.gradient(self.objective, point, batch), (self.n,), over=self.batches(point)
        )

    def batch_gradients(self, point: Point | None = None) -> Iterator[tuple[float, Tensor]]:
        """Shares and gradients (n,) of this process' batches that have any weight; their products add up to the whole.

        Where the risk is a sum, each batch's gradient is divided by its share.
        """
        point, shares = point or self.point(), self.sample.shares.tolist()
        for share, (_, batch) in zip(shares, self.batches(point), strict=True):
            if share:
                gradient = autodiff.gradient(self.objective, point, batch)
                yield share, gradient / share if self.reduction == "sum" else gradient

    def held(self) -> EmpiricalRisk:
        """The same risk, which raises InputError once a pass at a copy of the model's parameters has another value."""
        other = copy.copy(self)
        other._values = []
        return other

    def batches(self, point: Point) -> Iterator[tuple[float, Batch]]:
        """One pass over this rank's weights and batches, whose losses are evaluated at ``point`` as they come."""
        total = weights = 0.0
        for weight, batch in self.sample.read():
            yield weight, batch
            if self._values is not None and point.is_models and self.objective.latest is not None:
                total, weights = total + weight * float(self.objective.latest), weights + weight
        if self._values is None or not weights:
            return
        now = total / weights
        first = self._values[0] if self._values else now
        self._values[:] = [first]
        if abs(now - first) > torch.finfo(self.dtype).eps ** 0.5 * abs(first):
            raise InputError(
                f"values of the risk at the same parameters, {first:.6g} and {now:.6g}, differ by more than rounding: "
                f"{RANDOM}"
            )


def _length(batch: Any) -> float:
    """The length of the first tensor in a batch."""
    tensors = [tensor for tensor in tensors_in(batch) if tensor.dim()]
    if not tensors:
        raise InputError("a batch holds no tensor whose length could weigh it; pass weight=")
    return float(len(tensors[0]))
