"""Files that are either written completely or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file and rename it, so that a reader finds the old file or the new one, never a partial one.

    Parameters
    ----------
    path : Path
        Its folder is created if it does not exist.
    write : callable
        Called with the open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, neighbour = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            write(handle)
        os.chmod(neighbour, 0o644)
        os.replace(neighbour, path)
    except BaseException:
        os.unlink(neighbour)
        raise
