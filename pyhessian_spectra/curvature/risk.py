"""EmpiricalRisk: the function whose curvature is analysed, and the only loop over its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.calling import Batch, Point
from pyhessian_spectra.curvature.distributed import all_reduce_sum
from pyhessian_spectra.curvature.inspection import dropout_modules
from pyhessian_spectra.curvature.parameters import ParameterLayout, select_names, trainable_parameters
from pyhessian_spectra.errors import InputError, NonFiniteError

MODES = ("eval", "train")
_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


class Survey(NamedTuple):
    """What one pass over the data found."""

    num_batches: int
    num_examples: int
    weight: float


class EmpiricalRisk:
    r"""The empirical risk :math:`L(\theta) = \sum_b w_b \ell_b(\theta) / \sum_b w_b` over batches (and ranks).

    The model is never changed: it is called through ``torch.func.functional_call`` with copies of its parameters
    and buffers, and its mode is put back after each call.

    Parameters
    ----------
    model : torch.nn.Module
        Parameters with ``requires_grad`` are the coordinates; tied ones count once.
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``, a mean over its terms.
    data : iterable of batches, or one batch
        Anything that can be iterated again and again: a list, a DataLoader; a tuple ``(x, y)`` of tensors or a
        mapping is one batch. Floating inputs are moved to the parameters' device and dtype.
    params : str or sequence of str, optional
        Restrict the coordinates: parameter names, module names, or globs.
    mode : {"eval", "train"}
        Of BatchNorm and the like. In train mode dropout is refused: it would draw another matrix each product.
    unpack : callable, optional
        ``batch -> (inputs, targets)``, where inputs are a tensor, a tuple (positional) or a mapping (keywords). By
        default batches are ``(x, y)`` pairs, or mappings with the targets under ``labels``, ``targets`` or ``y``.
    weight : callable, optional
        ``batch -> float``, the number of terms the loss of the batch averages. By default the targets that are not
        ``ignore_index`` (summed class weights for a weighted cross-entropy), so that uneven batches and padding
        count right: the risk does not depend on how the data are cut into batches.
    group : torch.distributed.ProcessGroup, optional
        Sum over these ranks, each with its own data.

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
        group: Any | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(loss_fn, type):
            raise InputError(f"loss_fn is the class {loss_fn.__name__}; pass an instance, {loss_fn.__name__}()")
        if mode not in MODES:
            raise InputError(f"mode must be 'eval' or 'train', got {mode!r}")
        if getattr(loss_fn, "reduction", "mean") != "mean" and weight is None:
            raise InputError(
                f"loss_fn has reduction={loss_fn.reduction!r}; the risk is a mean, so use reduction='mean'"  # type: ignore[attr-defined]
            )
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise InputError(f"data must be batches or one (inputs, targets) pair, got {type(data).__name__}")
        if isinstance(data, Iterator):
            raise InputError("data is an iterator and can be read only once; pass a list or a DataLoader")
        if isinstance(data, Mapping) or (isinstance(data, tuple) and not isinstance(data[0], (tuple, list, Mapping))):
            data = [data]
        self.model, self.loss_fn, self.data, self.mode = model, loss_fn, data, mode
        self._unpack, self._weight, self._group = unpack or _default_unpack, weight, group
        parameters, self._aliases = trainable_parameters(model)
        for name, p in parameters.items():
            if not torch.isfinite(p).all():
                raise NonFiniteError(
                    f"parameter {name} holds NaN or infinity; the checkpoint is from a run that diverged"
                )
        names = tuple(parameters) if params is None else select_names(params, tuple(parameters), self._aliases)
        self.layout = ParameterLayout({name: parameters[name].shape for name in names})
        self.dtype, self.device = parameters[names[0]].dtype, parameters[names[0]].device
        if mode == "train" and (dropout := dropout_modules(model)):
            raise InputError(
                f"{dropout[0]} draws another Hessian each product in train mode; set its rate to 0 or use mode='eval'"
            )

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return self.layout.n

    @property
    def distributed(self) -> bool:
        """Whether the data are spread over processes."""
        return self._group is not None

    @property
    def num_examples(self) -> int:
        """Number ``N`` of examples in the data of this rank."""
        return self.survey.num_examples

    def restrict(self, params: str | Sequence[str]) -> EmpiricalRisk:
        """The same risk as a function of some of its coordinates only: names, module names or globs."""
        names = select_names(params, self.layout.names, self._aliases)
        return EmpiricalRisk(
            self.model,
            self.loss_fn,
            self.data,
            params=names,
            mode=self.mode,
            unpack=self._unpack,
            weight=self._weight,
            group=self._group,
        )

    def point(self) -> Point:
        """A copy of the model's parameters and buffers as they are now."""
        return Point.of(self.model, self.layout.names)

    def batches(self) -> Iterator[tuple[float, Batch]]:
        """One pass over the data: weights and batches, on the parameters' device; weightless batches are left out."""
        empty = True
        for index, raw in enumerate(self.data):
            empty = False
            try:
                inputs, targets = self._unpack(raw)
            except (TypeError, ValueError, KeyError) as error:
                raise InputError(
                    f"batch {index} ({type(raw).__name__}) cannot be read as (inputs, targets): {error}; pass unpack="
                ) from error
            weight = self._weight(raw) if self._weight else self.number_of_terms(targets)
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"the weight of batch {index} is {weight}; it must be finite and not negative")
            if weight:
                yield weight, Batch(self._place(inputs), self._place(targets), index)
        if empty:
            raise InputError("data is empty; there is no batch to average over")

    def _place(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device, self.dtype if value.is_floating_point() else None)
        if isinstance(value, Mapping):
            return {key: self._place(item) for key, item in value.items()}
        return type(value)(self._place(item) for item in value) if isinstance(value, (tuple, list)) else value

    @cached_property
    def survey(self) -> Survey:
        """Counts of one pass over the data, without calling the model."""
        count, examples, total = 0, 0, 0.0
        for weight, batch in self.batches():
            count, examples, total = count + 1, examples + batch.num_examples, total + weight
        if not total and self._group is None:
            raise InputError("every batch has weight 0: all targets are ignored")
        return Survey(count, examples, total)

    def number_of_terms(self, targets: Any) -> float:
        """How many terms the mean loss averages: what its value is multiplied with to add batches up."""
        if not isinstance(targets, Tensor):
            raise InputError(f"targets are a {type(targets).__name__}, not a tensor; pass weight= to weigh the batches")
        if targets.is_floating_point():
            return float(targets.numel())
        settings = getattr(self.loss_fn, "keywords", {})  # functools.partial(F.cross_entropy, ignore_index=...)
        ignored = settings.get("ignore_index", getattr(self.loss_fn, "ignore_index", -100))
        counted = targets[targets != ignored]
        class_weights = settings.get("weight", getattr(self.loss_fn, "weight", None))
        if isinstance(class_weights, Tensor):
            return float(class_weights.to(targets.device)[counted].sum())
        return float(counted.numel())

    def terms(
        self, fn: Callable[[Any], Tensor], *, over: Iterable[tuple[float, Any]] | None = None
    ) -> Iterator[tuple[float, Tensor]]:
        """``w_b`` and ``fn(b)`` for each batch of this rank.

        Parameters
        ----------
        fn : callable
            A batch to a tensor, of the same shape for each batch.
        over : iterable of (float, object), optional
            Weights and what ``fn`` is called with, in place of a pass over the data: linearisations that were kept.

        Raises
        ------
        InputError
            The pass did not see the batches the first one saw.
        NonFiniteError
            The value for some batch is NaN or infinite; the sentence says which.
        """
        weights, count = 0.0, 0
        for weight, item in self.batches() if over is None else over:
            value = fn(item)
            if not math.isfinite(float(value.sum())):
                raise NonFiniteError(
                    f"the {'product' if value.dim() else 'loss'} of batch {getattr(item, 'index', count)} is NaN or "
                    "infinite; look at that batch's inputs, or use float64"
                )
            weights, count = weights + weight, count + 1
            yield weight, value
        if over is None and not math.isclose(weights, self.survey.weight, rel_tol=1e-9):
            raise InputError(
                f"data gave {count} batches of total weight {weights:g}, at first {self.survey.num_batches} of "
                f"{self.survey.weight:g}; it must give the same examples each time"
            )

    def mean(self, fn: Callable[[Any], Tensor], *, over: Iterable[tuple[float, Any]] | None = None) -> Tensor:
        """``sum_b w_b fn(b) / sum_b w_b`` over all batches on all ranks; arguments and errors of :meth:`terms`."""
        total, first, weights, count = None, 0.0, 0.0, 0
        for weight, value in self.terms(fn, over=over):
            if total is None:
                total, first = value, weight
            else:
                total = total * first if count == 1 else total
                total.add_(value, alpha=weight)
            weights, count = weights + weight, count + 1
        if total is None:
            raise InputError("every batch has weight 0: all targets are ignored")
        if count == 1:
            if self._group is None:
                return total  # its weight cancels
            total = total * first
        total, weights = all_reduce_sum(total, weights, self._group)
        return total.div_(weights)

    def loss(self) -> float:
        """The value of the risk."""
        point = self.point()
        return float(self.mean(lambda batch: autodiff.loss(self, point, batch)))

    def gradient(self) -> Tensor:
        """The gradient, shape (n,)."""
        point = self.point()
        return self.mean(lambda batch: autodiff.gradient(self, point, batch))


def _default_unpack(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        for key in _TARGET_KEYS:
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise KeyError(f"none of {', '.join(_TARGET_KEYS)} among its keys {', '.join(map(str, batch))}")
    inputs, targets = batch
    return inputs, targets
