"""Many checkpoints beside one reference: differences with errors of their own, on the same examples and probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pyhessian_spectra.analysis.bulk import BulkEdge, split_bulk
from pyhessian_spectra.analysis.densities import Densities, compare_densities, paired_error
from pyhessian_spectra.analysis.eigenspaces import eigenspace_overlap
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.analysis.seeds import checkpoint_names, checkpoint_step, runs_of
from pyhessian_spectra.analysis.similarity import WHOLE, comparable
from pyhessian_spectra.analysis.trajectory import both_errors, change, estimate_of, unpaired
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import Spectrum, TraceEstimate
from pyhessian_spectra.spectra.results import Floats

if TYPE_CHECKING:
    import pandas

#: What is said of eigenvalues, traces and shares, and of which block: ``(block, quantity)``.
Quantity = tuple[str, str]


@dataclass(frozen=True, repr=False)
class Difference(Shown):
    """What sets one checkpoint apart from the reference.

    Parameters
    ----------
    changes : mapping of (str, str) to TraceEstimate
        By block, which is ``"whole"`` or a layer, and quantity: that of the checkpoint less that of the reference, with
        the error of the difference. Quantities are ``"lambda_1"``, ``"lambda_n"``, ``"trace"``, and of the whole
        ``"share of negative eigenvalues"`` and ``"share of zero eigenvalues"``, whose ``rounding`` is what their bounds
        leave open. The standard error of the data is of differences on the same batches, or parts of the data.
    alone : mapping of (str, str) to float
        The 95 % errors, of computation and data together, that differences of eigenvalues and traces would have if the
        two analyses had nothing in common: the root of the sum of squares of both errors. Where no error of the data is
        known, as for eigenvalues of layers whose matrix is built, it holds that of computation alone.
    overlap : (float, float) or None
        How near the spaces of the ``k`` largest eigenvalues are, and a bound on the error of that; see
        :func:`~pyhessian_spectra.eigenspace_overlap`.
    k : int
        Size of these spaces.
    left_out : tuple of str
        What cannot be compared, and why.
    notes : tuple of Note
        What makes the comparison doubtful.
    """

    changes: Mapping[Quantity, TraceEstimate]
    alone: Mapping[Quantity, float]
    overlap: tuple[float, float] | None
    k: int
    left_out: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def layer_traces(self) -> dict[str, TraceEstimate]:
        """The changes of the traces of layers."""
        return {block: moved for (block, what), moved in self.changes.items() if what == "trace" and block != WHOLE}


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """``T`` checkpoints beside one of them.

    Parameters
    ----------
    labels : tuple of str, length T
        What the checkpoints are called.
    analyses : tuple of SpectralAnalysis, length T
        Without eigenvectors and the Gauss-Newton part, so that many fit into memory.
    bulks : tuple of BulkEdge, length T
        Of the whole matrices.
    runs : mapping of str to tuple of int
        The checkpoints of each training run; a single run is called ``""``.
    reference : int
        Which one the others are compared with.
    differences : tuple of (Difference or None), length T
        None for the reference.
    densities : Densities
        Of the whole matrices.
    """

    labels: tuple[str, ...]
    analyses: tuple[SpectralAnalysis, ...]
    bulks: tuple[BulkEdge, ...]
    runs: Mapping[str, tuple[int, ...]]
    reference: int
    differences: tuple[Difference | None, ...]
    densities: Densities

    @property
    def steps(self) -> tuple[float | None, ...]:
        """The optimisation steps (T,), where known."""
        return tuple(map(checkpoint_step, self.analyses))

    @property
    def compared(self) -> Iterator[tuple[int, Difference]]:
        """All but the reference, with their places."""
        return ((i, each) for i, each in enumerate(self.differences) if each is not None)

    def to_frame(self) -> pandas.DataFrame:
        """Every number as a row of a pandas DataFrame, those of checkpoints first, then the differences."""
        from pyhessian_spectra.analysis.table import compared_rows, to_frame

        return to_frame(compared_rows(self))


def compare_checkpoints(
    analyses: Sequence[SpectralAnalysis], *, reference: int = 0, labels: Sequence[str] | None = None
) -> Comparison:
    """Compare checkpoints with one of them: what differs, by how much, and how far that may be off.

    Analyses on the same examples with the same seed share errors, and differences of theirs are known better the nearer
    two checkpoints are. Networks of other sizes, layers that only one of two has, and analyses on other examples are
    compared as far as it goes, and what is left out or doubtful is said.

    Parameters
    ----------
    analyses : sequence of SpectralAnalysis
        Each is asked for once and not kept whole: of a sequence that reads them from disk, two are held at a time, the
        reference and one other.
    reference : int
        Which one the others are compared with, by default the first.
    labels : sequence of str, optional
        By default the checkpoints' file names.

    Raises
    ------
    InputError
        There are fewer than two, or no such reference.
    """
    if not isinstance(analyses, Sequence) or len(analyses) < 2:
        given = len(analyses) if isinstance(analyses, Sequence) else type(analyses).__name__
        raise InputError(f"a comparison needs at least two analyses in a sequence, got {given}")
    if not isinstance(reference, int) or not -len(analyses) <= reference < len(analyses):
        raise InputError(f"reference must be the place of one of {len(analyses)} analyses, got {reference}")
    if labels is not None and len(labels) != len(analyses):
        raise InputError(f"{len(labels)} labels were given for {len(analyses)} checkpoints; give one for each")
    at = range(len(analyses))[reference]
    first = analyses[at]
    if not isinstance(first, SpectralAnalysis):
        raise InputError(f"a comparison is of analyses, as analyze and load_analyses give them, got {first!r}")
    split = split_bulk(first)
    kept, bulks, differences = [], [], []
    for i in range(len(analyses)):
        each = first if i == at else analyses[i]
        bulk = split if i == at else split_bulk(each)
        differences.append(None if i == at else _difference(first, split, each, bulk))
        kept.append(_light(each))
        bulks.append(bulk)
    names = checkpoint_names(kept) if labels is None else tuple(labels)
    return Comparison(
        names, tuple(kept), tuple(bulks), runs_of(kept), at, tuple(differences), compare_densities(kept, at)
    )


def _difference(first: SpectralAnalysis, split: BulkEdge, second: SpectralAnalysis, bulk: BulkEdge) -> Difference:
    notes = comparable({"the reference": first, "this": second}, checkpoints=False)
    if notes:  # batches are not the same ones, and their influences not to be paired
        first, second = unpaired(first), replace(second, parts=())
    left = []
    shared = [(WHOLE, first.full, second.full)]
    shared += [(name, first.layers[name], block) for name, block in second.layers.items() if name in first.layers]
    changes, alone = {}, {}
    for name, one, other in shared:
        for what, estimates in _of_block(one, other):
            changes[name, what] = change(*estimates)
            alone[name, what] = math.hypot(*map(both_errors, estimates))
    changes |= dict(_shares(first, split, second, bulk))
    apart = sorted(set(first.layers) ^ set(second.layers))
    if apart:
        left.append(f"layers that only one of the two has: {', '.join(apart)}")
    k = min(len(first.full.largest), len(second.full.largest))
    overlap = None
    if first.full.n != second.full.n:
        left.append(f"the overlap of eigenvectors, which have {first.full.n:,} and {second.full.n:,} coordinates")
    elif not k or any(each.full.largest.eigenvectors is None for each in (first, second)):
        left.append("the overlap of eigenvectors, which were not kept")
    else:
        overlap = eigenspace_overlap(first.full, second.full, k)
    return Difference(changes, alone, overlap, k, tuple(left), notes)


def _of_block(first: BlockAnalysis, second: BlockAnalysis) -> Iterator[tuple[str, tuple[TraceEstimate, TraceEstimate]]]:
    """What is known of both blocks."""
    for what, edge, at in (("lambda_1", "largest", -1), ("lambda_n", "smallest", 0)):
        one, other = getattr(first, edge), getattr(second, edge)
        if len(one) and len(other):
            yield what, (estimate_of(one, at), estimate_of(other, at))
    yield "trace", (first.trace, second.trace)


def _shares(
    first: SpectralAnalysis, split: BulkEdge, second: SpectralAnalysis, bulk: BulkEdge
) -> Iterator[tuple[Quantity, TraceEstimate]]:
    """The changes of the shares of negative and of zero eigenvalues, whose bounds hold for each of the two alone."""
    for what in ("negative", "zero"):
        value = getattr(bulk, f"{what}_mass") - getattr(split, f"{what}_mass")
        (low, high), (least, most) = (getattr(each, f"{what}_bounds") for each in (bulk, split))
        off = max(high - least - value, value - (low - most), 0.0)
        one, other = (_of_parts(each, what, edge.zero_threshold) for each, edge in ((first, split), (second, bulk)))
        paired = len(one) == len(other) > 1
        data = float(paired_error(other - one, np.array(value))) if paired else None
        found = TraceEstimate(value, 0.0, 0, "99 % bounds of each share", rounding=off, data_stderr=data)
        yield (WHOLE, f"share of {what} eigenvalues"), found


def _of_parts(analysis: SpectralAnalysis, what: str, threshold: float) -> Floats:
    """The share on each part of the data that was analysed."""

    def share(spectrum: Spectrum) -> float:
        nodes, weights = spectrum.flat()
        return float(weights[nodes < -threshold if what == "negative" else np.abs(nodes) <= threshold].sum())

    return np.array([share(part[WHOLE]) for part in analysis.parts if WHOLE in part])


def _light(analysis: SpectralAnalysis) -> SpectralAnalysis:
    """The analysis without what is large: eigenvectors, the Gauss-Newton part, and what spectra have cached."""

    def light(block: BlockAnalysis) -> BlockAnalysis:
        edges = {name: replace(getattr(block, name), eigenvectors=None) for name in ("largest", "smallest")}
        return replace(block, spectrum=replace(block.spectrum), **edges)

    parts = [{WHOLE: part[WHOLE]} for part in analysis.parts if WHOLE in part]
    layers = {name: light(block) for name, block in analysis.layers.items()}
    return replace(analysis, full=light(analysis.full), layers=layers, gauss_newton=None, parts=parts)
