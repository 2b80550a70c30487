"""Names of built-in models and losses, which may be written in any case and with ``-`` or ``_``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from pyhessian_spectra.errors import InputError

_T = TypeVar("_T")


def canonical_name(name: str) -> str:
    """The spelling that the tables of built-ins use: ``vgg11_bn`` for ``VGG11-BN``."""
    return name.lower().replace("-", "_")


def find_builtin(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    """The entry of that name; where there is none, ``InputError`` lists the known ones and tells the closest."""
    key = canonical_name(name)
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}? The " if close else "the "
        others = f"{hint}known ones are {', '.join(known)}; for any other give --problem package.module:function"
        raise InputError(f"there is no built-in {kind} {name!r}; {others}")
    return known[key]
