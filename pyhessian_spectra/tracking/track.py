"""Track: what was measured during one training run, in memory and as lines of JSON on disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhessian_spectra.analysis.similarity import WHOLE
from pyhessian_spectra.analysis.table import DATA, Row, to_csv, to_frame
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown, one_line
from pyhessian_spectra.spectra.results import Floats

if TYPE_CHECKING:
    import pandas

FORMAT = "pyhessian-spectra track 1"


@dataclass(frozen=True)
class Measured:
    """One number of one step.

    Parameters
    ----------
    quantity : str
        Such as ``"lambda_1"``.
    value : float
        NaN where there is none.
    error : float or None
        How far the value may be off as a number of the probe data; None if unknown.
    kind : str
        What kind of error that is.
    block : str
        The layer, or batch, that it belongs to; ``""`` for the whole.
    data_error : float or None
        Standard error due to the probe data being a sample; None if unknown.
    converged : bool
        Whether the tolerance was met.
    """

    quantity: str
    value: float
    error: float | None
    kind: str
    block: str = ""
    data_error: float | None = None
    converged: bool = True


@dataclass(frozen=True, repr=False)
class Record(Shown):
    """What was measured after one step.

    Parameters
    ----------
    step : int
        Optimiser steps so far.
    values : tuple of Measured
    threshold : float or None
        The optimiser's edge of stability, of the matrix that ``"sharpness"`` is the largest eigenvalue of; None where
        it is not known.
    formula : str
        How the threshold follows from the settings.
    lr : float or None
        The learning rate, where all groups have one.
    loss : float or None
        The training loss, where it was told.
    products : int
        Products with curvature matrices that this record took.
    seconds, elapsed : float
        Seconds that it took, and seconds since tracking began, its own included.
    ended : str
        Why tracking ended here; empty where it did not.
    """

    step: int
    values: tuple[Measured, ...]
    threshold: float | None = None
    formula: str = ""
    lr: float | None = None
    loss: float | None = None
    products: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    ended: str = ""

    def get(self, quantity: str, block: str = "") -> Measured | None:
        """The number of this name, or None."""
        return next((each for each in self.values if (each.quantity, each.block) == (quantity, block)), None)


@dataclass(repr=False)
class Track(Shown):
    """The records of a run.

    Parameters
    ----------
    about : mapping of str to Any
        What the run is: model, number of parameters, examples, settings.
    records : list of Record
        In the order of steps.
    """

    about: Mapping[str, Any]
    records: list[Record] = field(default_factory=list)

    def __repr__(self) -> str:
        steps = [record.step for record in self.records]
        span = f"steps {steps[0]:,} to {steps[-1]:,}" if steps else "no step"
        return one_line(self, [f"{len(steps)} records", span, *self.quantities()])

    def quantities(self) -> list[str]:
        """The names of all quantities, in the order in which they were met."""
        return list(dict.fromkeys(each.quantity for record in self.records for each in record.values))

    def series(self, quantity: str, block: str = "") -> tuple[Floats, Floats, Floats, Floats]:
        """Steps, values, errors and standard errors of the data (T,) of one quantity; unknown errors are NaN.

        Values that did not converge are NaN: what they are near is in ``records``. Raises InputError if there is no
        such quantity.
        """
        found = [(record.step, each) for record in self.records if (each := record.get(quantity, block)) is not None]
        if not found:
            told = f" of {block!r}" if block else ""
            raise InputError(f"no {quantity!r}{told} was tracked; there are {', '.join(self.quantities()) or 'none'}")
        steps = np.array([step for step, _ in found], dtype=np.float64)
        columns = [
            (each.value if each.converged else math.nan, _or_nan(each.error), _or_nan(each.data_error))
            for _, each in found
        ]
        values, errors, data = np.array(columns, dtype=np.float64).T
        return steps, values, errors, data

    def rows(self) -> Iterator[Row]:
        """Everything as rows of one tidy table, as :func:`tidy` has them for checkpoints."""
        for record in self.records:
            for each in record.values:
                block, about = each.block or WHOLE, (each.quantity, each.value, each.error, each.kind)
                row = Row("", "", float(record.step), block, *about)
                yield row if each.converged else row._replace(kind=f"{each.kind}, not converged")
                if each.data_error is not None:
                    yield row._replace(error=each.data_error, kind=DATA)
            for name, value in (
                ("edge of stability", record.threshold),
                ("training loss", record.loss),
                ("lr", record.lr),
            ):
                if value is not None:
                    yield Row("", "", float(record.step), WHOLE, name, value, None, "")

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame; raises InputError where pandas is not installed."""
        return to_frame(list(self.rows()))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as comma-separated values."""
        Path(path).write_text(to_csv(list(self.rows())), encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Track:
        """Read a file that a tracker writes, or has written; a last line that was cut off is left out.

        Raises InputError if it is no such file.
        """
        return read_file(Path(path))[0]


class TrackFile:
    """Lines of JSON: what the run is, then one for each record, and one wherever the run was taken up again.

    Nothing is ever overwritten. A run taken up at an earlier step makes its later records a second time; the first ones
    stay in the file, and no longer count.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._size = path, 0

    def begin(self, about: Mapping[str, Any]) -> list[Record]:
        """Begin a file; of one that is there already, the records. Raises InputError if it is of another run."""
        if self.path.is_file() and b"\n" in self.path.read_bytes():
            known, cut = read_file(self.path)
            told = json.loads(json.dumps(dict(about)))
            differ = [key for key in {**known.about, **told} if known.about.get(key) != told.get(key)]
            if differ:
                key = differ[0]
                raise InputError(
                    f"{self.path} is of another run: its {key} is {known.about.get(key)!r}, here it is "
                    f"{told.get(key)!r}; give another path"
                )
            if cut is not None:  # what a killed run was writing
                with self.path.open("r+b") as handle:
                    handle.truncate(cut)
            self._size = self.path.stat().st_size
            return known.records
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")  # what a run was writing that was killed in its first line
        self._append({"format": FORMAT, **about})
        return []

    def resume(self, step: int) -> None:
        """Note that the run goes on from an earlier step."""
        self._append({"resumed": step})

    def add(self, record: Record) -> None:
        """Append a record."""
        self._append(_told(record))

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.path.stat().st_size != self._size:
            raise OSError(errno.EBUSY, "another tracker writes there too")
        raw = (json.dumps(line, allow_nan=False) + "\n").encode()
        with self.path.open("ab") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        self._size += len(raw)


