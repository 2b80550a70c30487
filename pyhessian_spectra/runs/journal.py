"""Journal: products kept on disk as they are taken, so that an interrupted analysis goes on with the same numbers.

An analysis is a deterministic function of its seed and of the products it asks for, and the products are what costs.
So only they are kept, in the order they were asked for; a second run goes through the same steps, and is given them
back bit for bit for as long as they last.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyhessian_spectra._version import __version__
from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.curvature.distributed import Processes
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.notes import Note, NoteKind
from pyhessian_spectra.runs.records import Record, digest, read_record, write_record

_FORMAT = 2
_BEGINNING = b'{"journal"'
_PRODUCTS, _RESULT = "products", "analysis"  # files in a journal's folder
_LOSSY = "An interruption would have lost work"

# What a journal is bound to, in the words of the note that one of these has changed.
_OTHERS = {
    "release": "another release of this package or of torch",
    "settings": "other settings",
    "seed": "another seed",
    "checkpoint": "another checkpoint",
    "data": "other data",
    "loss": "another loss",
    "gradient": "another gradient (by the code of the model or the loss, or the number of threads)",
}

# Arrays that answer a request, and JSON scalars about how they came about, ``seconds`` among them.
Answer = tuple[list[Tensor], Mapping[str, Any]]
_T = TypeVar("_T")


class Journal:
    """Answers to the requests of one analysis, in the order they were asked; nothing is kept before ``bind``."""

    _folder: Path | None = None
    _end = 0  # where the last valid record in the file ends; 0 before the file is begun
    _replaying = _finished = False

    def __init__(self, seed: int, processes: Processes) -> None:
        self.seed = seed  # that of the earlier run, where there was one
        self.replayed, self.seconds = 0, 0.0  # products that were given back, and what they took when they were taken
        self.notes: list[Note] = []
        self._processes = processes  # the first reads and writes; the others are given what it finds

    def note(self, kind: NoteKind, text: str) -> None:
        """Add a sentence that a reader of the analysis must see."""
        self.notes.append(Note(kind, text))

    def bind(self, folder: Path, bound: Mapping[str, str], gradient: Tensor, *, tolerance: float) -> None:
        """Keep answers in a folder from now on, and take up what an earlier run left, if it was bound to the same."""
        self._folder, self._bound, self._gradient = folder, bound, gradient.cpu()
        with agreed(self._processes), _told(folder):
            if self._processes.rank == 0:
                self._take_up(folder, tolerance)
        found = self._processes.from_first((self.seed, self.notes, self._replaying, self._finished))
        self.seed, self.notes, self._replaying, self._finished = found

    def _take_up(self, folder: Path, tolerance: float) -> None:
        file = folder / _PRODUCTS
        if not file.exists():
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder} is not empty and holds no journal; name a folder of its own")
            folder.parent.mkdir(parents=True, exist_ok=True)
            return
        with open(file, "rb") as handle:
            foreign = handle.read(len(_BEGINNING)) != _BEGINNING
            handle.seek(0)
            found, end = read_record(handle), handle.tell()
        if foreign or (found is not None and found.head.get("journal") != _FORMAT):
            what = f"the journal {file} is damaged at its head or was not written by this release"
            remedy = "to start anew remove it, on the command line by --fresh; to keep it name another folder"
            raise InputError(f"{what}; {remedy}")
        if found is None:
            self.note("afresh", "Started afresh: what an interrupted run had kept is damaged.")
            return
        others = [name for key, name in _OTHERS.items() if self._bound.get(key) != found.head["bound"].get(key)]
        if not others:
            change = torch.linalg.vector_norm(self._gradient - found.arrays[0])
            if change > tolerance * torch.linalg.vector_norm(self._gradient):
                others = [_OTHERS["gradient"]]
        if others:
            self.note("afresh", f"Started afresh: what an interrupted run had kept is of {' and '.join(others)}.")
            return
        self.seed, self._end, self._finished = found.head["seed"], end, found.head["finished"]
        self._replaying = not self._finished

    def result(self, load: Callable[[Path], _T]) -> _T | None:
        """What an earlier run of this analysis has finished, on all processes; None where there is nothing to read."""
        found = None
        if self._folder is not None and self._finished and self._processes.rank == 0:
            try:
                found = load(self._folder / _RESULT)
            except InputError:
                self._end = 0
                self.note("afresh", "Started afresh: what an earlier run had finished can no longer be read.")
        return self._processes.from_first(found)

    def answer(self, ask: str, v: Tensor, call: Callable[[], Answer]) -> Answer:
        """What was answered when this was asked about ``v`` before; else what ``call`` answers now, which is kept."""
        if self._folder is None:
            return call()
        file, first = self._folder / _PRODUCTS, self._processes.rank == 0
        asked = digest([ask, v]) if first else ""
        if self._replaying:
            kept = self._processes.from_first(self._next(file, asked) if first else None)
            self._replaying = kept is not None
            if kept is not None:
                self.replayed += 1 if v.dim() == 1 else v.shape[1]
                self.seconds += kept.head["facts"]["seconds"]
                return [array.to(v.device) for array in kept.arrays], kept.head["facts"]
        arrays, facts = call()
        arrays = [array.contiguous() for array in arrays]  # the layout in memory that they have when they are read back
        if first:
            self._append(file, {"asked": asked, "facts": facts}, arrays)
        return arrays, facts

    def finish(self, save: Callable[[Path], None]) -> None:
        """Keep a result in place of the products behind it, so that asking again costs nothing."""
        if self._folder is not None and self._end:
            with contextlib.suppress(OSError, ValueError, TypeError):  # where saving fails, the products stay
                save(self._folder / _RESULT)
                self._begin(self._folder / _PRODUCTS, finished=True)

    def _next(self, file: Path, asked: str) -> Record | None:
        """The next record, if it answers this request; records after one that does not are of no use."""
        with open(file, "rb") as handle:
            handle.seek(self._end)
            record = read_record(handle)
            if record is not None and record.head["asked"] == asked:
                self._end = handle.tell()
                return record
        if record is not None:
            told = "those that an interrupted run had kept are with other vectors from there on, as another number of "
            told += "threads or another library gives them"
            self.note("afresh", f"Started afresh after {self.replayed} products: {told}.")
        return None

    def _append(self, file: Path, head: Mapping[str, Any], arrays: Sequence[Tensor]) -> None:
        if not self._end:
            with _told(file.parent):
                self._begin(file, finished=False)
                self._end = file.stat().st_size
        try:
            with open(file, "r+b") as handle:
                handle.seek(self._end)
                handle.truncate()  # drops a torn record, and records of no use
                write_record(handle, head, arrays)
                end = handle.tell()
            self._end = end
        except OSError as error:
            self.note("journal", f"{_LOSSY}: the journal could not grow, {error.strerror}.")
            with contextlib.suppress(OSError):
                os.truncate(file, self._end)
            self._folder = None

    def _begin(self, file: Path, *, finished: bool) -> None:
        """Begin the file anew with what it is bound to."""
        head = {"journal": _FORMAT, "bound": dict(self._bound), "seed": self.seed, "finished": finished}
        write_whole(file, lambda handle: write_record(handle, head, [self._gradient]))


def open_journal(
    folder: Path | None, risk: EmpiricalRisk, settings: Sequence[Any], *, seed: int, drawn: bool, size: int
) -> Journal:
    """The journal of an analysis, of ``size`` bytes at most, with what an earlier run of the same left in it."""
    processes = risk.sample.processes
    journal = Journal(seed, processes)
    if folder is None:
        return journal
    free, held = processes.from_first(_room(folder) if processes.rank == 0 else (0, 0))
    if size - held > free / 2:
        need = f"{size / 2**30:.1f} GiB of disk, more than half of the {free / 2**30:.1f} GiB that are free"
        journal.note("journal", f"{_LOSSY}: to keep it may take {need}.")
        return journal
    # The numbers depend on all of this. A seed that was drawn at random is as good as any other, so it is left out.
    bound = {
        "release": f"{__version__}, torch {torch.__version__}",
        "settings": digest([*settings, risk.layout.names, risk.mode, str(risk.dtype), str(risk.device)]),
        "seed": "drawn" if drawn else str(seed),
        "checkpoint": digest([[*risk.model.named_parameters(), *risk.model.named_buffers()], str(risk.model)]),
        **digests(risk),
    }
    # The gradient shows all that the loss and the model's code do. On the CPU it repeats bit for bit, as long as the
    # number of threads is the same. On other devices it need not, but the steps between products do.
    tolerance = 0.0 if risk.device.type == "cpu" else torch.finfo(risk.dtype).eps ** 0.5
    journal.bind(folder, bound, risk.gradient(), tolerance=tolerance)
    return journal


@contextlib.contextmanager
def agreed(processes: Processes) -> Iterator[None]:
    """Raise on all processes where the block fails on one of them; all of them must enter it."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    processes.agree(failure)


