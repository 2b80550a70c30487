"""Which spectra are alike: distances between all of them, beside what chance alone makes of the same spectrum."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.analysis.metrics import Metric, wasserstein
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import Spectrum
from pyhessian_spectra.spectra.results import Floats

if TYPE_CHECKING:
    import pandas

#: The label of the whole matrix beside those of its layers.
WHOLE = "whole"

#: A difference is marked if chance makes it as large with at most this probability.
LEVEL = 0.05

# Up to so many parts all exchanges are made, beyond it as many at random.
_ALL_WAYS = 12

# What must be equal for two analyses to be of the same data, and of the same checkpoint.
_DATA = ("data", "split", "N", "loss", "reduction", "matrix", "data_digest", "loss_digest")
_CHECKPOINT = ("sha256", "checkpoint")

Given = SpectralAnalysis | BlockAnalysis | Spectrum


class _Pair(NamedTuple):
    """A row of the table of a similarity matrix."""

    first: str
    second: str
    value: float | None
    probe_stderr: float | None
    data_stderr: float | None
    across: float | None
    p_value: float | None


@dataclass(frozen=True, repr=False)
class SimilarityMatrix(Shown):
    """Distances between ``p`` spectra, and what chance makes of the distance of each from itself.

    Parameters
    ----------
    labels : tuple of str, length p
    metric : str
        The metric's name.
    values : ndarray, shape (p, p)
        Distances between the spectra of all data. The diagonal is zero.
    probe_stderr : ndarray, shape (p, p)
        Standard errors due to the random probes of the spectra, by the jackknife; zero between exact ones.
    data_stderr : ndarray, shape (p, p), or None
        Standard errors due to the data being a sample: the root mean square, over disjoint parts of the data, of how
        far their distances are from that of all, over the root of one less than their number.
    across : ndarray, shape (p, p), or None
        Mean distances between one spectrum from one part of the data and another from a different part, with different
        probes. The diagonal is the *null*: the distance of a spectrum from itself with other data and probes.
    p_values : ndarray, shape (p, p), or None
        The share of all ways of exchanging the two spectra within parts of the data which separate them at least as
        well. If neither can be told from the other, it is at most ``x`` with probability ``x``; it is at least ``2^(1 -
        S)`` for ``S`` parts. The diagonal is 1.
    notes : tuple of Note
        What makes the comparison doubtful.
    """

    labels: tuple[str, ...]
    metric: str
    values: Floats
    probe_stderr: Floats
    data_stderr: Floats | None = None
    across: Floats | None = None
    p_values: Floats | None = None
    notes: tuple[Note, ...] = ()

    @property
    def null(self) -> Floats | None:
        """The distance (p,) of each spectrum from itself with other data and other probes."""
        return None if self.across is None else self.across.diagonal().copy()

    @property
    def exceeds(self) -> NDArray[np.bool_] | None:
        """Which differences (p, p) exceed the null: those with a p-value of at most 0.05. Each pair is judged alone."""
        return None if self.p_values is None else self.p_values <= LEVEL

    def to_frame(self) -> pandas.DataFrame:
        """Each pair of spectra as a row of a pandas DataFrame, with what is known of their distance."""
        from pyhessian_spectra.analysis.table import to_frame

        known = ("values", "probe_stderr", "data_stderr", "across", "p_values")
        columns = {name: getattr(self, name) for name in known}
        rows = [
            _Pair(one, other, *(None if table is None else float(table[i, j]) for table in columns.values()))
            for i, one in enumerate(self.labels)
            for j, other in enumerate(self.labels[: i + 1])
        ]
        return to_frame(rows)

    def among(self, labels: Sequence[str]) -> SimilarityMatrix:
        """The rows and columns of some labels only; raises InputError for one that is not there."""
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            raise InputError(f"there is no {unknown[0]!r}; there are {', '.join(self.labels)}")
        at = [self.labels.index(label) for label in labels]
        names = ("values", "probe_stderr", "data_stderr", "across", "p_values")
        kept = {name: array[np.ix_(at, at)] for name in names if (array := getattr(self, name)) is not None}
        return replace(self, labels=tuple(labels), **kept)


def similarity_matrix(
    spectra: SpectralAnalysis | Mapping[str, Given],
    *,
    metric: Metric = wasserstein,
    parts: Sequence[Mapping[str, Spectrum]] = (),
) -> SimilarityMatrix:
    """Compare spectra with one another, such as those of layers with that of the whole matrix.

    Parameters
    ----------
    spectra : SpectralAnalysis, or mapping of str to SpectralAnalysis, BlockAnalysis or Spectrum
        An analysis stands for its whole matrix, called ``"whole"``, and its layers; in a mapping for its whole matrix.
    metric : callable
        Of two spectra, such as :func:`~pyhessian_spectra.analysis.metrics.wasserstein`, or your own.
    parts : sequence of mapping of str to Spectrum
        The same spectra from disjoint parts of the data, each with probes of its own; by default those of the analysis,
        if it was taken with ``data_parts``.

    Returns
    -------
    SimilarityMatrix

    Raises
    ------
    InputError
        Fewer than two spectra, or parts that lack one of them.

    Notes
    -----
    Whether two spectra differ by more than chance is tested by exchanging them: within each part of the data, the
    labels of the two may be swapped if the spectra are alike. The statistic is the mean distance between the two groups
    less half the sum of the mean distances within them (Szekely and Rizzo 2004), always between different parts.
    """
    notes: tuple[Note, ...] = ()
    if isinstance(spectra, SpectralAnalysis):
        parts = parts or spectra.parts
        given: Mapping[str, Given] = {WHOLE: spectra.full, **spectra.layers}
    else:
        given, notes = spectra, comparable(spectra)
    if len(given) < 2:
        raise InputError(f"a comparison needs at least two spectra, got {len(given)}; ask for layers")
    labels = tuple(given)
    lacking = [label for part in parts for label in labels if label not in part]
    if lacking:
        raise InputError(f"a part of the data has no spectrum of {lacking[0]!r}; give the same spectra of each part")
    chosen = [_spectrum(given[label]) for label in labels]
    name = getattr(metric, "__name__", type(metric).__name__)
    if not callable(metric):
        raise InputError(f"metric must be a function of two spectra, such as metrics.wasserstein, got {metric!r}")
    whole = [merged(spectrum) for spectrum in chosen]
    metric = _checked(metric)
    values, probe = np.zeros((len(labels),) * 2), np.zeros((len(labels),) * 2)
    for i, j in itertools.combinations(range(len(labels)), 2):
        values[i, j] = values[j, i] = metric(whole[i], whole[j])
        probe[i, j] = probe[j, i] = _probe_error(metric, chosen[i], chosen[j], values[i, j])
    found = SimilarityMatrix(labels, name, values, probe, notes=notes)
    return found if len(parts) < 2 else _beside_null(found, metric, parts)


def _checked(metric: Metric) -> Metric:
    """The metric, which raises InputError where it gives no finite number."""

    def call(first: Spectrum, second: Spectrum) -> float:
        value = metric(first, second)
        if np.ndim(value) or not np.isfinite(value):
            raise InputError(f"the metric gave {value!r} for two spectra; it must give a finite number")
        return float(value)

    return call


def _beside_null(found: SimilarityMatrix, metric: Metric, parts: Sequence[Mapping[str, Spectrum]]) -> SimilarityMatrix:
    """Add what the parts of the data say."""
    count, size = len(parts), len(found.labels)
    spectra = [[merged(part[label]) for label in found.labels] for part in parts]
    # between[s, t, i, j]: spectrum i of part s from spectrum j of part t
    between = np.zeros((count, count, size, size))
    for s, t in itertools.combinations_with_replacement(range(count), 2):
        for i, j in itertools.product(range(size), repeat=2):
            if s != t or i < j:
                between[s, t, i, j] = between[t, s, j, i] = metric(spectra[s][i], spectra[t][j])
    same = between[np.arange(count), np.arange(count)]
    across = between[~np.eye(count, dtype=bool)].mean(axis=0)
    p_values = np.ones((size, size))
    for i, j in itertools.combinations(range(size), 2):
        p_values[i, j] = p_values[j, i] = _exchange_test(between[:, :, [i, i, j, j], [i, j, i, j]])
    # about the distances of all data: those of parts alone vary too little where few examples move them all one way
    stderr = np.sqrt(((same - found.values) ** 2).mean(axis=0) / (count - 1))
    return replace(found, data_stderr=stderr, across=(across + across.T) / 2, p_values=p_values)


def _exchange_test(between: Floats) -> float:
    """The p-value of the exchange test, from distances (S, S, 4) between parts: of i i, i j, j i and j j."""
    count = len(between)
    table = between.reshape(count, count, 2, 2)
    apart = ~np.eye(count, dtype=bool)
    rows, columns = np.nonzero(apart)

    def statistic(first: NDArray[np.intp]) -> float:
        other = 1 - first
        crossed = table[rows, columns, first[rows], other[columns]].mean()
        within = [table[rows, columns, each[rows], each[columns]].mean() for each in (first, other)]
        return float(crossed - sum(within) / 2)

    # exchanging all is no change, so the first part keeps its labels
    if count <= _ALL_WAYS:
        others = np.array([*itertools.product((0, 1), repeat=count - 1)])
    else:  # random ones give an exact test too if making none counts as one of them (Phipson and Smyth 2010)
        others = np.random.default_rng(0).integers(0, 2, (2 ** (_ALL_WAYS - 1), count - 1))
        others[0] = 0
    ways = [statistic(np.array([0, *way])) for way in others]
    rounding = 1e-9 * float(np.abs(table).max())
    return float(np.mean(np.array(ways) >= ways[0] - rounding))


def _probe_error(metric: Metric, first: Spectrum, second: Spectrum, value: float) -> float:
    """The jackknife's standard error over the probes of both spectra."""
    variance = 0.0
    for one, other in ((first, second), (second, first)):
        if one.num_probes < 2:
            continue
        rest = merged(other)
        left = [metric(merged(_without(one, row)), rest) for row in range(one.num_probes)]
        variance += (one.num_probes - 1) / one.num_probes * float(((np.array(left) - np.mean(left)) ** 2).sum())
    return variance**0.5


