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
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyhessian_spectra._version import __version__
from pyhessian_spectra.analysis.records import Record, digest, read_record, write_record
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole

_FORMAT = 1
_PRODUCTS, _ANALYSIS = "products", "analysis"  # files in a journal's folder

# How the notes begin that say what became of an earlier run's products.
RESUMED, AFRESH = "Resumed", "Started afresh"

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

    Parameters
    ----------
    seed : int
        Of the analysis.

    Attributes
    ----------
    seed : int
        That of the earlier run, where there was one.
    replayed, seconds : int, float
        Products that were given back, and what they took when they were taken.
    notes : list of str
        Sentences a reader of the analysis must see.
    finished : SpectralAnalysis or None
        What an earlier run had finished.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.replayed, self.seconds = seed, 0, 0.0
        self.notes: list[str] = []
        self.finished: SpectralAnalysis | None = None
        self._file: Path | None = None
        self._bound: Mapping[str, str] = {}
        self._gradient = torch.empty(0)
        self._end = 0  # of what holds in the file; 0 before it is begun
        self._replaying = False

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
        self._file, self._bound, self._gradient = folder / _PRODUCTS, bound, gradient.cpu()
        with _told(folder):
            if not self._file.exists():
                if folder.exists() and any(folder.iterdir()):
                    raise InputError(f"{folder} is not empty and holds no journal; name a folder of its own")
                folder.parent.mkdir(parents=True, exist_ok=True)
                return
            with open(self._file, "rb") as handle:
                found, end = read_record(handle), handle.tell()
        if found is None or found.head.get("journal") != _FORMAT:
            raise InputError(f"{folder} holds no journal that this release can read; name a folder of its own")
        others = [name for key, name in _OTHERS.items() if bound.get(key) != found.head["bound"].get(key)]
        if not others:
            change = torch.linalg.vector_norm(self._gradient - found.arrays[0])
            if change > tolerance * torch.linalg.vector_norm(self._gradient):
                others = [_OTHERS["gradient"]]
        if others:
            self.notes.append(f"{AFRESH}: what an interrupted run had kept is of {' and '.join(others)}.")
            return
        if found.head["finished"]:
            try:
                analysis = SpectralAnalysis.load(self._file.with_name(_ANALYSIS))
                remark = f"{RESUMED}: the analysis was finished by an earlier run."
                notes = [note for note in analysis.notes if not note.startswith(RESUMED)]
                self.finished = replace(analysis, notes=(*notes, remark))
            except InputError:
                self.notes.append(f"{AFRESH}: what an earlier run had finished can no longer be read.")
                return
        self.seed, self._end, self._replaying = found.head["seed"], end, True

    def answer(self, kind: str, v: Tensor, ask: Callable[[], Answer]) -> Answer:
        """What was answered when this was asked before, or else what ``ask`` answers now, which is kept.

        Parameters
        ----------
        kind : str
            What is asked about ``v``, such as ``"product"``.
        v : Tensor, shape (n,) or (n, k)
        ask : callable
        """
        if self._file is None:
            return ask()
        asked = digest([kind, v])
        kept = self._next(self._file, asked) if self._replaying else None
        if kept is not None:
            self.replayed += 1 if v.dim() == 1 else v.shape[1]
            self.seconds += kept.head["facts"]["seconds"]
            return Answer([array.to(v.device) for array in kept.arrays], kept.head["facts"])
        arrays, facts = ask()
        arrays = [array.contiguous() for array in arrays]  # in memory as they will be when they are read
        self._append(self._file, {"asked": asked, "facts": facts}, arrays)
        return Answer(arrays, facts)

    def remarks(self, products: int) -> list[str]:
        """The notes, and how many of the products of the analysis come from an earlier run."""
        resumed = f"{RESUMED}: {self.replayed} of its {products} products are of an earlier run, which was interrupted."
        return [*self.notes, resumed] if self.replayed else self.notes

    def finish(self, analysis: SpectralAnalysis) -> SpectralAnalysis:
        """Keep the analysis in place of its products, so that asking again costs nothing, and return it."""
        if self._file is not None and self._end:
            with contextlib.suppress(OSError, ValueError, TypeError):  # what cannot be saved keeps its products
                analysis.save(self._file.with_name(_ANALYSIS))
                self._begin(self._file, finished=True)
        return analysis

    def _next(self, file: Path, asked: str) -> Record | None:
        """The next record, if it answers this; what follows one that does not is worth nothing."""
        with open(file, "rb") as handle:
            handle.seek(self._end)
            record = read_record(handle)
            if record is not None and record.head["asked"] == asked:
                self._end = handle.tell()
                return record
        self._replaying = False
        if record is not None:
            self.notes.append(
                f"{AFRESH} after {self.replayed} products: those that an interrupted run had kept are with other "
                "vectors from there on, as another number of threads or another library gives them."
            )
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
            self.notes.append(f"An interruption would have lost work: the journal could not grow, {error.strerror}.")
            with contextlib.suppress(OSError):
                os.truncate(file, self._end)
            self._file = None
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
    journal = Journal(seed)
    if folder is None:
        return journal
    place = Path(folder)
    if risk.distributed:
        journal.notes.append("An interruption would have lost work: processes cannot resume together yet.")
        return journal
    free, held = _free(place), _held(place)
    if size - held > free / 2:
        journal.notes.append(
            f"An interruption would have lost work: to keep it may take {size / 2**30:.1f} GiB of disk, more than half "
            f"of the {free / 2**30:.1f} GiB that are free."
        )
        return journal
    point = [*risk.model.named_parameters(), *risk.model.named_buffers()]
    bound = {
        "release": f"{__version__}, torch {torch.__version__}",
        "settings": digest([*settings, risk.layout.names, risk.mode, str(risk.dtype), str(risk.device)]),
        "seed": "drawn" if drawn else str(seed),
        "checkpoint": digest([point, str(risk.model)]),
        "data": digest([weight, batch.inputs, batch.targets] for weight, batch in risk.batches()),
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
