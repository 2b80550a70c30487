"""Eigenvalues of subsets of the examples from one Gram matrix, and the sampling errors that leaving some out tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pyhessian_spectra.curvature.gram import GGNGram
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats

# ARPACK's tolerance of a residual relative to the eigenvalue, which is off by about its square: far below any sampling
# error. Up to so many rows LAPACK is as fast.
_TOLERANCE, _DENSE = 1e-6, 150

# Copying a submatrix takes as long as some products with it; of more of the rows than this, products with all are less.
_MOST = 0.8


@dataclass(frozen=True)
class Rows:
    """A Gram matrix (m, m), the example of each row (m,), and the examples' shares in the mean (N,), none of them 0."""

    matrix: Floats
    examples: np.ndarray
    shares: Floats

    @classmethod
    def of(cls, gram: GGNGram) -> Rows:
        """Those of a Gram matrix; raises InputError where its loss is a sum."""
        if gram.weights is None:
            raise InputError("the loss is a sum, which grows with the examples; take a loss with reduction='mean'")
        counted = gram.weights > 0  # an ignored example is none
        return cls(gram.matrix, (np.cumsum(counted) - 1)[gram.examples], gram.weights[counted])

    def among(self, chosen: np.ndarray) -> np.ndarray:
        """Which rows belong to these examples, shape (m,)."""
        return np.isin(np.arange(len(self.shares)), chosen)[self.examples]

    def per_example(self, values: Floats) -> Floats:
        """For each example the sum of the values (m, ...) of its rows over its share, shape (N, ...): their mean is
        the sum over all rows."""
        sums = np.zeros((len(self.shares), *values.shape[1:]))
        np.add.at(sums, self.examples, values)
        return sums / self.shares.reshape(-1, *[1] * (values.ndim - 1))

    def start(self, k: int, generator: torch.Generator) -> Floats:
        """A vector (m,) from which the ``k`` largest eigenvalues of any subset are found soon, and none is missed."""
        noise = torch.randn(len(self.matrix), generator=generator, dtype=torch.float64).numpy()
        vectors = largest(self.matrix, np.ones(len(noise)), k, noise)[1]
        # noise: the vectors may be orthogonal to a subset's, if its examples have no part in them
        return np.asarray(vectors.sum(axis=1) + 0.1 * noise / np.linalg.norm(noise), np.float64)

    def subset(self, chosen: np.ndarray, k: int, start: Floats) -> tuple[Floats, float]:
        """The ``k`` largest eigenvalues of the mean over the chosen examples, descending, and its trace."""
        among, share = self.among(chosen), float(self.shares[chosen].sum())
        values, _ = largest(self.matrix, among.astype(np.float64), k, start)
        return values / share, float(np.diag(self.matrix)[among].sum()) / share

    def reweighted(self, counts: Floats, k: int, start: Floats) -> Floats:
        """The ``k`` largest eigenvalues, descending, where each example occurs so many times (N,)."""
        scale = np.sqrt(counts[self.examples] / float(self.shares @ counts))
        return largest(self.matrix, scale, k, start)[0]


def largest(matrix: Floats, scale: Floats, k: int, start: Floats) -> tuple[Floats, Floats]:
    """The ``k`` largest eigenvalues of ``D K D`` for a Gram matrix ``K`` and ``D = diag(scale)``, and their vectors.

    Values (k,) descend, with zeros where ``D`` leaves fewer rows; vectors (m, k) are zero where it leaves none.
    """
    import scipy.linalg
    from scipy.sparse.linalg import LinearOperator, eigsh

    kept = np.flatnonzero(scale)
    m, vectors = len(kept), np.zeros((len(matrix), k))
    if m > max(_DENSE, 5 * k) and m > _MOST * len(matrix):
        scaled = LinearOperator(matrix.shape, matvec=lambda x: scale * (matrix @ (scale * x.ravel())), dtype=np.float64)
        values, vectors = eigsh(scaled, k, v0=start * (scale > 0), tol=_TOLERANCE, ncv=2 * k + 10)
    else:
        part = matrix[np.ix_(kept, kept)] * np.outer(scale[kept], scale[kept])
        if m > max(_DENSE, 5 * k):
            values, vectors[kept] = eigsh(part, k, v0=start[kept], tol=_TOLERANCE, ncv=2 * k + 10)
        elif m:
            few = min(k, m)
            found, vectors[kept, :few] = scipy.linalg.eigh(part, subset_by_index=[m - few, m - 1])
            values = np.pad(found, (0, k - few))
        else:
            values = np.zeros(k)
    order = np.argsort(-values)
    return values[order].clip(0.0), vectors[:, order]


@dataclass(frozen=True)
class LeftOut:
    """What remains without each group of examples, and what the group says of the directions found without it.

    ``values`` (g, k) are the eigenvalues without the group, ``shares`` (g,) the groups' shares, and ``quotients``
    (N, k) are ``v^T G_i v`` of each example, with ``v`` directions found without the example's group.
    """

    values: Floats
    shares: Floats
    quotients: Floats

    def sums(self) -> LeftOut:
        """The same for the sums of the largest eigenvalues."""
        return LeftOut(self.values.cumsum(axis=1), self.shares, self.quotients.cumsum(axis=1))


