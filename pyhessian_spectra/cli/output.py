"""An output directory that is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pyhessian_spectra.errors import InputError

# What a report's directory holds; --force replaces a directory of these, results.json among them, and no other.
_OWN = ("report.html", "results.json", "spectra.npz", "figures", "figures/*.svg")
_OWN_AFTER_TRAINING = (*_OWN, "checkpoints", "checkpoints/step-[0-9]*.pt")


def check_free(out: Path, *, force: bool, trained: bool = False) -> None:
    """Raise where writing to ``out`` would lose something.

    Parameters
    ----------
    out : Path
    force : bool
        Whether a report that is there may go.
    trained : bool
        Whether its checkpoints may go too, because the command trains them again.

    Raises
    ------
    InputError
        ``out`` is a file, cannot be listed, holds the current directory, or holds what may not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a directory with --out")
    try:
        held = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
        if held and not force:
            raise InputError(f"{out} exists and is not empty; name another directory, or replace it with --force")
        own = _OWN_AFTER_TRAINING if trained else _OWN
        _refuse_foreign(out, held, own)  # first, so that a large foreign tree is not walked
        _refuse_foreign(out, sorted(str(entry.relative_to(out)) for entry in out.rglob("*")), own)
    except OSError as error:
        raise InputError(f"{out} cannot be read: {error.strerror}; name another directory with --out") from None
    if held and "results.json" not in held:
        raise InputError(f"{out} holds {held[0]} but no results.json and so no report; --force replaces reports only")
    if Path.cwd().is_relative_to(_resolved(out)):
        raise InputError(f"{out} holds the current directory, which cannot be replaced; name one in it with --out")


@contextlib.contextmanager
def staged(out: Path, *, force: bool, trained: bool = False) -> Iterator[Path]:
    """A directory beside ``out`` that takes its place when the block ends, and goes when the block fails."""
    check_free(out, force=force, trained=trained)
    place = _resolved(out)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}; name another directory with --out") from None
    stage = holder / "new"
    stage.mkdir()  # in the holder, which only this user may enter, so that it has the usual permissions itself
    try:
        yield stage
        try:
            check_free(out, force=force, trained=trained)  # again: another run may have written there since
            _replace(place, stage, holder / "old")
        except (InputError, OSError) as error:
            kept = holder.with_name(f"{place.name}{holder.suffix}")
            stage.rename(kept)
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"the report is in {kept}, because {out} could not be replaced: {reason}") from None
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _replace(place: Path, new: Path, old: Path) -> None:
    """Move ``new`` to ``place`` and what was there to ``old``, or leave ``place`` as it was."""
    try:
        if place.exists():
            place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise


def _refuse_foreign(out: Path, names: list[str], own: tuple[str, ...]) -> None:
    foreign = [name for name in names if not _matches(name, own)]
    if foreign:
        raise InputError(f"{out} holds {foreign[0]}, which this command did not write; --force replaces reports only")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # a pattern matches from the right, so that the depths must agree as well
    return any(Path(name).match(p) and name.count(os.sep) == p.count("/") for p in patterns)


def _resolved(out: Path) -> Path:
    """The directory itself where ``out`` is a link to it."""
    return Path(os.path.realpath(out))
