"""How results show themselves: in one line, and as a table where a notebook shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

# Longer texts, and sequences of more items, are told by their size.
_LONGEST, _MOST = 40, 4


class Shown:
    """A dataclass, declared with ``repr=False``, whose ``repr`` is one line however much it holds.

    Numbers and short texts are written out; arrays are told by their shapes, what is longer by how much there is.
    """

    def __repr__(self) -> str:
        known = dataclasses.fields(self)  # type: ignore[arg-type]
        fields = [field for field in known if field.repr and field.name[0] != "_"]
        return one_line(self, [f"{field.name}={_brief(getattr(self, field.name))}" for field in fields])


def one_line(result: object, facts: Iterable[str]) -> str:
    """``Name(fact, fact)``."""
    return f"{type(result).__name__}({', '.join(facts)})"


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of texts; everything in them is escaped."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}(...)"
    if isinstance(value, (tuple, list)) and len(value) <= _MOST:
        shown = f"({', '.join(map(_brief, value))})"
        return shown if len(shown) <= _LONGEST else f"{len(value)} items"
    if isinstance(value, (Mapping, tuple, list)):
        return f"{len(value)} items"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
