"""One tidy table of everything that analyses say: which checkpoint, block and quantity, value, error, kind of error."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyhessian_spectra.analysis.block import BlockAnalysis
from pyhessian_spectra.analysis.bulk import BulkEdge
from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.seeds import checkpoint_step
from pyhessian_spectra.analysis.similarity import WHOLE, SimilarityMatrix
from pyhessian_spectra.analysis.trajectory import INTERVALS, Trajectory
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra import Eigenpairs, TraceEstimate

if TYPE_CHECKING:
    import pandas

    from pyhessian_spectra.analysis.comparison import Comparison, Difference

CERTIFIED, RESIDUAL, PROBES, DATA, EXACT, UNKNOWN = (
    "certified half-width",
    "residual",
    "95 % half-width, probes and rounding",
    "standard error, data",
    "exact up to rounding",
    "unknown",
)
UNPLACED = "certified half-width, of another rank perhaps"
GIVEN = "given"
_SHARE = "half the distance of 99 % bounds"
# Numbers in the description of a problem that say how it was analysed.
_OWN_FACTS = ("n", "N", "num_batches", "tol", "seed", "recorded_seed", "label", "run", "step", "global_step")
NULL = "null: mean distance from itself with other data and probes"


class Row(NamedTuple):
    """One value and one kind of error; a value with errors of several kinds has as many rows."""

    run: str
    checkpoint: str
    step: float | None
    block: str
    quantity: str
    value: float
    error: float | None
    kind: str


def tidy(analyses: Sequence[SpectralAnalysis], labels: Sequence[str] | None = None) -> list[Row]:
    """The rows of all checkpoints, in their order; by default they are called by their files' names.

    A run is called by its folder; a single run is called ``""``.

    Quantities of each block, which is the whole matrix or a layer: ``lambda_1``, ``lambda_2``, ... from the largest
    and ``lambda_n``, ``lambda_n-1``, ... from the smallest eigenvalue, ``trace``, ``frobenius``, the shares of zero and
    negative eigenvalues with half the distance of their bounds, the norm of the weights, the distances of layers to the
    whole with their null, the mass of blocks between layers, the shares of eigenvectors and of the gradient, the
    changes since the checkpoint before, and means over runs that differ by their seed.
    """
    return rows_of(Checkpoints.of(analyses, labels))


def rows_of(found: Checkpoints) -> list[Row]:
    """See :func:`tidy`."""
    rows = []
    run_of = {i: run for run, members in found.runs.items() for i in members}
    each = zip(found.labels, found.analyses, found.bulks, found.similarities, strict=True)
    for i, (name, analysis, bulk, similar) in enumerate(each):
        step = checkpoint_step(analysis)
        rows += [Row(run_of[i], name, step, *told) for told in of_checkpoint(analysis, bulk, similar)]
    for run, moved in found.trajectories.items():
        rows += changes(moved, run)
    for mean in found.seeds:
        kind = f"standard deviation over {mean.count} seeds"
        rows.append(
            Row("", mean.setting, mean.step, WHOLE, f"{mean.quantity}, mean over seeds", mean.mean, mean.spread, kind)
        )
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values with a header; an unknown step or error is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(["" if field is None else field for field in row] for row in rows)
    return text.getvalue()


def to_frame(rows: Sequence[NamedTuple]) -> pandas.DataFrame:
    """The rows as a pandas DataFrame, unknown numbers as NaN; raises InputError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise InputError("pandas is not installed; run pip install pandas, or use to_csv") from None
    kind = type(rows[0]) if rows else Row
    # a column of which nothing is known would be one of objects
    numbers = {name: float for name, annotation in kind.__annotations__.items() if "float" in str(annotation)}
    return pandas.DataFrame(rows, columns=kind._fields).astype(numbers)


Told = tuple[str, str, float, float | None, str]