def read_file(path: Path) -> tuple[Track, int | None]:
    """The track in a file, and the length of its whole lines if the last line was cut off."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a file that a SpectrumTracker wrote") from None
    whole = raw.rfind(b"\n") + 1
    try:
        first, *lines = [json.loads(line) for line in raw[:whole].decode().splitlines()]
        if first.pop("format") != FORMAT:
            raise ValueError
        track = Track(first)
        for line in lines:
            if "resumed" in line:
                track.records[:] = [record for record in track.records if record.step <= line["resumed"]]
            else:
                track.records.append(_record(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not the record of a SpectrumTracker") from None
    return track, whole if whole < len(raw) else None


def _told(record: Record) -> dict[str, Any]:
    """A record as JSON: what has its default value is left out, and NaN is null."""
    values = [_without_defaults(each) for each in record.values]
    return {**_without_defaults(record), "values": values}


def _without_defaults(item: Any) -> dict[str, Any]:
    known = {spec.name: (getattr(item, spec.name), spec.default) for spec in dataclasses.fields(item)}
    return {name: _finite(value) for name, (value, default) in known.items() if value != default}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(line: dict[str, Any]) -> Record:
    values = tuple(Measured(**{**each, "value": _or_nan(each["value"])}) for each in line.pop("values"))
    return Record(values=values, **line)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
