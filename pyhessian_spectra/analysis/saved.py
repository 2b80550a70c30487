"""Analyses on disk: numbers as JSON, quadratures and eigenvectors as NPZ."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from pyhessian_spectra.analysis import stored
from pyhessian_spectra.analysis.carriers import Carriers
from pyhessian_spectra.analysis.classes import ClassStructure
from pyhessian_spectra.analysis.coupling import LayerCoupling
from pyhessian_spectra.analysis.data_curve import DataCurve
from pyhessian_spectra.analysis.eigenspaces import Localisation
from pyhessian_spectra.analysis.gradient import GradientShares
from pyhessian_spectra.analysis.result import BlockAnalysis, GaussNewton, SpectralAnalysis
from pyhessian_spectra.analysis.structure import Structure
from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.notes import Note
from pyhessian_spectra.spectra import Eigenpairs, Spectrum, TraceEstimate
from pyhessian_spectra.spectra.bounds import FAILURE

SCHEMA_VERSION = 2

_T = TypeVar("_T")

# Fields of the Gauss-Newton part that are plain values.
_PART = ("rows", "apart", "own", "residual", "curve", "carriers", "classes")

# Fields of a trace that are among the arrays.
_TRACE_ARRAYS = ("samples", "data_influences")

# Keys in a row of ``largest`` or ``smallest``, and the arrays of Eigenpairs they are from; an array may be None.
_COLUMNS = {"eigenvalue": "eigenvalues", "residual": "residuals"}
_COLUMNS |= {name: name for name in ("converged", "lower", "upper", "data_stderr")}


def entry_of(analysis: SpectralAnalysis) -> dict[str, Any]:
    """See :meth:`SpectralAnalysis.to_json`."""
    return {
        "problem": dict(analysis.problem),
        "full": _block_to_json(analysis.full),
        "layers": {name: _block_to_json(block) for name, block in analysis.layers.items()},
        "timing": dict(analysis.timing),
        "notes": [dataclasses.asdict(note) for note in analysis.notes],
        "gauss_newton": None if analysis.gauss_newton is None else _part_to_json(analysis.gauss_newton),
        "structure": None if analysis.structure is None else _structure_to_json(analysis.structure),
        "parts": [{name: {"n": s.n, "dtype": s.dtype} for name, s in part.items()} for part in analysis.parts],
    }


def save_analyses(
    analyses: Sequence[SpectralAnalysis], *, json_path: str | os.PathLike[str], npz_path: str | os.PathLike[str]
) -> None:
    """Write analyses as one JSON and one NPZ file, each whole or not at all.

    One analysis is the JSON document itself; several are its list ``checkpoints``.
    """
    entries = [entry_of(analysis) for analysis in analyses]
    document = {"schema_version": SCHEMA_VERSION, **(entries[0] if len(entries) == 1 else {"checkpoints": entries})}
    arrays: dict[str, np.ndarray] = {}
    for index, analysis in enumerate(analyses):
        blocks = {"full": analysis.full, **{f"layers/{name}": block for name, block in analysis.layers.items()}}
        if analysis.gauss_newton is not None:
            blocks["gauss_newton"] = analysis.gauss_newton.block
            if analysis.gauss_newton.thumbnails is not None:
                arrays[f"{index}/gauss_newton/thumbnails"] = analysis.gauss_newton.thumbnails
        for name, block in blocks.items():
            arrays |= {f"{index}/{name}/{key}": array for key, array in _arrays(block).items() if array is not None}
        for number, part in enumerate(analysis.parts):
            for name, spectrum in part.items():
                pair = np.stack([spectrum.nodes[0], spectrum.weights[0]])
                arrays[f"{index}/parts/{number}/{name}"] = pair
    try:
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    except ValueError:
        raise NonFiniteError(
            "a number of the analysis is NaN or infinite, since products of these weights overflow; look at the "
            "checkpoint, or use float64"
        ) from None
    try:
        write_whole(Path(json_path), lambda handle: handle.write(text.encode()))
        write_whole(Path(npz_path), lambda handle: np.savez_compressed(handle, **arrays))  # type: ignore[arg-type]
    except OSError as error:
        told = f"the analysis cannot be written to {json_path} and {npz_path}: {error.strerror or error}"
        raise InputError(f"{told}; make room, or name another place") from None


class StoredAnalyses(Sequence[SpectralAnalysis]):
    """Analyses that are read when they are asked for, and not kept: what is stored says how many, and loads one."""

    @abc.abstractmethod
    def load(self, place: int) -> SpectralAnalysis:
        """The analysis at a place from 0 on."""

    @overload
    def __getitem__(self, index: int) -> SpectralAnalysis: ...

    @overload
    def __getitem__(self, index: slice) -> list[SpectralAnalysis]: ...

    def __getitem__(self, index: int | slice) -> SpectralAnalysis | list[SpectralAnalysis]:
        if isinstance(index, slice):
            return [self.load(i) for i in range(*index.indices(len(self)))]
        return self.load(range(len(self))[index])


class SavedAnalyses(StoredAnalyses):
    """The analyses that :func:`save_analyses` wrote, each read from disk when it is asked for, and not kept.

    Raises InputError if there are none in these files, or when an array turns out to be damaged.
    """

    def __init__(self, json_path: str | os.PathLike[str], npz_path: str | os.PathLike[str]) -> None:
        self._json, self._npz = Path(json_path), Path(npz_path)
        with self._told():
            document = json.loads(self._json.read_text())
            with np.load(self._npz, allow_pickle=False) as arrays:
                held = set(arrays.files)
        if not isinstance(document, dict):
            raise InputError(f"{json_path} holds no analysis: it is a JSON {type(document).__name__}")
        version = document.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{json_path} has schema_version {version!r}; this release reads {SCHEMA_VERSION}")
        self._entries = document.get("checkpoints", [document])
        if not all(f"{index}/full/nodes" in held for index in range(len(self._entries))):
            raise InputError(f"{npz_path} does not belong to {json_path}: it lacks the spectra of some checkpoint")

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, place: int) -> SpectralAnalysis:
        """Read one from the files."""
        with self._told(), np.load(self._npz, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files if key.startswith(f"{place}/")}
        return _analysis_from(self._entries[place], arrays, f"{place}")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"no analysis can be read from {self._json} and {self._npz}: {error}") from None


def load_analyses(*, json_path: str | os.PathLike[str], npz_path: str | os.PathLike[str]) -> list[SpectralAnalysis]:
    """Read the analyses that :func:`save_analyses` wrote."""
    return list(SavedAnalyses(json_path, npz_path))


def _analysis_from(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> SpectralAnalysis:
    layers = entry["layers"].items()
    return SpectralAnalysis(
        problem=entry["problem"],
        full=_block_from(entry["full"], arrays, f"{prefix}/full"),
        layers={name: _block_from(block, arrays, f"{prefix}/layers/{name}") for name, block in layers},
        timing=entry["timing"],
        notes=tuple(Note(**note) for note in entry["notes"]),
        gauss_newton=_part_from(entry.get("gauss_newton"), arrays, f"{prefix}/gauss_newton"),
        structure=_structure_from(entry.get("structure")),
        parts=tuple(
            {name: _spectrum_from(arrays[f"{prefix}/parts/{i}/{name}"], **known) for name, known in part.items()}
            for i, part in enumerate(entry.get("parts", ()))
        ),
    )


def _arrays(block: BlockAnalysis) -> dict[str, np.ndarray | None]:
    """What is stored of a block as arrays."""
    kept: dict[str, Any] = {key: getattr(block.spectrum, key) for key in ("nodes", "weights", "whole")}
    for edge in ("largest", "smallest"):
        pairs = getattr(block, edge)
        kept |= {f"{edge}_eigenvectors": pairs.eigenvectors, f"{edge}_influences": pairs.data_influences}
    return kept | {"trace_samples": block.trace.samples, "trace_influences": block.trace.data_influences}


def _spectrum_from(pair: np.ndarray, *, n: int, dtype: str) -> Spectrum:
    """The spectrum of a part of the data."""
    return Spectrum(pair[:1], pair[1:], n, num_atoms=0, dtype=dtype)


def _structure_to_json(structure: Structure) -> dict[str, Any]:
    coupling = structure.coupling
    told = None if coupling is None else {**stored.plain(coupling), "error": _trace_to_json(coupling.error)}
    return {**stored.plain(structure), "coupling": told}


def _structure_from(entry: Mapping[str, Any] | None) -> Structure | None:
    if entry is None:
        return None
    coupling, where, gradient = (entry[key] for key in ("coupling", "localisation", "gradient"))
    if coupling is not None:
        coupling = dataclasses.replace(stored.from_json(LayerCoupling, coupling), error=_trace_from(coupling["error"]))
    return Structure(
        coupling,
        None if where is None else stored.from_json(Localisation, where),
        None if gradient is None else stored.from_json(GradientShares, gradient),
    )


def _part_to_json(part: GaussNewton) -> dict[str, Any]:
    """The part without its thumbnails, which are among the arrays."""
    kept = {"block": _block_to_json(part.block), "thumbnails": None}
    return {**{name: stored.plain(getattr(part, name)) for name in _PART}, **kept}


def _part_from(entry: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], prefix: str) -> GaussNewton | None:
    if entry is None:
        return None
    residual, block = entry["residual"], _block_from(entry["block"], arrays, prefix)

    def inner(kind: type[_T], key: str) -> _T | None:
        return stored.from_json(kind, entry[key]) if entry.get(key) else None

    return GaussNewton(
        block,
        entry["rows"],
        entry["apart"],
        tuple(entry["own"]),
        None if residual is None else (residual[0], residual[1]),
        inner(DataCurve, "curve"),
        inner(Carriers, "carriers"),
        inner(ClassStructure, "classes"),
        arrays.get(f"{prefix}/thumbnails"),
    )


def _pairs_to_json(pairs: Eigenpairs) -> list[dict[str, Any]]:
    columns = {key: getattr(pairs, name) for key, name in _COLUMNS.items()}
    known = {key: column.tolist() for key, column in columns.items() if column is not None}
    return [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]


def _pairs_from(rows: Sequence[Mapping[str, Any]], **others: Any) -> Eigenpairs:
    known = {name: [row[key] for row in rows] for key, name in _COLUMNS.items() if all(key in row for row in rows)}
    others |= {name: np.array(column, dtype=bool if name == "converged" else float) for name, column in known.items()}
    return Eigenpairs(**others)


def _trace_to_json(trace: TraceEstimate) -> dict[str, Any]:
    """The fields, and the 95 % confidence interval for readers without Student's t at hand."""
    fields = {f.name: getattr(trace, f.name) for f in dataclasses.fields(trace) if f.name not in _TRACE_ARRAYS}
    return {**fields, "interval95": list(trace.interval(0.95))}