def of_checkpoint(
    analysis: SpectralAnalysis, bulk: BulkEdge, similar: Mapping[str, SimilarityMatrix]
) -> Iterator[Told]:
    """Block, quantity, value, error and kind."""
    for name, block in {WHOLE: analysis.full, **analysis.layers}.items():
        yield from _of_block(name, block)
        if name != WHOLE and (ratio := block.largest_beside(analysis.full)) is not None:
            yield name, "lambda_1 / lambda_1 of the whole", *ratio, _kind(block.largest, analysis.full.largest)
    for quantity, value, bounds in (
        ("share of zero eigenvalues", bulk.zero_mass, bulk.zero_bounds),
        ("share of negative eigenvalues", bulk.negative_mass, bulk.negative_bounds),
    ):
        yield WHOLE, quantity, value, (bounds[1] - bounds[0]) / 2, _SHARE
    if (norm := analysis.problem.get("weight_norm")) is not None:
        yield WHOLE, "norm of the weights", float(norm), 0.0, EXACT
    if bulk.separable:
        yield WHOLE, "lower end of the bulk", bulk.bulk[0], None, UNKNOWN
        yield WHOLE, "upper end of the bulk", bulk.bulk[1], None, UNKNOWN
    for matrix in similar.values():
        yield from _distances(matrix)
    yield from _of_structure(analysis)


def _of_block(name: str, block: BlockAnalysis) -> Iterator[Told]:
    for pairs, from_top in ((block.largest.take(slice(None, None, -1)), True), (block.smallest, False)):
        placed = pairs.placed(from_top=from_top) | block.spectrum.exact
        for rank, known in enumerate(placed):
            place = str(rank + 1) if from_top else f"n-{rank}" if rank else "n"
            kind = _kind(pairs) if known or pairs.lower is None else UNPLACED
            yield from _eigenvalue(name, f"lambda_{place}", pairs, rank, kind)
    yield from estimate(name, "trace", block.trace)
    yield from estimate(name, "frobenius", block.frobenius)


def _eigenvalue(name: str, quantity: str, pairs: Eigenpairs, rank: int, kind: str) -> Iterator[Told]:
    value = float(pairs.eigenvalues[rank])
    yield name, quantity, value, float(pairs.reach[rank]), kind
    if pairs.data_stderr is not None:
        yield name, quantity, value, float(pairs.data_stderr[rank]), DATA


def _kind(*pairs: Eigenpairs) -> str:
    return CERTIFIED if all(each.lower is not None for each in pairs) else RESIDUAL


def estimate(name: str, quantity: str, found: TraceEstimate, kind: str = "") -> Iterator[Told]:
    yield name, quantity, found.value, found.reach, kind or (PROBES if found.stderr else EXACT)
    if found.data_stderr is not None:
        yield name, quantity, found.value, found.data_stderr, DATA


def _distances(found: SimilarityMatrix) -> Iterator[Told]:
    """The distances of layers to the whole."""
    at, null = found.labels.index(WHOLE), found.null
    for i, label in enumerate(found.labels):
        if i == at:
            continue
        quantity, value = f"{found.metric} to the whole", float(found.values[at, i])
        yield label, quantity, value, float(found.probe_stderr[at, i]), "standard error, probes"
        if found.data_stderr is not None:
            yield label, quantity, value, float(found.data_stderr[at, i]), DATA
        if null is not None:
            yield label, quantity, value, float(null[i]), NULL


def _of_structure(analysis: SpectralAnalysis) -> Iterator[Told]:
    structure = analysis.structure
    if structure is None:
        return
    if structure.coupling is not None:
        coupling = structure.coupling
        yield from estimate(WHOLE, "error of the block diagonal", coupling.error)
        yield from estimate(WHOLE, "cosine with the block diagonal", coupling.cosine)
        off = coupling.rounding * (2 * np.sqrt(coupling.mass.clip(0.0)) + coupling.rounding)
        kind, errors = ("standard error, probes", coupling.stderr) if coupling.num_probes else (EXACT, off)
        for i, one in enumerate(coupling.labels):
            for j, other in enumerate(coupling.labels[: i + 1]):
                mass, error = float(coupling.mass[i, j]), float(errors[i, j])
                yield one, f"squared norm of the block with {other}", mass, error, kind
    if structure.localisation is not None:
        where = structure.localisation
        for label, shares in zip(where.labels, where.shares, strict=True):
            for rank, (share, error) in enumerate(zip(shares, where.errors, strict=True), start=1):
                yield label, f"share of eigenvector {rank}", float(share), float(error), CERTIFIED
    if structure.gradient is not None:
        gradient = structure.gradient
        yield WHOLE, "gradient norm", gradient.norm, None, UNKNOWN
        sums = np.cumsum(gradient.shares)
        for k, (share, error) in enumerate(zip(sums, gradient.errors, strict=True), start=1):
            quantity = f"share of the gradient in the top {k}"
            yield WHOLE, quantity, float(share), float(error), CERTIFIED
            if gradient.data_stderr is not None:
                yield WHOLE, quantity, float(share), float(gradient.data_stderr[k - 1]), DATA


