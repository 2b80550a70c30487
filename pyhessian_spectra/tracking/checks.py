"""What a tracker and its quantities are given, checked before training begins."""

from __future__ import annotations

import math
from typing import Any

from pyhessian_spectra.errors import InputError


def require_count(name: str, value: Any, least: int) -> int:
    """The value; raises InputError unless it is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def require_share(name: str, value: Any, *, most: float = 1.0) -> float:
    """The value; raises InputError unless it is a number above 0 and at most ``most``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= most:
        end = "finite" if most == math.inf else f"at most {most:g}"
        raise InputError(f"{name} must be a number above 0 and {end}, got {value!r}")
    return float(value)


def require_quantities(quantities: Any) -> list[Any]:
    """Quantities as a list; raises InputError if they are none, no quantities, or two of one kind."""
    asked = list(quantities) if isinstance(quantities, (list, tuple)) else [None]
    needed = ("measure", "state_dict", "load_state_dict", "needs_previous")
    for each in asked or [None]:
        if isinstance(each, type) or not all(hasattr(each, name) for name in needed):
            raise InputError(f"quantities must be a list such as [Eigenvalues(), Traces()], got {quantities!r}")
    kinds = [type(each) for each in asked]
    if len(set(kinds)) < len(kinds):
        twice = next(kind.__name__ for kind in kinds if kinds.count(kind) > 1)
        raise InputError(f"quantities has two of {twice}, whose numbers would have the same names; give one")
    return asked
