"""EmpiricalRisk: the function whose curvature is analysed, an objective averaged over a sample."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batches, num_terms, setting
from pyhessian_spectra.curvature.distributed import Processes
from pyhessian_spectra.curvature.objective import BatchObjective, Objective, tensors_in
from pyhessian_spectra.curvature.parameters import ParameterLayout, trainable_layout
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.sample import Sample
from pyhessian_spectra.errors import InputError


class EmpiricalRisk:
    r"""The empirical risk :math:`L(\theta) = \sum_b w_b \ell_b(\theta) / \sum_b w_b` over batches (and ranks).

    The model is never changed: it is called with copies of its parameters and buffers in place of its own, and its mode
    is put back after each call.

    Parameters
    ----------
    model : torch.nn.Module
        Parameters with ``requires_grad`` are the coordinates; tied ones count once.
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``, a mean over its terms, or their sum where it has
        ``reduction="sum"``: the risk is then the sum over batches, and so are its matrices. It may use the model, its
        parameters and their derivatives too. For a loss of another form see :meth:`from_batch_loss`.
    data : iterable of batches, or one batch
        Anything that can be iterated again and again: a list, a DataLoader; a tuple ``(x, y)`` of tensors or a
        mapping is one batch. Floating inputs are moved to the parameters' device and dtype.
    params : str or sequence of str, optional
        Restrict the coordinates: parameter names, module names, or globs.
    mode : {"eval", "train"}
        Whether BatchNorm uses its running (eval) or the batch's (train) statistics. In train mode dropout is refused:
        it would draw another matrix each product.
    unpack : callable, optional
        ``batch -> (inputs, targets)``. Inputs that are a tuple are the model's positional arguments; a mapping holds
        its keyword arguments, or is its one argument where the model has no such keywords. By default batches are
        ``(x, y)`` pairs, or mappings with the targets under ``labels``, ``targets`` or ``y``.
    weight : callable, optional
        ``batch -> float``, the number of terms the loss of the batch averages. By default the targets that are not
        ``ignore_index`` (summed class weights for a weighted cross-entropy), so that uneven batches and padding
        count right: the risk does not depend on how the data are cut into batches.
    select : callable, optional
        ``outputs -> tensor`` or tuple of tensors: what the loss is taken of, where the model returns a mapping or
        another object. Gauss-Newton and Fisher matrices need it.
    group : torch.distributed.ProcessGroup, optional
        Sum over these ranks, each with its own data, which may be none.
    memory_budget : int, optional
        Bytes that each operator's kept linearisations may take, by default half of what is free on the device.

    Attributes
    ----------
    layout : ParameterLayout
        Names and places of the coordinates.
    objective : Objective
        Model, loss and mode.
    sample : Sample
        The data on all ranks, and means over them.
    reduction : {"mean", "sum"}

    Raises
    ------
    InputError
        A wrong argument, a model without trainable parameters, active dropout, or empty data.
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
        """A risk whose loss is not one of outputs and targets: ``loss_fn(model, batch) -> scalar``.

        Residuals of differential equations, for example. ``weight`` is ``batch -> float`` as for
        :class:`EmpiricalRisk`, by default the length of the batch's first tensor. Gauss-Newton and Fisher matrices are
        not defined.
        """
        risk = cls.__new__(cls)
        risk.objective = BatchObjective(model, loss_fn, mode=mode)
        risk._finish(data, lambda batch: (batch, None), weight or _length, params, group, memory_budget)
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
        self.memory_budget = memory_budget
        whole, self.dtype, self.device = trainable_layout(self.model)
        self.layout: ParameterLayout = whole if params is None else whole.restrict(params)
        self._read = functools.partial(Batches, unpack=unpack, weight=weight, num_terms=self.num_terms)
        self._processes = Processes(group)
        self.sample = self._sample(data)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.objective.model

    @property
    def loss_fn(self) -> Callable[..., Tensor]:
        """The loss."""
        return self.objective.loss_fn

    @property
    def mode(self) -> str:
        """Whether batch statistics are running ones (``"eval"``) or the batch's (``"train"``)."""
        return self.objective.mode

    @property
    def data(self) -> Iterable[Any]:
        """The batches as they were given."""
        return self.sample.data

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
        """How many terms the mean loss averages over these targets."""
        return num_terms(self.loss_fn, targets)

    def restrict(self, params: str | Sequence[str]) -> EmpiricalRisk:
        """The same risk as a function of some of its coordinates only: names, module names or globs."""
        part = copy.copy(self)  # which shares the sample, and what passes over it have found
        part.layout = self.layout.restrict(params)
        return part

    def replace(self, *, data: Iterable[Any] | None = None, memory_budget: int | None = None) -> EmpiricalRisk:
        """The same objective with other data, or another memory budget."""
        other = copy.copy(self)
        if data is not None:
            other.sample = self._sample(data)
        if memory_budget is not None:
            other.memory_budget = memory_budget
        return other

    def dealt(self, processes: Processes) -> EmpiricalRisk:
        """The same risk with its batches dealt out among processes; itself where there is only one."""
        if not processes or self.sample.processes:
            return self
        other = copy.copy(self)
        other._processes = processes
        other.sample = other._sample(_Share(self.data, processes.rank, processes.size))
        return other

    def point(self) -> Point:
        """A copy of the model's parameters and buffers as they are now."""
        return Point.copied(self.model, self.layout)

    def live(self) -> Point:
        """The model's own parameters, whatever they are when they are used."""
        return Point.live(self.model, self.layout)

    def _sample(self, data: Iterable[Any]) -> Sample:
        return Sample(self._read(data), self._processes, self.reduction, dtype=self.dtype, device=self.device)

    def loss(self, point: Point | None = None) -> float:
        """The value of the risk."""
        point = point or self.point()
        return float(self.sample.mean(lambda batch: autodiff.loss(self.objective, point, batch)))

    def gradient(self, point: Point | None = None) -> Tensor:
        """The gradient, shape (n,)."""
        point = point or self.point()
        return self.sample.mean(lambda batch: autodiff.gradient(self.objective, point, batch), (self.n,))


class _Share:
    """Every so many-th batch of the data, from the first on that is this process'."""

    def __init__(self, data: Iterable[Any], first: int, step: int) -> None:
        self._data, self._first, self._step = data, first, step

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._data, self._first, None, self._step)


def _length(batch: Any) -> float:
    """The length of the first tensor in a batch."""
    tensors = [tensor for tensor in tensors_in(batch) if tensor.dim()]
    if not tensors:
        raise InputError("a batch holds no tensor whose length could weigh it; pass weight=")
    return float(len(tensors[0]))