def changes(found: Trajectory, run: str = "") -> Iterator[Row]:
    """What changed since the checkpoint before, and what the optimiser's edge of stability is."""
    for t, (name, step) in enumerate(zip(found.labels, found.steps, strict=True)):
        if t:
            for told in _since(found, t):
                yield Row(run, name, step, *told)
        if (threshold := found.thresholds[t]) is not None:
            yield Row(run, name, step, WHOLE, "edge of stability of the optimiser", threshold, 0.0, EXACT)


def _since(found: Trajectory, t: int) -> Iterator[Told]:
    largest = found.largest[t - 1]
    yield from estimate(WHOLE, "change of lambda_1", largest, CERTIFIED if largest.method == INTERVALS else RESIDUAL)
    yield from estimate(WHOLE, "change of trace", found.trace[t - 1])
    for name, moved in found.layer_traces.items():
        yield from estimate(name, "change of trace", moved[t - 1])
    value, error = found.persistence[t - 1]
    if np.isfinite(value):
        yield (
            WHOLE, f"overlap of the top {found.k} eigenvectors with those before", float(value), float(error), CERTIFIED
        )  # fmt: skip
    for track, share in zip(found.tracks, found.overlaps[:, t - 1], strict=True):
        if np.isfinite(share):
            quantity = f"overlap of eigenvector {track[t] + 1} with number {track[t - 1] + 1} before"
            yield WHOLE, quantity, float(share), None, UNKNOWN


def compared_rows(found: Comparison) -> list[Row]:
    """The rows of a comparison: what was given and found of each checkpoint, then what sets it apart.

    Numbers that came with a checkpoint, such as its test accuracy, are rows of the block ``"given"``.
    """
    rows = []
    run_of = {i: run for run, members in found.runs.items() for i in members}
    for i, (name, step, analysis) in enumerate(zip(found.labels, found.steps, found.analyses, strict=True)):
        given = given_numbers(analysis).items()
        told: list[Told] = [(GIVEN, key, value, None, "as given") for key, value in given]
        told += of_checkpoint(analysis, found.bulks[i], {})
        rows += [Row(run_of[i], name, step, *each) for each in told]
    beside = f"difference from {found.labels[found.reference]}"
    for i, difference in found.compared:
        rows += [Row(run_of[i], found.labels[i], found.steps[i], *each) for each in _apart(difference, beside)]
    return rows


def _apart(difference: Difference, beside: str) -> Iterator[Told]:
    for (block, quantity), moved in difference.changes.items():
        kind = _SHARE if quantity.startswith("share") else CERTIFIED if moved.method == INTERVALS else ""
        kind = kind or (RESIDUAL if quantity.startswith("lambda") else "")
        yield from estimate(block, f"{quantity}, {beside}", moved, kind)
    if difference.overlap is not None:
        overlap, error = difference.overlap
        yield WHOLE, f"overlap of the top {difference.k} eigenvectors, {beside}", overlap, error, CERTIFIED


def given_numbers(analysis: SpectralAnalysis) -> dict[str, float]:
    """The numbers that came with a checkpoint, or with it in a list of runs, rather than with the analysis."""
    items = analysis.problem.items()
    return {
        key: float(value)
        for key, value in items
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in _OWN_FACTS
    }
