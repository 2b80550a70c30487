"""SpectralAnalysis: everything a report on one checkpoint is drawn from, and its form on disk."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.notes import Note
from pyhessian_spectra.spectra import Eigenpairs, Spectrum, TraceEstimate
from pyhessian_spectra.spectra.bounds import FAILURE

SCHEMA_VERSION = 2

# Keys in a row of ``largest`` or ``smallest``, and the arrays of Eigenpairs they are from; an array may be None.
_COLUMNS = {"eigenvalue": "eigenvalues", "residual": "residuals"}
_COLUMNS |= {name: name for name in ("converged", "lower", "upper", "data_stderr")}


@dataclass(frozen=True)
class BlockAnalysis:
    """What is known of the spectrum of one operator: of the whole matrix, or of a diagonal block of it.

    Parameters
    ----------
    n : int
        Dimension.
    spectrum : Spectrum
    largest, smallest : Eigenpairs
        The ``k`` algebraically largest and smallest eigenpairs, each ascending.
    trace, frobenius : TraceEstimate
        ``tr A`` and ``||A||_F``.
    num_products : int
        Products with this block that were spent on it.
    group_traces : mapping of str to TraceEstimate
        Traces of its own diagonal blocks, by the labels of a partition, from the same products.
    """

    n: int
    spectrum: Spectrum
    largest: Eigenpairs
    smallest: Eigenpairs
    trace: TraceEstimate
    frobenius: TraceEstimate
    num_products: int
    group_traces: Mapping[str, TraceEstimate] = field(default_factory=dict)

    @property
    def unconverged(self) -> int:
        """How many of the eigenpairs did not meet the tolerance."""
        return int((~self.largest.converged).sum() + (~self.smallest.converged).sum())


@dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton part ``G`` of an analysis, exact from its Gram matrix, and how far ``H`` is from it.

    Parameters
    ----------
    block : BlockAnalysis
        The whole of ``G``; ``group_traces`` are its layers'.
    rows : int
        Rows of the Gram matrix: ``N (C - 1)`` for cross-entropy over ``C`` classes.
    apart : mapping of str to float
        By layer, a bound on the Frobenius norm of ``H_ll - G_ll`` as a product with a random vector shows it.
    own : tuple of str
        Layers whose block of ``H`` is that of ``G`` to rounding, so that the analysis of the layer is that of ``G_ll``.
    residual : (float, float), optional
        Interval that holds all eigenvalues of ``H - G``, except with probability 0.01; None if it was not found.
    """

    block: BlockAnalysis
    rows: int
    apart: Mapping[str, float] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    residual: tuple[float, float] | None = None

    def counts_above(self, threshold: float) -> tuple[int, int]:
        """The least and the greatest number of eigenvalues of ``H`` above a threshold, by Weyl's inequalities.

        Raises InputError if the eigenvalues of ``H - G`` are not bounded.
        """
        low, high = self.shifts
        values = self.block.spectrum.nodes[0]
        return int((values + low > threshold).sum()), int((values + high > threshold).sum())

    @property
    def shifts(self) -> tuple[float, float]:
        """How far below and above those of ``G`` the eigenvalues of ``H`` of the same rank may lie."""
        if self.residual is None:
            raise InputError("the eigenvalues of H - G are not bounded, so those of H are not either")
        off = self.block.spectrum.off
        return self.residual[0] - off, self.residual[1] + off


