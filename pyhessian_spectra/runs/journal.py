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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyhessian_spectra._version import __version__
from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.curvature.distributed import Processes
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.notes import Note
from pyhessian_spectra.runs.records import Record, digest, read_record, write_record

_FORMAT = 2
_BEGINNING = b'{"journal"'
_PRODUCTS, _RESULT = "products", "analysis"  # files in a journal's folder

# What a journal is bound to, as a sentence says that it was another.
_OTHERS = {
    "release": "another release of this package or of torch",
    "settings": "other settings",
    "seed": "another seed",
    "checkpoint": "another checkpoint",
    "data": "other data",
    "loss": "another loss",
    "gradient": "another gradient (by the code of the model or the loss, or the number of threads)",
}


class Answer(NamedTuple):
    """Arrays that answer a request, and JSON scalars about how they came about, ``seconds`` among them."""

    arrays: list[Tensor]
    facts: Mapping[str, Any]


class Journal:
    """Answers to the requests of one analysis, in the order they were asked; nothing is kept before ``bind``.

    The first process of several reads and writes; the others are given what it finds.

    Parameters
    ----------
    seed : int
        Of the analysis.
    processes : Processes

    Attributes
    ----------
    seed : int
        That of the earlier run, where there was one.
    replayed, seconds : int, float
        Products that were given back, and what they took when they were taken.
    notes : list of Note
        What a reader of the analysis must see.
    """

    def __init__(self, seed: int, processes: Processes) -> None:
        self.seed, self.replayed, self.seconds = seed, 0, 0.0
        self.notes: list[Note] = []
        self._processes = processes
        self._folder: Path | None = None
        self._bound: Mapping[str, str] = {}
        self._gradient = torch.empty(0)
        self._end = 0  # of what holds in the file; 0 before it is begun
        self._replaying = self._finished = False

    def bind(self, folder: Path, bound: Mapping[str, str], gradient: Tensor, *, tolerance: float) -> None:
        """Keep answers in a folder from now on, and take up what an earlier run left, if it was bound to the same.

        Parameters
        ----------
        folder : Path
            Made with the first answer.
        bound : mapping of str to str
            Digests by the keys of ``_OTHERS``.
        gradient : Tensor, shape (n,)
            At the point: all that the loss and the code of the model do shows in it.
        tolerance : float
            By how much two of them may differ, relative to the norm.
        """
        self._folder, self._bound, self._gradient = folder, bound, gradient.cpu()
        failure = None
        if self._processes.rank == 0:
            try:
                self._take_up(folder, tolerance)
            except InputError as error:
                failure = error
        self._processes.agree(failure)
        found = self._processes.from_first((self.seed, self.notes, self._replaying, self._finished))
        self.seed, self.notes, self._replaying, self._finished = found

    def _take_up(self, folder: Path, tolerance: float) -> None:
        file = folder / _PRODUCTS
        with _told(folder):
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
            raise InputError(f"{folder} holds no journal that this release can read; name a folder of its own")
        if found is None:
            self._afresh("what an interrupted run had kept is damaged")
            return
        others = [name for key, name in _OTHERS.items() if self._bound.get(key) != found.head["bound"].get(key)]
        if not others:
            change = torch.linalg.vector_norm(self._gradient - found.arrays[0])
            if change > tolerance * torch.linalg.vector_norm(self._gradient):
                others = [_OTHERS["gradient"]]
        if others:
            self._afresh(f"what an interrupted run had kept is of {' and '.join(others)}")
            return
        self.seed, self._end, self._replaying = found.head["seed"], end, not found.head["finished"]
        self._finished = found.head["finished"]

    def _afresh(self, reason: str) -> None:
        self.notes.append(Note("afresh", f"Started afresh: {reason}."))

    @property
    def finished(self) -> Path | None:
        """Where an earlier run has put the result of this analysis, if it came to its end."""
        return self._folder / _RESULT if self._folder is not None and self._finished else None

    def forget_finished(self) -> None:
        """Begin anew, because what an earlier run had finished cannot be read."""
        self._finished, self._end = False, 0
        self._afresh("what an earlier run had finished can no longer be read")

    def answer(self, ask: str, v: Tensor, call: Callable[[], Answer]) -> Answer:
        """What was answered when this was asked before, or else what ``call`` answers now, which is kept.

        Parameters
        ----------
        ask : str
            What is asked about ``v``, such as ``"product"``.
        v : Tensor, shape (n,) or (n, k)
        call : callable
        """
        if self._folder is None:
            return call()
        first = self._processes.rank == 0
        asked = digest([ask, v]) if first else ""
        if self._replaying:
            kept = self._next(self._folder / _PRODUCTS, asked) if first else None
            kept = self._processes.from_first(kept)
            self._replaying = kept is not None
            if kept is not None:
                self.replayed += 1 if v.dim() == 1 else v.shape[1]
                self.seconds += kept.head["facts"]["seconds"]
                return Answer([array.to(v.device) for array in kept.arrays], kept.head["facts"])
        arrays, facts = call()
        arrays = [array.contiguous() for array in arrays]  # in memory as they will be when they are read
        if first:
            self._append(self._folder / _PRODUCTS, {"asked": asked, "facts": facts}, arrays)
        return Answer(arrays, facts)

    def remarks(self, products: int) -> list[Note]:
        """The notes, and how many of the products of the analysis come from an earlier run."""
        resumed = f"Resumed: {self.replayed} of its {products} products are of an earlier run, which was interrupted."
        return [*self.notes, Note("resumed", resumed)] if self.replayed else self.notes

    def finish(self, save: Callable[[Path], None]) -> None:
        """Keep a result in place of the products behind it, so that asking again costs nothing."""
        if self._folder is not None and self._end:
            with contextlib.suppress(OSError, ValueError, TypeError):  # what cannot be saved keeps its products
                save(self._folder / _RESULT)
                self._begin(self._folder / _PRODUCTS, finished=True)

    def _next(self, file: Path, asked: str) -> Record | None:
        """The next record, if it answers this; what follows one that does not is worth nothing."""
        with open(file, "rb") as handle:
            handle.seek(self._end)
            record = read_record(handle)
            if record is not None and record.head["asked"] == asked:
                self._end = handle.tell()
                return record
        if record is not None:
            text = (
                f"Started afresh after {self.replayed} products: those that an interrupted run had kept are with other "
                "vectors from there on, as another number of threads or another library gives them."
            )
            self.notes.append(Note("afresh", text))
        return None

    def _append(self, file: Path, head: Mapping[str, Any], arrays: Sequence[Tensor]) -> None:
        if not self._end:
            with _told(file.parent):
                self._end = self._begin(file, finished=False)
        try:
            with open(file, "r+b") as handle:
                handle.seek(self._end)
                handle.truncate()  # what was torn, or was of no use
                write_record(handle, head, arrays)
                end = handle.tell()
        except OSError as error:
            self.notes.append(_lossy(f"the journal could not grow, {error.strerror}"))
            with contextlib.suppress(OSError):
                os.truncate(file, self._end)
            self._folder = None
            return
        self._end = end

    def _begin(self, file: Path, *, finished: bool) -> int:
        """Begin the file anew with what it is bound to; its length in bytes."""
        head = {"journal": _FORMAT, "bound": dict(self._bound), "seed": self.seed, "finished": finished}
        write_whole(file, lambda handle: write_record(handle, head, [self._gradient]))
        return file.stat().st_size


