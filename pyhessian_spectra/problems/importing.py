"""Where the user's own modules are found: as ``python -m`` would, in the current directory first."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def current_directory_first() -> Iterator[None]:
    """``sys.path`` with the current directory in front, and as it was afterwards."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    # A module written a moment ago is not in the import system's cached listing of its directory.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
