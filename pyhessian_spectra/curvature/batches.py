"""Batches: reads the data of a risk in the forms that users have, and determines each batch's weight."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pyhessian_spectra.errors import InputError

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """One batch on the parameters' device: the model's inputs and the targets."""

    inputs: Any
    targets: Any
    index: int

    @property
    def num_examples(self) -> int:
        """Length of the first tensor of the targets, or of the inputs where these have none; 1 without tensors."""
        tensors = [x for x in tree_leaves((self.targets, self.inputs)) if isinstance(x, Tensor) and x.dim()]
        return len(tensors[0]) if tensors else 1

    @property
    def input_bytes(self) -> int:
        """Bytes of the tensors among the inputs."""
        return sum(x.nbytes for x in tree_leaves(self.inputs) if isinstance(x, Tensor))

    def cast(self, dtype: torch.dtype) -> Batch:
        """The batch with its floating tensors in another dtype."""
        inputs, targets = (tree_map(lambda x: _cast(x, dtype), value) for value in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)

    def rows(self, start: int, stop: int) -> Batch:
        """These examples only: rows of the tensors that have one for each example, and all else whole."""
        length = self.num_examples
        cut = lambda x: x[start:stop] if isinstance(x, Tensor) and x.dim() and len(x) == length else x  # noqa: E731
        return replace(self, inputs=tree_map(cut, self.inputs), targets=tree_map(cut, self.targets), index=-1)

    def joined(self, other: Batch) -> Batch | None:
        """The examples of both batches in one, or None where their tensors do not fit together."""
        lengths = self.num_examples, other.num_examples

        def join(a: Any, b: Any) -> Any:
            if not isinstance(a, Tensor) or not a.dim():
                return a
            if (len(a), len(b)) == lengths:
                return torch.cat([a, b])
            raise ValueError("rows that are no examples")

        try:
            pairs = (self.inputs, self.targets), (other.inputs, other.targets)
            inputs, targets = tree_map(join, *pairs)
        except (ValueError, TypeError, RuntimeError):
            return None
        return replace(self, inputs=inputs, targets=targets, index=-1)


class Batches:
    """The batches of an :class:`EmpiricalRisk`, read anew in each pass and by default weighted by ``num_terms``."""

    def __init__(
        self,
        data: Iterable[Any],
        *,
        unpack: Callable[[Any], tuple[Any, Any]] | None,
        weight: Callable[[Any], float] | None,
        num_terms: Callable[[Any], float],
    ) -> None:
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise InputError(f"data must be batches or one (inputs, targets) pair, got {type(data).__name__}")
        if isinstance(data, Iterator):
            raise InputError("data is an iterator and can be read only once; pass a list or a DataLoader")
        if isinstance(data, Mapping) or (isinstance(data, tuple) and not isinstance(data[0], (tuple, list, Mapping))):
            data = [data]
        self.data = data
        self._unpack, self._weight, self._num_terms = unpack or _inputs_and_targets, weight, num_terms

    def read(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[float, Batch]]:
        """One pass: yield weights and batches, with floating tensors in ``dtype``; batches of weight 0 are left out."""
        for index, raw in enumerate(self.data):
            try:
                inputs, targets = self._unpack(raw)
            except (TypeError, ValueError, KeyError) as error:
                raise InputError(
                    f"batch {index} ({type(raw).__name__}) cannot be read as (inputs, targets): {error}; pass unpack="
                ) from error
            weight = self._weight(raw) if self._weight else self._num_terms(targets)
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"the weight of batch {index} is {weight}; it must be finite and not negative")
            if weight:
                yield weight, Batch(_placed(inputs, dtype, device), _placed(targets, dtype, device), index)


class Share:
    """A share of the data: every ``step``-th batch, from batch number ``first`` on."""

    def __init__(self, data: Iterable[Any], first: int, step: int) -> None:
        self._data, self._first, self._step = data, first, step

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._data, self._first, None, self._step)


def num_terms(loss_fn: Callable[..., Any], targets: Any) -> float:
    """Number of terms that a mean loss averages, by which the means of several batches are weighted."""
    if not isinstance(targets, Tensor):
        raise InputError(f"targets are a {type(targets).__name__}, not a tensor; pass weight= to weigh the batches")
    if setting(loss_fn, "reduction", "mean") == "batchmean":
        return float(len(targets))
    if targets.is_floating_point():
        return float(targets.numel())
    counted = targets != setting(loss_fn, "ignore_index", -100)
    class_weights = setting(loss_fn, "weight", None)
    if isinstance(class_weights, Tensor):
        return float(class_weights.to(targets.device)[targets[counted]].sum(dtype=torch.float64))
    return float(counted.sum())


def setting(loss_fn: Callable[..., Any], name: str, default: Any) -> Any:
    """A setting of a loss: an attribute of a module, or a keyword of a ``functools.partial``; else ``default``."""
    if isinstance(loss_fn, functools.partial):
        return loss_fn.keywords[name] if name in loss_fn.keywords else setting(loss_fn.func, name, default)
    return getattr(loss_fn, name, default)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    return value.detach().to(dtype).requires_grad_(value.requires_grad)


def _placed(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        # a leaf: a graph from the user's own tensor would hold what was converted, and lead to it
        placed = value.detach().to(device, dtype if value.is_floating_point() else None)
        return placed.requires_grad_() if value.requires_grad else placed
    if isinstance(value, Mapping):
        return {key: _placed(item, dtype, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_placed(item, dtype, device) for item in value)
    return value


def _inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        for key in _TARGET_KEYS:
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise KeyError(f"none of {', '.join(_TARGET_KEYS)} among its keys {', '.join(map(str, batch))}")
    inputs, targets = batch
    return inputs, targets