def _trace_from(entry: Mapping[str, Any], **arrays: Any) -> TraceEstimate:
    return TraceEstimate(**{key: value for key, value in entry.items() if key != "interval95"}, **arrays)


def _block_to_json(block: BlockAnalysis) -> dict[str, Any]:
    """One block; ``largest`` and ``smallest`` list the most extreme eigenvalue first."""
    spectrum, level = block.spectrum, 1 - FAILURE
    return {
        "n": block.n,
        "exact": spectrum.exact,
        "trace": _trace_to_json(block.trace),
        "frobenius": _trace_to_json(block.frobenius),
        "largest": _pairs_to_json(block.largest)[::-1],
        "smallest": _pairs_to_json(block.smallest),
        "rounding": block.largest.rounding,
        "others": None if block.largest.others is None else list(block.largest.others),
        "spectrum": {
            "num_probes": spectrum.num_probes,
            "num_atoms": spectrum.num_atoms,
            "dtype": spectrum.dtype,
            "rounding": spectrum.rounding,
            "residual": spectrum.residual,
            "band": None if spectrum.exact else {"level": level, "halfwidth": spectrum.cdf_error(level=level)},
            "facts": dict(spectrum.facts),
        },
        "num_products": block.num_products,
        "group_traces": {name: _trace_to_json(trace) for name, trace in block.group_traces.items()},
    }


