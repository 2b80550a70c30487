"""One run at a time: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: IO[str]) -> None:
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: IO[str]) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class HeldError(Exception):
    """Another process holds the lock; the message is its process number."""


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made where it is missing, with its folder.

    Raises
    ------
    HeldError
    OSError
        The file cannot be made.
    """
    handle = _held(file)
    try:
        yield
    finally:
        handle.close()


def _held(file: Path) -> IO[str]:
    while True:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = open(file, "a+")  # noqa: SIM115 - the lock lasts as long as it is open
            _take(handle)
            # the run that held it before may have removed the file in the meantime
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(file)):
                handle.truncate(0)
                handle.write(str(os.getpid()))
                handle.flush()
                return handle
            handle.close()
        except FileNotFoundError:  # or its folder
            continue


def _take(handle: IO[str]) -> None:
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):
        handle.seek(0)
        holder = handle.read()
        handle.close()
        raise HeldError(holder) from None
    except OSError:
        pass  # a file system without locks