@dataclass(frozen=True)
class SpectralAnalysis:
    """The analysis of one checkpoint.

    Parameters
    ----------
    problem : mapping
        JSON scalars that say what was analysed: ``checkpoint``, ``sha256``, ``model``, ``n``, ``N``, ``loss``,
        ``mode``, ``dtype``, ``device``, ``seed`` and whatever else is known (``step``, ``accuracy``, ...).
    full : BlockAnalysis
        The whole matrix.
    layers : mapping of str to BlockAnalysis
        Diagonal blocks by layer name, in the order of the model.
    timing : mapping
        ``seconds``, ``num_products``, ``seconds_per_product``, ``seconds_per_gradient``.
    notes : sequence of Note
        What a reader of the report must see: what was not converged, not kept, or not finished.
    gauss_newton : GaussNewton, optional
        What the Gram matrix says, if it was taken.
    """

    problem: Mapping[str, Any]
    full: BlockAnalysis
    layers: Mapping[str, BlockAnalysis] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    gauss_newton: GaussNewton | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry of ``results.json`` (schema version 2) for this checkpoint."""
        return {
            "problem": dict(self.problem),
            "full": _block_to_json(self.full),
            "layers": {name: _block_to_json(block) for name, block in self.layers.items()},
            "timing": dict(self.timing),
            "notes": [dataclasses.asdict(note) for note in self.notes],
            "gauss_newton": None if self.gauss_newton is None else _part_to_json(self.gauss_newton),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` with suffixes ``.json`` (numbers) and ``.npz`` (quadrature and eigenvectors)."""
        save_analyses([self], json_path=Path(path).with_suffix(".json"), npz_path=Path(path).with_suffix(".npz"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SpectralAnalysis:
        """Read what :meth:`save` wrote; nothing is unpickled."""
        return load_analyses(json_path=Path(path).with_suffix(".json"), npz_path=Path(path).with_suffix(".npz"))[0]


def save_analyses(
    analyses: Sequence[SpectralAnalysis], *, json_path: str | os.PathLike[str], npz_path: str | os.PathLike[str]
) -> None:
    """Write analyses as one JSON and one NPZ file, each whole or not at all.

    One analysis is the JSON document itself; several are its list ``checkpoints``.
    """
    entries = [analysis.to_json() for analysis in analyses]
    document = {"schema_version": SCHEMA_VERSION, **(entries[0] if len(entries) == 1 else {"checkpoints": entries})}
    arrays: dict[str, np.ndarray] = {}
    for index, analysis in enumerate(analyses):
        blocks = {"full": analysis.full, **{f"layers/{name}": block for name, block in analysis.layers.items()}}
        if analysis.gauss_newton is not None:
            blocks["gauss_newton"] = analysis.gauss_newton.block
        for name, block in blocks.items():
            kept = {key: getattr(block.spectrum, key) for key in ("nodes", "weights", "whole")}
            arrays |= {f"{index}/{name}/{key}": array for key, array in kept.items() if array is not None}
            for edge in ("largest", "smallest"):
                if (vectors := getattr(block, edge).eigenvectors) is not None:
                    arrays[f"{index}/{name}/{edge}_eigenvectors"] = vectors
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    try:
        write_whole(Path(json_path), lambda handle: handle.write(text.encode()))
        write_whole(Path(npz_path), lambda handle: np.savez_compressed(handle, **arrays))  # type: ignore[arg-type]
    except OSError as error:
        told = f"the analysis cannot be written to {json_path} and {npz_path}: {error.strerror or error}"
        raise InputError(f"{told}; make room, or name another place") from None


def load_analyses(*, json_path: str | os.PathLike[str], npz_path: str | os.PathLike[str]) -> list[SpectralAnalysis]:
    """Read the analyses that :func:`save_analyses` wrote."""
    try:
        document = json.loads(Path(json_path).read_text())
        arrays = dict(np.load(npz_path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise InputError(f"no analysis can be read from {json_path} and {npz_path}: {error}") from None
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(f"{json_path} has schema_version {version!r}; this release reads {SCHEMA_VERSION}")
    entries = document.get("checkpoints", [document])
    if not all(f"{index}/full/nodes" in arrays for index in range(len(entries))):
        raise InputError(f"{npz_path} does not belong to {json_path}: it lacks the spectra of some checkpoint")
    return [
        SpectralAnalysis(
            problem=entry["problem"],
            full=_block_from(entry["full"], arrays, f"{index}/full"),
            layers={k: _block_from(block, arrays, f"{index}/layers/{k}") for k, block in entry["layers"].items()},
            timing=entry["timing"],
            notes=tuple(Note(**note) for note in entry["notes"]),
            gauss_newton=_part_from(entry.get("gauss_newton"), arrays, f"{index}/gauss_newton"),
        )
        for index, entry in enumerate(entries)
    ]


def _part_to_json(part: GaussNewton) -> dict[str, Any]:
    known = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {**known, "apart": dict(part.apart), "own": list(part.own), "block": _block_to_json(part.block)}


def _part_from(entry: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], prefix: str) -> GaussNewton | None:
    if entry is None:
        return None
    block, residual = _block_from(entry["block"], arrays, prefix), entry["residual"]
    return GaussNewton(
        block, entry["rows"], entry["apart"], tuple(entry["own"]), None if residual is None else tuple(residual)
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
    return {**dataclasses.asdict(trace), "interval95": list(trace.interval(0.95))}


def _trace_from(entry: Mapping[str, Any]) -> TraceEstimate:
    return TraceEstimate(**{key: value for key, value in entry.items() if key != "interval95"})


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
    largest, smallest = (arrays.get(f"{prefix}/{edge}_eigenvectors") for edge in ("largest", "smallest"))
    others = tuple(entry["others"]) if entry.get("others") else None
    names = ("num_atoms", "dtype", "rounding", "residual", "facts")
    known = {key: entry["spectrum"][key] for key in names if key in entry["spectrum"]}
    known |= {"exact": entry["exact"], "whole": arrays.get(f"{prefix}/whole")}
    return BlockAnalysis(
        n=entry["n"],
        spectrum=Spectrum(arrays[f"{prefix}/nodes"], arrays[f"{prefix}/weights"], entry["n"], **known),
        largest=_pairs_from(entry["largest"][::-1], eigenvectors=largest, others=others, rounding=entry["rounding"]),
        smallest=_pairs_from(entry["smallest"], eigenvectors=smallest, others=others, rounding=entry["rounding"]),
        trace=_trace_from(entry["trace"]),
        frobenius=_trace_from(entry["frobenius"]),
        num_products=entry["num_products"],
        group_traces={name: _trace_from(trace) for name, trace in entry["group_traces"].items()},
    )
