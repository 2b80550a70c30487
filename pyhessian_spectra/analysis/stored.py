"""Frozen results of plain values and arrays, as JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from pyhessian_spectra.notes import Note

_T = TypeVar("_T")


def to_json(result: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON scalars, lists and objects."""
    return {field.name: plain(getattr(result, field.name)) for field in dataclasses.fields(result)}


def from_json(cls: type[_T], entry: Mapping[str, Any]) -> _T:
    """The dataclass that :func:`to_json` wrote; the annotations of its fields say what lists become."""
    assert dataclasses.is_dataclass(cls)
    fields = {field.name: _read(entry[field.name], str(field.type)) for field in dataclasses.fields(cls)}
    return cls(**fields)


def plain(value: Any) -> Any:
    """A value with all that is in it as JSON scalars, lists and objects."""
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _read(value: Any, kind: str) -> Any:
    array = any(name in kind for name in ("Floats", "NDArray", "ndarray"))
    if isinstance(value, dict):
        return {key: np.array(item) if array else item for key, item in value.items()}
    if isinstance(value, list):
        if array:
            return np.array(value)
        return tuple(Note(**item) if "Note" in kind else item for item in value)
    return value