def digests(risk: EmpiricalRisk) -> dict[str, str]:
    """Digests of the batches of all processes, in their order, and of the loss."""
    data = digest([w, b.inputs, b.targets] for w, b in risk.sample.read())
    return {"data": digest(risk.sample.processes.gather(data)), "loss": digest(_loss_parts(risk.loss_fn))}


def _loss_parts(loss: Callable[..., Any]) -> list[Any]:
    """What identifies a loss as far as its code is not looked at: names, settings and the tensors it holds."""
    if isinstance(loss, functools.partial):
        return [*_loss_parts(loss.func), loss.args, loss.keywords]
    if isinstance(loss, nn.Module):
        plain = {k: v for k, v in vars(loss).items() if isinstance(v, (int, float, str)) and k != "training"}
        return [str(loss), plain, loss.state_dict()]
    return [getattr(loss, "__module__", ""), getattr(loss, "__qualname__", type(loss).__qualname__)]


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"the journal {folder} cannot be written: {error.strerror}; name another folder") from None


def _room(place: Path) -> tuple[int, int]:
    """Bytes that are free where the folder is or will be, and bytes that the journal in it takes already."""
    there = next(parent for parent in [place, *place.absolute().parents] if parent.exists())
    file = place / _PRODUCTS
    return shutil.disk_usage(there).free, file.stat().st_size if file.exists() else 0