def _without(spectrum: Spectrum, row: int) -> Spectrum:
    kept = np.arange(spectrum.num_probes) != row
    return replace(spectrum, nodes=spectrum.nodes[kept], weights=spectrum.weights[kept], whole=None)


def merged(spectrum: Spectrum) -> Spectrum:
    """The same measure with one row and each node once: metrics take less time where most eigenvalues are zero.

    What is zero to rounding becomes zero, so that no metric compares rounding errors.
    """
    nodes, weights = spectrum.flat()
    nodes = np.where(np.abs(nodes) <= spectrum.rounding, 0.0, nodes)
    values, at = np.unique(nodes[weights > 0], return_inverse=True)
    merged = np.bincount(at, weights[weights > 0])
    return Spectrum(values[None], merged[None] / merged.sum(), spectrum.n, num_atoms=0, dtype=spectrum.dtype)


def _spectrum(given: Given) -> Spectrum:
    if isinstance(given, Spectrum):
        return given
    return given.full.spectrum if isinstance(given, SpectralAnalysis) else given.spectrum


def comparable(spectra: Mapping[str, Given], *, checkpoints: bool = True) -> tuple[Note, ...]:
    """Notes where analyses are of different data or, unless they may be, of different checkpoints."""
    problems = {label: each.problem for label, each in spectra.items() if isinstance(each, SpectralAnalysis)}
    notes = []
    kinds = [("other data or another matrix", _DATA), *([("another checkpoint", _CHECKPOINT)] if checkpoints else [])]
    for what, keys in kinds:
        seen: dict[tuple[object, ...], str] = {}
        for label, problem in problems.items():
            seen.setdefault(tuple(problem.get(key) for key in keys), label)
        if len(seen) > 1:
            first, other = list(seen.values())[:2]
            text = f"{other!r} is of {what} than {first!r}, so that they differ by more than their spectra."
            notes.append(Note("comparison", text))
    return tuple(notes)