def open_journal(
    folder: str | os.PathLike[str] | None,
    risk: EmpiricalRisk,
    settings: Sequence[Any],
    *,
    seed: int,
    drawn: bool,
    size: int,
) -> Journal:
    """The journal of an analysis, with what an earlier run of the same left in it.

    Parameters
    ----------
    folder : path-like or None
        None keeps nothing.
    risk : EmpiricalRisk
    settings : sequence
        What else the numbers depend on: objects whose ``repr`` is the same in every process.
    seed : int
    drawn : bool
        The seed was drawn at random, so that any other serves as well.
    size : int
        Bytes it may come to.

    Raises
    ------
    InputError
        The folder is not a journal's, or cannot be written.
    """
    processes = risk.sample.processes
    journal = Journal(seed, processes)
    if folder is None:
        return journal
    place = Path(folder)
    free, held = processes.from_first((_free(place), _held(place)) if processes.rank == 0 else (0, 0))
    if size - held > free / 2:
        gib = 2**30
        reason = f"may take {size / gib:.1f} GiB of disk, more than half of the {free / gib:.1f} GiB that are free"
        journal.notes.append(_lossy(f"to keep it {reason}"))
        return journal
    point = [*risk.model.named_parameters(), *risk.model.named_buffers()]
    bound = {
        "release": f"{__version__}, torch {torch.__version__}",
        "settings": digest([*settings, risk.layout.names, risk.mode, str(risk.dtype), str(risk.device)]),
        "seed": "drawn" if drawn else str(seed),
        "checkpoint": digest([point, str(risk.model)]),
        "data": digest(processes.gather(digest([w, b.inputs, b.targets] for w, b in risk.sample.read()))),
        "loss": digest(_loss_parts(risk.loss_fn)),
    }
    # On the CPU gradients repeat bit for bit, as long as the number of threads is the same. On other devices they need
    # not, but the steps between products do.
    repeatable = risk.device.type == "cpu"
    tolerance = 0.0 if repeatable else torch.finfo(risk.dtype).eps ** 0.5
    journal.bind(place, bound, risk.gradient(), tolerance=tolerance)
    return journal


def _loss_parts(loss: Callable[..., Any]) -> list[Any]:
    """What identifies a loss as far as its code is not looked at: names, settings and the tensors it holds."""
    if isinstance(loss, functools.partial):
        return [*_loss_parts(loss.func), loss.args, loss.keywords]
    if isinstance(loss, nn.Module):
        return [str(loss), loss.state_dict()]
    return [getattr(loss, "__module__", ""), getattr(loss, "__qualname__", type(loss).__qualname__)]


def _lossy(reason: str) -> Note:
    return Note("journal", f"An interruption would have lost work: {reason}.")


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say what cannot be written in a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"the journal {folder} cannot be written: {error.strerror}; name another folder") from None


def _free(place: Path) -> int:
    """Bytes that are free where the folder is, or will be."""
    there = next(parent for parent in [place, *place.absolute().parents] if parent.exists())
    return shutil.disk_usage(there).free


def _held(place: Path) -> int:
    file = place / _PRODUCTS
    return file.stat().st_size if file.exists() else 0
