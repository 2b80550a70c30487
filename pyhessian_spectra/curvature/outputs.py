"""The tensors in what a model returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def separate(outputs: Any) -> Any:
    """The same outputs with each tensor a node of its own.

    Derivatives in one of them then hold the others fixed, also where one was computed from another. What cannot be
    rebuilt from other tensors is returned as it is.
    """
    tensors, rebuild = taken_apart(outputs)
    if len(tensors) < 2:
        return outputs
    try:
        return rebuild([tensor.view_as(tensor) for tensor in tensors])
    except (TypeError, ValueError):
        return outputs


def taken_apart(outputs: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
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
    parts = {key: taken_apart(value) for key, value in items.items()}

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        rebuilt, start = {}, 0
        for key, (held, put) in parts.items():
            rebuilt[key] = put(tensors[start : start + len(held)])
            start += len(held)
        return build(rebuilt)

    return [tensor for held, _ in parts.values() for tensor in held], rebuild