def _block_from(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> BlockAnalysis:
    kept = {
        edge: {
            "eigenvectors": arrays.get(f"{prefix}/{edge}_eigenvectors"),
            "data_influences": arrays.get(f"{prefix}/{edge}_influences"),
        }
        for edge in ("largest", "smallest")
    }
    ends = {"samples": "samples", "data_influences": "influences"}
    others = tuple(entry["others"]) if entry.get("others") else None
    names = ("num_atoms", "dtype", "rounding", "residual", "facts")
    known = {key: entry["spectrum"][key] for key in names if key in entry["spectrum"]}
    known |= {"exact": entry["exact"], "whole": arrays.get(f"{prefix}/whole")}
    return BlockAnalysis(
        n=entry["n"],
        spectrum=Spectrum(arrays[f"{prefix}/nodes"], arrays[f"{prefix}/weights"], entry["n"], **known),
        largest=_pairs_from(entry["largest"][::-1], **kept["largest"], others=others, rounding=entry["rounding"]),
        smallest=_pairs_from(entry["smallest"], **kept["smallest"], others=others, rounding=entry["rounding"]),
        trace=_trace_from(entry["trace"], **{name: arrays.get(f"{prefix}/trace_{end}") for name, end in ends.items()}),
        frobenius=_trace_from(entry["frobenius"]),
        num_products=entry["num_products"],
        group_traces={name: _trace_from(trace) for name, trace in entry["group_traces"].items()},
    )
