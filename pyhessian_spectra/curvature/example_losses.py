"""The losses of single examples, from the outputs of a whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.objective import Objective


def example_losses(
    objective: Objective, outputs: Any, batch: Batch, num_terms: Callable[[Any], float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (p,) of the examples that have terms, their shares in all terms, and which examples these are (N,)."""
    terms = torch.tensor([num_terms(target[None]) for target in batch.targets], dtype=torch.float64)
    counted = terms > 0
    tensors, rebuild = _taken_apart(outputs)
    one = torch.func.vmap(lambda y, *z: objective.loss_fn(rebuild([t[None] for t in z]), y[None]))
    losses = one(batch.targets[counted], *(t[counted] for t in tensors))
    return losses, (terms[counted] / terms.sum()).to(losses), counted


def _taken_apart(outputs: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors in a model's outputs, and a function that rebuilds the outputs from other tensors."""
    if isinstance(outputs, Tensor):
        return [outputs], lambda tensors: tensors[0]
    if isinstance(outputs, Mapping):
        items = dict(outputs)
        build: Callable[[dict[Any, Any]], Any] = dict if type(outputs) is dict else lambda d: type(outputs)(**d)
    elif dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        items = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
        build = lambda d: dataclasses.replace(outputs, **d)  # noqa: E731 - one of several ways to build
    elif isinstance(outputs, (tuple, list)):
        items = dict(enumerate(outputs))
        make = getattr(outputs, "_make", type(outputs))
        build = lambda d: make(d.values())  # noqa: E731
    else:
        return [], lambda tensors: outputs
    parts = {key: _taken_apart(value) for key, value in items.items()}

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        rebuilt, start = {}, 0
        for key, (held, put) in parts.items():
            rebuilt[key] = put(tensors[start : start + len(held)])
            start += len(held)
        return build(rebuilt)

    return [tensor for held, _ in parts.values() for tensor in held], rebuild
