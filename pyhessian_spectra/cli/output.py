"""An output directory that is written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from pyhessian_spectra.errors import InputError

# What a report's directory holds; --force replaces a directory of these, results.json among them, and no other.
_OWN = ("report.html", "results.json", "spectra.npz", "table.csv", "figures", "figures/*.svg")
_OWN_AFTER_TRAINING = (*_OWN, "checkpoints", "checkpoints/step-[0-9]*.pt")


def check_free(out: Path, *, force: bool, trained: bool = False) -> None:
    """Raise unless ``out`` may be written; ``force`` gives up a report that is there, ``trained`` its checkpoints."""
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
    if Path.cwd().is_relative_to(os.path.realpath(out)):
        raise InputError(f"{out} holds the current directory, which cannot be replaced; name one in it with --out")


class Stage:
    """A folder beside the output, ``.OUT.resume``, in which a run keeps everything until the output is whole."""

    def __init__(self, out: Path) -> None:
        self.place = Path(os.path.realpath(out))  # the directory itself where ``out`` is a link to it
        self._holder = self.place.with_name(f".{self.place.name}.resume")
        # new takes the place of the output, and old is what was there before
        self.lock, self.new, self.old, self.threads = (self._holder / n for n in ("lock", "new", "old", "threads"))
        self.unfinished = False  # set where something is left to be done: the journals are then kept

    def journal(self, checkpoint: Path, copy: int = 0) -> Path:
        """Where the journal of a checkpoint lies, the same in every run; ``copy`` counts equal ones before it."""
        which = hashlib.sha256(f"{copy} {os.path.realpath(checkpoint)}".encode()).hexdigest()
        return self._holder / f"journal-{which[:16]}"

    @property
    def resumable(self) -> bool:
        """Whether a journal is kept."""
        return any(self._holder.glob("journal-*"))

    def forget(self) -> None:
        """Remove the journals."""
        for journal in self._holder.glob("journal-*"):
            shutil.rmtree(journal)
        self.threads.unlink(missing_ok=True)

    def replace(self) -> None:
        """Move what is new to its place and what was there to ``old``, or leave the place as it was."""
        try:
            if self.place.exists():
                self.place.rename(self.old)
            self.new.rename(self.place)
        except BaseException:
            if self.old.exists() and not self.place.exists():
                self.old.rename(self.place)
            raise

    def clean(self) -> None:
        """Remove what is of no use to a later run."""
        for folder in (self.new, self.old):
            shutil.rmtree(folder, ignore_errors=True)
        if not self.resumable:
            shutil.rmtree(self._holder, ignore_errors=True)


@contextlib.contextmanager
def staged(out: Path, *, force: bool, trained: bool = False, fresh: bool = False) -> Iterator[Stage]:
    """A directory that takes the place of ``out`` when the block ends, or goes when it fails; journals stay then."""
    check_free(out, force=force, trained=trained)  # before anything is written
    stage = Stage(out)
    place = stage.place
    with contextlib.ExitStack() as stack:
        try:
            stage.lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(stage.lock, timeout=0))
            stack.callback(stage.clean)
            if stage.old.exists() and not place.exists():  # a run was killed when it had moved the output away
                stage.old.rename(place)
            for folder in filter(Path.exists, (stage.new, stage.old)):
                shutil.rmtree(folder)
            check_free(out, force=force, trained=trained)
            if fresh:
                stage.forget()
            stage.new.mkdir()  # in a folder that only this user may enter, so that it has the usual permissions itself
        except filelock.Timeout:
            told = f"another run is writing {out}; wait for it, or name another directory with --out"
            raise InputError(told) from None
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror}; name another directory with --out") from None
        yield stage
        try:
            check_free(out, force=force, trained=trained)  # again: another program may have written there since
            stage.replace()
        except (InputError, OSError) as error:
            kept = next(name for i in itertools.count(1) if not (name := place.with_name(f"{place.name}.{i}")).exists())
            stage.new.rename(kept)
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"the report is in {kept}, because {out} could not be replaced: {reason}") from None
        if not stage.unfinished:
            stage.forget()


def _refuse_foreign(out: Path, names: list[str], own: tuple[str, ...]) -> None:
    for name in names:
        # a pattern matches from the right, so that the depths must agree as well
        if not any(Path(name).match(p) and name.count(os.sep) == p.count("/") for p in own):
            raise InputError(f"{out} holds {name}, which this command did not write; --force replaces reports only")
