"""An output directory that is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pyhessian_spectra.errors import InputError

# What a report's directory holds; --force replaces a directory of these and no other.
_OWN = {"report.html", "results.json", "spectra.npz", "figures", "checkpoints"}


def check_free(out: Path, *, force: bool) -> None:
    """Raise where writing to ``out`` would lose something."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a directory with --out")
    held = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if held and not force:
        raise InputError(f"{out} exists and is not empty; name another directory, or replace it with --force")
    if held - _OWN:
        raise InputError(f"{out} holds {sorted(held - _OWN)[0]}, which no report wrote; --force replaces reports only")


@contextlib.contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A directory beside ``out`` that takes its place when the block ends, and goes when the block fails."""
    out = Path(os.path.abspath(out))
    check_free(out, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}; name another directory with --out") from None
    try:
        yield stage
        stage.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)) / "old"
            out.rename(old)
            stage.rename(out)
            shutil.rmtree(old.parent)
        else:
            stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
