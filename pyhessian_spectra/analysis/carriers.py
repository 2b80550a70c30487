"""Who carries an eigenvalue: the examples and the classes whose terms of the Gauss-Newton matrix it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyhessian_spectra.analysis.angles import sine
from pyhessian_spectra.curvature.examples import Examples
from pyhessian_spectra.curvature.gram import GGNGram, ggn_gram
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.results import Floats

# Eigenvectors are told apart where rounding turns them by less than this sine.
_APART = 0.05


@dataclass(frozen=True, repr=False)
class Carriers(Shown):
    """Shares of examples and classes in an eigenvalue, from :func:`carriers`.

    ``G = sum_i G_i`` over the examples, so that ``lambda = sum_i v^T G_i v``: example ``i`` has the share
    ``v^T G_i v / lambda``. Eigenvectors of eigenvalues that rounding cannot tell apart are arbitrary in their common
    space: the shares are then those in the sum of all these eigenvalues, which is determined.

    All fields are plain Python values, for ``dataclasses.asdict`` and JSON; undefined ones are None.

    Parameters
    ----------
    ranks : tuple of int
        The eigenvalues that shares are taken in, 1 the largest: the one asked for, and those not told apart from it.
    eigenvalues : tuple of float
        These eigenvalues, descending; each is known to within ``rounding``.
    rounding, gap : float
        Bound on how far an eigenvalue is off; distance to the next eigenvalue that is told apart.
    examples : tuple of int
        All ``N`` examples, those with the largest shares first, counted over the batches that have any weight. The next
        five fields have their order.
    shares : tuple of float
        They add up to 1.
    labels, predictions : tuple of int, or None
        None unless each example has one class as its target.
    losses : tuple of float or None
        The loss of each example alone; None for those that have none.
    counts : tuple of bool
        Whether the example counts in the loss.
    share_error : float
        Bound on how far rounding has moved the share of any example, 1 at most (Davis and Kahan 1970).
    classes : dict of str to float
        The share of each class that has examples: the sum over them.
    class_error : float
        Bound on how far rounding has moved the share of a class, or of any other set of examples.
    misclassified_share, misclassified_fraction : float or None
        The share of all misclassified examples, and which fraction of the examples they are, among those that count.
    notes : tuple of Note
    """

    ranks: tuple[int, ...]
    eigenvalues: tuple[float, ...]
    rounding: float
    gap: float
    examples: tuple[int, ...]
    shares: tuple[float, ...]
    labels: tuple[int, ...] | None
    predictions: tuple[int, ...] | None
    losses: tuple[float | None, ...]
    counts: tuple[bool, ...]
    share_error: float
    classes: dict[str, float]
    class_error: float
    misclassified_share: float | None
    misclassified_fraction: float | None
    notes: tuple[Note, ...]


def carriers(
    risk: EmpiricalRisk, gram: GGNGram | None = None, *, k: int = 1, names: Sequence[str] | None = None
) -> Carriers:
    """Find the examples and classes that carry the ``k``-th largest eigenvalue of the Gauss-Newton matrix.

    Parameters
    ----------
    risk : EmpiricalRisk
    gram : GGNGram, optional
        From :func:`ggn_gram`, if it is there already.
    k : int
        Rank of the eigenvalue, 1 the largest.
    names : sequence of str, optional
        Names of all classes; by default their numbers.

    Raises
    ------
    InputError
        ``k`` is beyond the rank of the matrix, or the Gram matrix is not that of the risk.

    Examples
    --------
    >>> import torch
    >>> from pyhessian_spectra import EmpiricalRisk, carriers
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> data = torch.diag(torch.tensor([1.0, 5.0, 2.0])), torch.ones(3, 1)
    >>> found = carriers(EmpiricalRisk(model, torch.nn.MSELoss(), data))
    >>> found.examples[0], found.ranks
    (1, (1,))
    """
    gram = ggn_gram(risk) if gram is None else gram
    if not 1 <= k <= gram.rank():
        raise InputError(f"k must be between 1 and the rank {gram.rank()} of the matrix, got {k}")
    examples = gram.answers(risk)
    classes = examples.outputs[0].shape[1]
    if names is not None and examples.labels is not None and (len(names) != classes or len(set(names)) != classes):
        raise InputError(f"names must be {classes} different ones, one for each output, got {list(names)}")
    values = gram.eigenvalues()
    low, high, gap = _cluster(values, len(values) - k, gram.rounding)
    # v^T G_i v is lambda times the sum of u^2 over the example's rows
    vectors = gram.top(len(values) - low)[1][:, : high - low]
    carried = (vectors**2) @ values[low:high]
    total = float(values[low:high].sum())
    shares = np.bincount(gram.examples, weights=carried, minlength=len(examples)) / total
    share_error, class_error = _errors(gram, values, (low, high), gap)
    order = np.argsort(-shares, kind="stable")
    labels, predictions = examples.labels, _predictions(examples)
    losses = examples.losses[order]
    wrong = None if labels is None or predictions is None else (labels != predictions) & (examples.terms > 0)
    ranks = tuple(len(values) - i for i in reversed(range(low, high)))
    return Carriers(
        ranks,
        tuple(values[low:high][::-1].tolist()),
        gram.rounding,
        gap,
        tuple(order.tolist()),
        tuple(shares[order].tolist()),
        None if labels is None else tuple(labels[order].tolist()),
        None if predictions is None else tuple(predictions[order].tolist()),
        tuple(None if np.isnan(loss) else float(loss) for loss in losses),
        tuple((examples.terms[order] > 0).tolist()),
        share_error,
        _by_class(shares, examples, names),
        class_error,
        None if wrong is None else float(shares[wrong].sum()),
        None if wrong is None else float(wrong.sum() / (examples.terms > 0).sum()),
        _notes(k, ranks, gap, gram.rounding, share_error),
    )


def _cluster(values: Floats, at: int, rounding: float) -> tuple[int, int, float]:
    """The range of eigenvalues around one that rounding cannot tell apart, and the gap to the next beyond it."""
    # beyond the smallest lies zero, the eigenvalue of all directions that no example has
    distances = np.concatenate([[values[0]], np.diff(values), [np.inf]])
    low, high = at, at + 1
    needed = rounding * (1 + 1 / _APART)
    while (gap := float(min(distances[low], distances[high]))) < needed:
        if distances[low] <= distances[high]:
            if low == 0:  # the whole spectrum: nothing is told apart from zero
                break
            low -= 1
        else:
            high += 1
    return low, high, gap


def _errors(gram: GGNGram, values: Floats, cluster: tuple[int, int], gap: float) -> tuple[float, float]:
    """Bounds on the errors of an example's share and of a set's.

    With ``P`` the projector on ``s`` eigenvectors, the share of a set ``S`` is ``tr(P G_S) / tr(P G)``. Rounding turns
    ``P`` by an angle of sine ``rounding / (gap - rounding)`` at most, which moves ``tr(P G_S)`` by ``s |G_S|`` times
    it, and changes each of the two traces by ``s rounding``.
    """
    size, total = cluster[1] - cluster[0], float(values[cluster[0] : cluster[1]].sum())
    own = np.bincount(gram.examples, weights=np.diag(gram.matrix))
    largest = min(float(own.max()), float(values[-1]))  # the norm of one term is its trace at most
    one, many = (
        size * (norm * sine(gram.rounding, gap) + 2 * gram.rounding) / total for norm in (largest, float(values[-1]))
    )
    return min(1.0, one), min(1.0, many)


def _predictions(examples: Examples) -> np.ndarray | None:
    return None if examples.labels is None else np.concatenate(examples.outputs).argmax(axis=1)


def _by_class(shares: Floats, examples: Examples, names: Sequence[str] | None) -> dict[str, float]:
    if examples.labels is None:
        return {}
    present = np.unique(examples.labels[examples.terms > 0])
    return {
        str(c) if names is None else names[c]: float(shares[(examples.labels == c) & (examples.terms > 0)].sum())
        for c in present
    }


def _notes(k: int, ranks: tuple[int, ...], gap: float, rounding: float, share_error: float) -> tuple[Note, ...]:
    notes = []
    if len(ranks) > 1:
        told = f"Eigenvalue {k} is not told apart from its neighbours: products round by {rounding:.1e}"
        text = f"{told}. Shares are those in the sum of the eigenvalues {ranks[0]} to {ranks[-1]}."
        notes.append(Note("rounding", text))
    if share_error > _APART:
        text = (
            f"Shares of examples may be off by up to {share_error:.2g}: rounding is {rounding:.1e}, the gap {gap:.1e}."
        )
        notes.append(Note("rounding", text))
    return tuple(notes)
