"""A folder that several processes fill together: a file for each analysis, which whoever takes it holds a lock on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.saved import SavedAnalyses
from pyhessian_spectra.cli.request import Request
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole

# What the folder was filled with is in this file.
_ASKED = "comparison.json"


class SharedFolder:
    """The analyses of a comparison, on disk, and who is at which.

    Raises InputError if the folder holds something else, or a comparison with other options.
    """

    def __init__(self, out: Path, request: Request) -> None:
        self.out, self._analyses, self._started = out, out / "analyses", time.time()
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; name a directory with --out")
        try:
            held = sorted(each.name for each in out.iterdir()) if out.exists() else []
            if _ASKED not in held and (foreign := [name for name in held if not name.startswith(f".{_ASKED}")]):
                told = "name an empty directory, or that of a comparison to go on with"
                raise InputError(f"{out} holds {foreign[0]} and no comparison; {told}")
            self._agree(_asked(request))
            self._analyses.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror}; name another directory with --out") from None

    def _agree(self, asked: Mapping[str, Any]) -> None:
        file = self.out / _ASKED
        if not file.exists():
            text = json.dumps(asked, indent=1) + "\n"
            write_whole(file, lambda handle: handle.write(text.encode()))
        try:
            before = json.loads(file.read_text())
        except ValueError:
            raise InputError(f"{file} is damaged; name another directory with --out") from None
        for key, value in asked.items():
            if before.get(key) != value:
                told = f"{key} = {before.get(key)!r}, and now {value!r} is asked for"
                raise InputError(f"{self.out} holds a comparison with {told}; name another directory with --out")

    def key(self, path: Path, part: str) -> str:
        """Which analysis is that of a checkpoint on a part of the data; a file that has changed has another."""
        try:
            stat = path.stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        return hashlib.sha256(f"{os.path.realpath(path)} {state} {part}".encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether an analysis is this process's to make, as long as the block lasts.

        A process that is killed loses its claim, and another goes on from the products that it kept.
        """
        lock = filelock.FileLock(self._analyses / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield False
            return
        try:
            yield not self.settled(key)
        finally:
            lock.release()

    @property
    def threads(self) -> Path:
        """Where a choice of threads is kept."""
        return self._analyses / "threads"

    def journal(self, key: str) -> Path:
        """The folder in which products are kept until the analysis is finished."""
        return self._analyses / f"{key}.journal"

    def finished(self, key: str) -> bool:
        """Whether an analysis is there; its arrays are written last."""
        return all((self._analyses / f"{key}{end}").exists() for end in (".npz", ".json"))

    def load(self, key: str) -> SavedAnalyses:
        """A finished analysis; raises InputError, which says why there is none."""
        if not self.finished(key):
            raise InputError(self.reason(key) or "it was not analysed")
        try:
            return SavedAnalyses(self._analyses / f"{key}.json", self._analyses / f"{key}.npz")
        except InputError as error:
            raise self.removed(key, error) from None

    def removed(self, key: str, error: Exception) -> InputError:
        """Remove an analysis that cannot be read, so that the next process makes it again; return what to tell."""
        (self._analyses / f"{key}.npz").unlink(missing_ok=True)
        return InputError(f"{error}; it was removed, and the same command makes it again")

    def settled(self, key: str) -> bool:
        """Whether an analysis was finished, or has failed since this process began: failures are tried again once."""
        with contextlib.suppress(FileNotFoundError):
            if (self._analyses / f"{key}.failed").stat().st_mtime >= self._started:
                return True
        return self.finished(key)

    def finish(self, key: str, analysis: SpectralAnalysis) -> None:
        """Keep an analysis in place of its products."""
        analysis.save(self._analyses / f"{key}.json")
        shutil.rmtree(self.journal(key), ignore_errors=True)
        (self._analyses / f"{key}.failed").unlink(missing_ok=True)

    def fail(self, key: str, reason: str) -> None:
        """Keep why there is no analysis."""
        write_whole(self._analyses / f"{key}.failed", lambda handle: handle.write(reason.encode()))

    def reason(self, key: str) -> str | None:
        """Why there is no analysis; None where nothing has failed."""
        if self.finished(key):
            return None
        try:
            return (self._analyses / f"{key}.failed").read_text()
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Let one process after the other write the page."""
        with filelock.FileLock(self._analyses / "page.lock"):
            yield


def _asked(request: Request) -> dict[str, Any]:
    """What analyses depend on, as JSON."""
    how = {key: getattr(value, "__name__", repr(value)) for key, value in request.how.items()}
    plain = {**request.problem, **how, "seed": request.seed}
    return json.loads(json.dumps(plain, default=str))