def leave_out(rows: Rows, groups: Sequence[np.ndarray], k: int, start: Floats) -> LeftOut:
    """Leave out one group of examples at a time, and measure on it the directions found without it.

    The directions are the largest eigenvectors of the mean of ``G_i / sqrt(tr G_i)``. What is measured on examples that
    had no part in the choice may be chosen anyhow; in ``G`` itself a few heavy examples often choose directions that
    are theirs alone, on which the others have nothing.
    """
    values, quotients = np.zeros((len(groups), k)), np.zeros((len(rows.shares), k))
    traces = rows.per_example(np.diag(rows.matrix))
    scale = np.where(traces > 0, traces, 1.0)[rows.examples] ** -0.25
    for index, group in enumerate(groups):
        out = rows.among(group)
        values[index] = largest(rows.matrix, 1.0 - out, k, start)[0] / (1 - rows.shares[group].sum())
        found, u = largest(rows.matrix, (1.0 - out) * scale, k, start)
        # v = B^T u / sqrt(found) with the rows B = scale A that were kept, so that A v are products with the matrix
        directions = scale[:, None] * u / np.sqrt(np.where(found > 0, found, np.inf))
        np.add.at(quotients, rows.examples[out], (rows.matrix[out] @ directions) ** 2)
    return LeftOut(values, np.array([rows.shares[g].sum() for g in groups]), quotients / rows.shares[:, None])


@dataclass(frozen=True)
class Sampled:
    """An estimate, its sampling error, and how many degrees of freedom that error has."""

    estimate: float
    stderr: float
    freedom: float

    def end(self, side: int, level: float) -> float:
        """The upper (side 1) or lower (side -1) end of an interval, for what is positive and varies in ratios."""
        import scipy.special

        if self.estimate <= 0 or self.stderr == 0:
            return self.estimate
        factor = float(scipy.special.stdtrit(self.freedom, (1 + level) / 2))
        return float(self.estimate * np.exp(side * factor * self.stderr / self.estimate))


def mean_of_examples(values: Floats, shares: Floats) -> Sampled:
    """The mean of what each example gives (N,), by its share."""
    estimate, count = float(shares @ values), len(shares)
    parts = shares * (values - estimate)
    return Sampled(estimate, float(np.sqrt((parts**2).sum() * count / (count - 1))), _freedom(parts))


def jackknife(whole: float, without: Floats, shares: Floats) -> tuple[Sampled, float]:
    """A statistic with its error, and its bias, from its values without each group (g,) and the groups' shares."""
    # the jackknife for groups of unequal size: Busing, Meijer and van der Leeden 1999, equations 5 and 6
    sizes = 1 / shares
    pseudo = sizes * whole - (sizes - 1) * without
    centre = float(shares @ pseudo)
    parts = (pseudo - centre) / np.sqrt(sizes - 1)
    return Sampled(whole, float(np.sqrt((parts**2).mean())), _freedom(parts)), whole - centre


@dataclass(frozen=True)
class Bracket:
    """The eigenvalues and the held-out quotients with errors, the jackknife's bias (k,), confidence limits (k, 2)."""

    whole: tuple[Sampled, ...]
    held_out: tuple[Sampled, ...]
    bias: Floats
    bounds: Floats

    @classmethod
    def of(cls, values: Floats, left: LeftOut, halves: Floats, rows: Rows, level: float) -> Bracket:
        """Those of eigenvalues or their sums (k,), with what groups left out and random halves (h, k) say of them."""
        found = [jackknife(float(values[j]), left.values[:, j], left.shares) for j in range(len(values))]
        held_out = tuple(mean_of_examples(each, rows.shares) for each in left.quotients.T)
        highs = [_of_halves(whole, half).end(1, level) for (whole, _), half in zip(found, halves.T, strict=True)]
        bounds = np.stack([[low.end(-1, level) for low in held_out], highs], axis=1)
        return cls(tuple(each for each, _ in found), held_out, np.array([bias for _, bias in found]), bounds)


def _of_halves(whole: Sampled, halves: Floats) -> Sampled:
    """The mean over random halves of the examples: its relative error is that of the whole, and that of the drawing."""
    mean = float(halves.mean())
    error = mean * whole.stderr / whole.estimate if whole.estimate > 0 else 0.0
    return Sampled(mean, float(np.hypot(error, halves.std(ddof=1) / len(halves) ** 0.5)), whole.freedom)


def _freedom(parts: Floats) -> float:
    """Degrees of freedom of the sum of squares of independent deviations, from their kurtosis (Satterthwaite 1946).

    A variance made by few of many deviations is as uncertain as one of few. Of normal deviations all but one count.
    """
    squares, count = parts**2, len(parts)
    if not squares.any():
        return float(count - 1)
    kurtosis = count * float((squares**2).sum()) / float(squares.sum()) ** 2
    return float(min(count - 1, 2 * count / max(kurtosis - 1, 1e-9)))
