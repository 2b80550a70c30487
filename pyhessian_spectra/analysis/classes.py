"""Class structure of the Gauss-Newton matrix: how much of its spectrum the means over classes explain.

Papyan (2019), "Measurements of three-level hierarchical structure in the outliers in the spectrum of deepnet Hessians",
splits the matrix into four positive semi-definite levels. Here examples may have any weights and classes any sizes, and
means may be weighted by probabilities as well (cf. Papyan 2020, "Traces of class/cross-class structure pervade deep
learning spectra").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pyhessian_spectra.analysis.angles import sine, span, turned
from pyhessian_spectra.analysis.deltas import Deltas, Weighting, class_means, extended_gradients, levels_of
from pyhessian_spectra.curvature.gram import GGNGram, ggn_gram
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.results import Floats

# Class means may be all but parallel, or zero; directions in which G1 has less of its largest eigenvalue are left out.
_SHORTEST = 1e-3**0.5

# Random permutations of the classes: the 5 % quantile is the second of so many.
_PERMUTATIONS = 20


@dataclass(frozen=True, repr=False)
class ClassStructure(Shown):
    r"""The levels of ``G = G0 + G1 + G2 + G3`` and their eigenvalues, from :func:`class_structure`.

    Example ``i`` has the share ``w_i`` in the loss, and for each class ``c'`` the extended gradient ``g_ic' = J_i^T
    (e_c' - p_i)``, so that ``G`` is the sum of ``w_i p_ic' g_ic' g_ic'^T``. Written as ``a_ic' d_ic' d_ic'^T``, these
    terms are split into means by the weights ``a`` and deviations from them: ``d_cc'`` are means over the examples of
    class ``c``, ``d_c`` those over all its ``c' != c``. The levels are

    - ``own``, ``G0 = sum_i a_ic d_ic d_ic^T``, ``c`` the example's own class;
    - ``between``, ``G1 = sum_c A_c d_c d_c^T``: class means, of rank ``K`` at most;
    - ``cross``, ``G2 = sum_cc' A_cc' (d_cc' - d_c) (d_cc' - d_c)^T``: of rank ``K (C - 2)`` at most;
    - ``within``, ``G3 = sum_ic' a_ic' (d_ic' - d_cc') (d_ic' - d_cc')^T``,

    with ``A`` the sums of the weights. With the weighting ``"examples"``, ``a_ic' = w_i`` and ``d = sqrt(p) g``
    (Papyan 2019); with ``"probabilities"``, ``a_ic' = w_i p_ic'`` and ``d = g``.

    Parameters
    ----------
    weighting : {"examples", "probabilities"}
    num_examples : int
        Examples ``N`` that count in the loss.
    num_classes : int
        Classes ``C`` that the outputs tell apart.
    classes : tuple of str
        Names of the ``K`` classes that have examples.
    counts : ndarray, shape (K,), int64
        Examples of each.
    eigenvalues : ndarray, shape (m,), float64
        The non-zero eigenvalues of ``G``, ascending; each is known to within ``rounding``.
    levels : mapping of str to ndarray, float64
        Eigenvalues of each level, ascending, without those that must be zero. See :meth:`errors`.
    remaining : ndarray, shape (m,), float64
        Eigenvalues of ``G - G1``, ascending: what is left without the class means.
    projected : ndarray, shape (m,), float64
        Eigenvalues of ``G`` on the orthogonal complement of the class means' span, ascending. Other levels have parts
        along class means as well, which are left in ``remaining`` and not here.
    traces : mapping of str to float
        The trace of each level; they add up to that of ``G``.
    parts : mapping of str to ndarray, shape (min(K, m),), float64
        ``u^T G_j u / lambda``: the part that each level has in each of the largest eigenvalues, in the order of
        ``eigenvalues``. The parts of the four levels add up to 1.
    part_errors : ndarray, shape (min(K, m),), float64
        Bounds on how far rounding has moved any of them: 1 where an eigenvalue has no gap to the next.
    overlaps : ndarray, shape (min(K, m),), float64
        How much of the unit eigenvector to each of the largest eigenvalues lies in the span of the class means, in
        [0, 1]. Directions in which ``G1`` is below a thousandth of its largest eigenvalue do not count for this span.
    span : int
        How many directions do.
    overlap_errors : ndarray, shape (min(K, m),), float64
        Bounds on how far rounding has moved them, likewise.
    alignment, alignment_error : float
        The mean of the overlaps, which gaps among the largest do not matter for, and its bound.
    chance, chance_errors : ndarray, shape (20,), float64
        The alignment with the examples' classes permuted at random, and its bounds: any means of extended gradients lie
        along large eigenvalues, and class means explain what they have beyond this.
    rounding : float
        Bound on how far eigenvalues of ``G`` are off.
    spread, projected_spread, trace_spread : float
        Bounds on how far square roots of eigenvalues of a level or of ``remaining``, of ``projected``, and of the trace
        of a level are off.
    """

    weighting: Weighting
    num_examples: int
    num_classes: int
    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    eigenvalues: Floats
    levels: Mapping[str, Floats]
    remaining: Floats
    projected: Floats
    traces: Mapping[str, float]
    parts: Mapping[str, Floats]
    part_errors: Floats
    overlaps: Floats
    span: int
    overlap_errors: Floats
    alignment: float
    alignment_error: float
    chance: Floats
    chance_errors: Floats
    rounding: float
    spread: float
    projected_spread: float
    trace_spread: float

    @property
    def predicted(self) -> Floats:
        """The outliers that the class means predict: eigenvalues of ``G1``, ascending."""
        return self.levels["between"]

    @property
    def measured(self) -> Floats:
        """As many of the largest eigenvalues of ``G``, ascending."""
        return self.eigenvalues[-len(self.predicted) :]

    def errors(self, values: Floats) -> Floats:
        """How far eigenvalues of a level or of ``remaining`` may be off to each side, shape (2, k)."""
        return _errors(values, self.spread)

    def projected_errors(self) -> Floats:
        """How far the eigenvalues in ``projected`` may be off to each side, shape (2, m)."""
        return _errors(self.projected, self.projected_spread)

    @property
    def num_above_rest(self) -> int:
        """How many eigenvalues of ``G`` surely exceed all that is left without ``G1``; at most ``K`` (Weyl)."""
        left = self.remaining[-1:]
        highest = float((left + self.errors(left)[1])[0])
        return int((self.eigenvalues - self.rounding > highest).sum())

    @property
    def fractions(self) -> Mapping[str, float]:
        """The fraction of the trace of ``G`` in each level; they add up to 1."""
        total = sum(self.traces.values())
        return {name: trace / total for name, trace in self.traces.items()}

    @property
    def fraction_errors(self) -> Mapping[str, float]:
        """How far rounding may have moved each fraction, 1 at most."""
        total = sum(self.traces.values())
        off = {name: self._trace_error(trace) / total for name, trace in self.traces.items()}
        whole = self._trace_error(total) / total
        return {name: min(1.0, off[name] + fraction * whole) for name, fraction in self.fractions.items()}

    def _trace_error(self, trace: float) -> float:
        return (2 * trace**0.5 + self.trace_spread) * self.trace_spread


def class_structure(
    risk: EmpiricalRisk,
    gram: GGNGram | None = None,
    *,
    weighting: Weighting = "examples",
    names: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> ClassStructure:
    """Split the Gauss-Newton matrix of a softmax cross-entropy into Papyan's levels.

    Nothing is taken for granted about the loss: its second derivative in the outputs must be ``diag(p) - p p^T`` times
    the example's weight. Class weights, ignored targets, sums, and label smoothing are right then.

    Parameters
    ----------
    risk : EmpiricalRisk
        Its outputs are logits (N, C), its targets integers (N,).
    gram : GGNGram, optional
        From :func:`ggn_gram`, if it is there already.
    weighting : {"examples", "probabilities"}
        By what extended gradients are averaged, see :class:`ClassStructure`. Probabilities of other classes differ by
        orders of magnitude between the examples of a trained network: weighted by them, means are those of the
        examples that matter.
    names : sequence of str, optional
        Names of all ``C`` classes; by default their numbers.
    generator : torch.Generator, optional
        Draws the permutations of the classes; by default one with the seed 0.

    Raises
    ------
    InputError
        The loss has no class structure, or the Gram matrix is not that of the risk.

    Examples
    --------
    >>> import torch
    >>> from pyhessian_spectra import EmpiricalRisk, class_structure
    >>> model = torch.nn.Linear(4, 3, bias=False).double()
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> x, y = torch.eye(4, dtype=torch.float64)[:3], torch.arange(3)
    >>> structure = class_structure(EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, y)))
    >>> {name: round(fraction, 3) for name, fraction in structure.fractions.items()}
    {'own': 0.333, 'between': 0.167, 'cross': 0.5, 'within': 0.0}
    """
    if weighting not in get_args(Weighting):
        raise InputError(f"weighting must be 'examples' or 'probabilities', got {weighting!r}")
    gram = ggn_gram(risk) if gram is None else gram
    examples = gram.answers(risk)
    deltas = extended_gradients(examples, gram)
    num_classes = deltas.vectors.shape[1]
    if names is not None and len(names) != num_classes:
        raise InputError(f"names has {len(names)} names; the outputs tell {num_classes} classes apart")
    present, counts = np.unique(deltas.labels, return_counts=True)
    columns = levels_of(deltas, weighting)
    traces = {name: float(np.sum(part**2)) for name, part in columns.items()}
    means = columns["between"]
    tilts = turned(deltas.eigenvalues, len(present), gram.rounding)
    parts, part_errors = _parts(columns, deltas, gram, tilts)
    basis, tilt = span(means, _SHORTEST, deltas.spread)
    overlaps = (basis**2).sum(axis=0)[-len(tilts) :]
    # gaps among the largest eigenvalues do not matter for all of them together
    together = sine(gram.rounding, float(np.diff(deltas.eigenvalues, prepend=0.0)[-len(tilts)]))
    chance, chance_tilts = _chance(deltas, weighting, len(tilts), generator or torch.Generator().manual_seed(0))
    diagonal = np.diag(deltas.eigenvalues)
    return ClassStructure(
        weighting,
        len(deltas.labels),
        num_classes,
        tuple(str(c) if names is None else names[c] for c in present),
        counts,
        gram.eigenvalues().clip(0.0),
        {name: _squared(part)[-_rank(name, deltas, len(present)) :] for name, part in columns.items()},
        np.linalg.eigvalsh(diagonal - means.T @ means).clip(0.0),
        _squared((np.eye(len(diagonal)) - basis.T @ basis) * np.sqrt(deltas.eigenvalues)),
        traces,
        parts,
        part_errors,
        overlaps,
        len(basis),
        np.minimum(1.0, tilts + tilt),
        float(overlaps.mean()),
        min(1.0, together + tilt),
        chance,
        np.minimum(1.0, together + chance_tilts),
        gram.rounding,
        deltas.spread,
        deltas.spread + tilt * float(deltas.eigenvalues[-1]) ** 0.5,
        deltas.trace_spread,
    )


def _rank(level: str, deltas: Deltas, present: int) -> int:
    """The largest rank that the level can have; 1 at least, so that there is an eigenvalue to show."""
    count, num_classes, m = deltas.vectors.shape
    most = {
        "own": count,
        "between": present,
        "cross": present * (num_classes - 2),
        "within": (count - present) * (num_classes - 1),
    }
    return max(1, min(most[level], m))


def _squared(columns: Floats) -> Floats:
    """The squared singular values, ascending."""
    small = columns @ columns.T if len(columns) <= columns.shape[1] else columns.T @ columns
    return np.asarray(np.linalg.eigvalsh(small).clip(0.0), np.float64)


def _parts(
    columns: Mapping[str, Floats], deltas: Deltas, gram: GGNGram, tilts: Floats
) -> tuple[Mapping[str, Floats], Floats]:
    """The parts of the levels in the largest eigenvalues, and a bound on how far any of them is off."""
    values = deltas.eigenvalues[-len(tilts) :].clip(np.finfo(np.float64).tiny)
    parts = {name: (part[:, -len(tilts) :] ** 2).sum(axis=0) / values for name, part in columns.items()}
    # a unit vector turned by theta has moved by sqrt(2) sin(theta) at most
    moved = deltas.spread + 2**0.5 * tilts * deltas.eigenvalues[-1] ** 0.5
    off = (2 * np.sqrt(values) + moved) * moved + gram.rounding
    return parts, np.minimum(1.0, off / values)


def _chance(deltas: Deltas, weighting: Weighting, k: int, generator: torch.Generator) -> tuple[Floats, Floats]:
    """Alignments of the ``k`` largest eigenvectors with means of permuted classes, and the sines of these' tilts."""
    alignments, tilts = [], []
    for _ in range(_PERMUTATIONS):
        order = torch.randperm(len(deltas.labels), generator=generator, device=generator.device).cpu().numpy()
        mixed = replace(deltas, labels=deltas.labels[order])
        basis, tilt = span(class_means(mixed, weighting), _SHORTEST, deltas.spread)
        alignments.append(float((basis[:, -k:] ** 2).sum()) / k)
        tilts.append(tilt)
    return np.array(alignments), np.array(tilts)


def _errors(values: Floats, spread: float) -> Floats:
    roots = np.sqrt(values.clip(0.0))
    return np.stack([values - (roots - spread).clip(0.0) ** 2, (roots + spread) ** 2 - values])
