"""Checkpoints of one run: eigenvalues followed by their vectors, and changes with errors of their own.

Analyses on the same examples with the same random probes share most of their errors. So a change is known far better
than the difference of two errors would say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.analysis.block import BlockAnalysis
from pyhessian_spectra.analysis.eigenspaces import eigenspace_overlap, inner_products
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.seeds import checkpoint_names, checkpoint_step
from pyhessian_spectra.analysis.similarity import comparable
from pyhessian_spectra.analysis.stability import edge_of_stability
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import Eigenpairs, TraceEstimate
from pyhessian_spectra.spectra.krylov import FIRST_STAGE
from pyhessian_spectra.spectra.results import Floats, t_quantile
from pyhessian_spectra.spectra.trace import mean_of

if TYPE_CHECKING:
    import pandas

# Two orthonormal sets have at most one vector each with more than half of its length along a given vector of the other.
_SAME = 0.5

# A sentence tells a change that is none in this share of cases at most, however many changes it may choose from.
_WRONG = 0.05


#: How the change of an eigenvalue was found whose certified intervals are known at both checkpoints.
INTERVALS = "certified intervals"


@dataclass(frozen=True, repr=False)
class Trajectory(Shown):
    """What moved from each checkpoint to the next.

    Parameters
    ----------
    labels : tuple of str, length T
        What the checkpoints are called.
    steps : tuple of (float or None), length T
        Their optimisation steps, where known.
    values : tuple of ndarray, length T
        The eigenvalues found at the upper edge of each checkpoint's matrix, from the largest.
    tracks : ndarray of int, shape (m, T)
        The rank of each followed eigenvalue at each of ``T`` checkpoints, 0 for the largest, and -1 where it is not
        among those found. An eigenvalue is followed from one checkpoint to the next if more than half of the squared
        length of its vector lies along one of the next checkpoint's.
    overlaps : ndarray, shape (m, T - 1)
        That share, ``(u^T v)^2``; NaN where the eigenvalue is not followed.
    persistence : ndarray, shape (T - 1, 2)
        ``||U^T V||_F^2 / k`` of the spaces of the ``k`` largest eigenvalues at successive checkpoints, and a bound on
        its error; NaN where vectors were not kept.
    k : int
        The number of these eigenvalues.
    chance : float
        ``k / n``, what it is on average for unrelated spaces.
    trace, largest : tuple of TraceEstimate, length T - 1
        The changes of the trace and of the largest eigenvalue.
    layer_traces : mapping of str to tuple of TraceEstimate
        The changes of the traces of layers.
    thresholds : tuple of (float or None), length T
        The curvature above which plain gradient descent is unstable, ``2 / lr``; with heavy-ball momentum ``(2 + 2
        momentum) / lr``, with Nesterov's that over ``1 + 2 momentum`` (Cohen et al. 2021), less ``weight_decay``. None
        where the problem does not say ``learning_rate``, or says ``dampening`` or another ``optimizer`` than SGD.
    notes : tuple of Note
        What makes the comparison doubtful.
    """

    labels: tuple[str, ...]
    steps: tuple[float | None, ...]
    values: tuple[Floats, ...]
    tracks: NDArray[np.int64]
    overlaps: Floats
    persistence: Floats
    k: int
    chance: float
    trace: tuple[TraceEstimate, ...]
    largest: tuple[TraceEstimate, ...]
    layer_traces: Mapping[str, tuple[TraceEstimate, ...]]
    thresholds: tuple[float | None, ...]
    notes: tuple[Note, ...] = ()

    def to_frame(self) -> pandas.DataFrame:
        """Every change as a row of a pandas DataFrame, with its error and the kind of error."""
        from pyhessian_spectra.analysis.table import changes, to_frame

        return to_frame(list(changes(self)))


def follow_checkpoints(
    analyses: Sequence[SpectralAnalysis], *, labels: Sequence[str] | None = None, k: int | None = None
) -> Trajectory:
    """Follow a run through its checkpoints, given in the order of training.

    Parameters
    ----------
    analyses : sequence of SpectralAnalysis
        On the same examples with the same seed, so that changes have small errors.
    labels : sequence of str, optional
        By default the checkpoints' file names.
    k : int, optional
        Size of the spaces whose persistence is measured; by default all eigenvalues found at the upper edge.

    Raises
    ------
    InputError
        There are fewer than two, or they are of models of different size.
    """
    if not all(isinstance(each, SpectralAnalysis) for each in (analyses if isinstance(analyses, Sequence) else [None])):
        raise InputError("analyses must be a sequence of SpectralAnalysis, in the order of training")
    if len(analyses) < 2:
        raise InputError(f"a trajectory needs at least two checkpoints, got {len(analyses)}")
    if labels is not None and len(labels) != len(analyses):
        raise InputError(f"{len(labels)} labels were given for {len(analyses)} checkpoints; give one for each")
    blocks = [analysis.full for analysis in analyses]
    sizes = sorted({block.n for block in blocks})
    if len(sizes) > 1:
        raise InputError(f"checkpoints have {sizes[0]:,} and {sizes[1]:,} parameters; follow one model at a time")
    count = min(len(block.largest) for block in blocks)
    k = count if k is None else k
    if not isinstance(k, int) or not 1 <= k <= count:
        raise InputError(f"k must be between 1 and the {count} eigenvalues found at each checkpoint, got {k}")
    steps = list(itertools.pairwise(analyses))
    shared = [name for name in analyses[0].layers if all(name in analysis.layers for analysis in analyses)]
    tracks, overlaps = _tracks(blocks)
    notes = comparable({str(i): analysis for i, analysis in enumerate(analyses)}, checkpoints=False)
    if notes:  # batches are not the same ones, and their influences not to be paired
        steps = [(unpaired(one), other) for one, other in steps]
    return Trajectory(
        checkpoint_names(analyses) if labels is None else tuple(labels),
        tuple(checkpoint_step(analysis) for analysis in analyses),
        tuple(block.largest.eigenvalues[::-1].copy() for block in blocks),
        tracks,
        overlaps,
        np.array([_persistence(one.full, other.full, k) for one, other in steps]),
        k,
        k / blocks[0].n,
        tuple(change(one.full.trace, other.full.trace) for one, other in steps),
        tuple(change(estimate_of(one.full.largest), estimate_of(other.full.largest)) for one, other in steps),
        {
            name: tuple(change(one.layers[name].trace, other.layers[name].trace) for one, other in steps)
            for name in shared
        },
        tuple(_threshold(analysis) for analysis in analyses),
        notes,
    )


def change(first: TraceEstimate, second: TraceEstimate) -> TraceEstimate:
    """``second - first`` with the error of the difference: probes and batches of both are compared one by one.

    Where one of the two has more samples than the other, those that both have are used.
    """
    samples = None
    if first.samples is not None and second.samples is not None:
        common = min(len(first.samples), len(second.samples))
        samples = second.samples[:common] - first.samples[:common] if common > 1 else None
    if samples is not None and first.stderr > 0 and second.stderr > 0:
        found = mean_of(samples, 0, "paired probes", first_stage=min(FIRST_STAGE, len(samples)))
    else:
        known = [each.num_samples for each in (first, second) if each.stderr > 0]
        stderr = float(np.hypot(first.stderr, second.stderr))
        method = first.method if first.method == second.method and not stderr else "difference"
        found = TraceEstimate(second.value - first.value, stderr, 0, method, min(known, default=0))
    return replace(
        found,
        rounding=first.rounding + second.rounding,
        data_stderr=_paired_error(first, second),
        samples=None,
    )


def changes_between(first: SpectralAnalysis, second: SpectralAnalysis) -> dict[str, TraceEstimate]:
    """The changes of ``"lambda_1"`` and of the ``"trace"`` from one analysis to another, next to each other or not.

    Batches of both are compared one by one if they are of the same data.
    """
    if comparable({"first": first, "second": second}, checkpoints=False):
        first = unpaired(first)
    return {
        "lambda_1": change(estimate_of(first.full.largest), estimate_of(second.full.largest)),
        "trace": change(first.full.trace, second.full.trace),
    }


def unpaired(analysis: SpectralAnalysis) -> SpectralAnalysis:
    """The analysis without the influences of its batches."""

    def without(block: BlockAnalysis) -> BlockAnalysis:
        largest = replace(block.largest, data_influences=None)
        return replace(block, largest=largest, trace=replace(block.trace, data_influences=None))

    return replace(
        analysis, full=without(analysis.full), layers={name: without(b) for name, b in analysis.layers.items()}
    )


def exceeds(change: TraceEstimate, *, tried: int = 1) -> bool:
    """Return whether a change is larger than the 95 % errors of computation and data together.

    One that is chosen from ``tried`` changes has to exceed those of the level at which all of them together would hold
    (Bonferroni).
    """
    return abs(change.value) > both_errors(change, level=1 - _WRONG / tried)


def both_errors(estimate: TraceEstimate, *, level: float = 0.95) -> float:
    """The errors of computation and, as far as it is known, of data together, each at a level."""
    data = t_quantile((1 + level) / 2, 0) * (estimate.data_stderr or 0.0)
    return estimate.interval(level)[1] - estimate.value + data


def estimate_of(pairs: Eigenpairs, at: int = -1) -> TraceEstimate:
    """The eigenvalue at a place in ascending order, with the reach of its interval for rounding."""
    value, reach = float(pairs.eigenvalues[at]), float(pairs.reach[at])
    error = None if pairs.data_stderr is None else float(pairs.data_stderr[at])
    moved = None if pairs.data_influences is None else pairs.data_influences[:, at]
    method = "residuals" if pairs.lower is None else INTERVALS
    return TraceEstimate(value, 0.0, 0, method, rounding=reach, data_stderr=error, data_influences=moved)


def _paired_error(first: TraceEstimate, second: TraceEstimate) -> float | None:
    """The error of the data of a difference: of the same batches, or else as if the data were independent."""
    if first.data_stderr is None or second.data_stderr is None:
        return None
    one, other = first.data_influences, second.data_influences
    if one is None or other is None or one.shape != other.shape:
        return float(np.hypot(first.data_stderr, second.data_stderr))
    return float(np.linalg.norm(other - one))


def _tracks(blocks: Sequence[BlockAnalysis]) -> tuple[NDArray[np.int64], Floats]:
    """The ranks of followed eigenvalues and the overlaps by which they are followed."""
    length = len(blocks)
    rows = [[rank] + [-1] * (length - 1) for rank in range(len(blocks[0].largest))]
    shares = [[np.nan] * (length - 1) for _ in rows]
    for t, (one, other) in enumerate(itertools.pairwise(blocks)):
        links = _links(one, other)
        for row, share in zip(rows, shares, strict=True):
            if row[t] in links:
                row[t + 1], share[t] = links[row[t]]
        taken = {row[t + 1] for row in rows}
        for rank in range(len(other.largest)):
            if rank not in taken:
                rows.append([-1] * (t + 1) + [rank] + [-1] * (length - t - 2))
                shares.append([np.nan] * (length - 1))
    return np.array(rows, dtype=np.int64), np.array(shares)


def _links(one: BlockAnalysis, other: BlockAnalysis) -> dict[int, tuple[int, float]]:
    """From ranks of one to ranks of the other, with the squared overlaps."""
    u, v = one.largest.eigenvectors, other.largest.eigenvectors
    if u is None or v is None:
        return {}
    squares = inner_products(u[:, ::-1], v[:, ::-1]) ** 2
    found = {}
    for rank, row in enumerate(squares):
        best = int(row.argmax())
        if row[best] > _SAME:
            found[rank] = (best, float(row[best]))
    return found


def _persistence(one: BlockAnalysis, other: BlockAnalysis, k: int) -> tuple[float, float]:
    if one.largest.eigenvectors is None or other.largest.eigenvectors is None:
        return np.nan, np.nan
    return eigenspace_overlap(one, other, k)


def _threshold(analysis: SpectralAnalysis) -> float | None:
    problem = analysis.problem
    rate, momentum = problem.get("learning_rate"), problem.get("momentum") or 0.0
    named = problem.get("optimizer", problem.get("optimiser", "SGD"))
    if str(named).upper() != "SGD" or problem.get("dampening"):
        return None
    decay = problem.get("weight_decay") or 0.0
    if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in (rate, momentum, decay)):
        return None
    if rate is None or not (rate > 0 and 0 <= momentum < 1 and decay >= 0):
        return None
    return edge_of_stability(rate, momentum=momentum, nesterov=bool(problem.get("nesterov")), weight_decay=decay)
