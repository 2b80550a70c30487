"""What eigenvalues have to do with the number of examples: their curve over subsets, and what more data would give.

Every subset of the examples is a principal submatrix of the Gram matrix ``K``, so no product is taken here. Three facts
carry the module, all because the sum of the ``r`` largest eigenvalues is a convex function of the matrix (Ky Fan 1949),
and the matrix of a set of examples is the mean of those of its subsets. With ``S_r(M)`` that sum for ``M`` random
examples:

- ``E S_r(M)`` never rises with ``M``: few examples give too much, and by more the fewer they are;
- so what ``N`` examples give, or half of them, is on average at least what any ``N' > N`` of the same source give;
- directions found on some examples and measured on others give, on average, at most the sum for all of the source, and
  so at most what any ``N'`` examples give.

All this is for examples of equal shares in the mean. Where shares differ (weights of classes, ignored targets), the
mean over a subset is a ratio, and the inequalities hold up to the sampling error of its denominator.

The bootstrap has no part in this. It draws with replacement, so that its matrices have the mean ``G``, and by the same
convexity their eigenvalues lie above those of ``G``, which are themselves too large already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pyhessian_spectra.analysis.subsets import Bracket, Rows, leave_out, mean_of_examples
from pyhessian_spectra.curvature.gram import GGNGram
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.results import Floats

# The curve starts at so many examples: below them, a subset of ten classes lacks most of these.
_FEWEST = 5

# A standard error from 50 groups is known to 10 %, which is little beside what heavy tails do to it.
_GROUPS = 50


@dataclass(frozen=True, repr=False)
class DataCurve(Shown):
    """Eigenvalues of the Gauss-Newton matrix as a function of the number of examples, from :func:`data_curve`.

    Columns are ranks: the first is the largest eigenvalue. Units are those of eigenvalues, loss / parameter^2.

    Parameters
    ----------
    sizes : ndarray, shape (s,), int64
        Numbers of examples ``M``, ascending; the last is ``N``, all of them.
    subsets : ndarray, shape (s,), int64
        How many random subsets of each size were taken, without replacement: one of ``N``.
    means, spreads : ndarray, shape (s, k), float64
        Mean and standard deviation of the eigenvalues over the subsets. Subsets of one set resemble one another: the
        spread between fresh sets of ``M`` is about ``1 / sqrt(1 - M/N)`` times as large.
    traces, trace_spreads : ndarray, shape (s,), float64
        The same of the trace, whose expectation does not depend on ``M``.
    bias : ndarray, shape (k,), float64
        The jackknife's estimate of how far the eigenvalues at ``N`` are above those of endless data, from leaving out
        groups of examples. It takes the excess to fall as ``1/N``; where it falls more slowly, it is larger than this.
    stderr : ndarray, shape (k,), float64
        The jackknife's sampling error of the eigenvalues at ``N``: how much another ``N`` examples would change them.
    quotients, quotient_stderr : ndarray, shape (k,), float64
        Mean over the examples of ``v^T G_i v``, with directions ``v`` found without example ``i``, and its error.
    bounds, sum_bounds : ndarray, shape (k, 2), float64
        Confidence limits for the expected eigenvalue, and for the expected sum of the largest up to this rank, of any
        ``N' >= N`` examples from the same source: see :meth:`interval`.
    trace_bounds : ndarray, shape (2,), float64
        A confidence interval for the expected trace.
    level : float
        The confidence of each pair of bounds on its own.
    groups : int
        Number of groups that were left out in turn.
    """

    sizes: np.ndarray
    subsets: np.ndarray
    means: Floats
    spreads: Floats
    traces: Floats
    trace_spreads: Floats
    bias: Floats
    stderr: Floats
    quotients: Floats
    quotient_stderr: Floats
    bounds: Floats
    sum_bounds: Floats
    trace_bounds: Floats
    level: float
    groups: int

    @property
    def num_examples(self) -> int:
        """``N``."""
        return int(self.sizes[-1])

    @property
    def eigenvalues(self) -> Floats:
        """The ``k`` largest eigenvalues of all ``N`` examples, shape (k,), descending."""
        return self.means[-1]

    def interval(self, rank: int = 1) -> tuple[float, float]:
        """Confidence limits for the eigenvalue of this rank that any ``N' >= N`` examples give on average.

        The upper end is what random halves of the examples give, the lower one what directions found on some of them
        give on others, each with its sampling error beyond it. For rank 1, and for the sums of ``sum_bounds``, the
        truth is between the two by convexity. An eigenvalue of another rank is no convex function: its interval is
        heuristic. More examples bring the truth nearer to that of endless data, and leave the interval as it is.
        """
        self._check(rank)
        return float(self.bounds[rank - 1, 0]), float(self.bounds[rank - 1, 1])

    def expected(self, size: int, rank: int = 1) -> float:
        """A guess within :meth:`interval` of the eigenvalue of ``size >= N`` examples, which has no error of its own.

        It takes off the part of the jackknife's bias that goes if the excess over endless data falls as ``1/M``, as it
        does by perturbation theory where the eigenvalue is simple and no example is heavy; but no more than to what
        directions found on some examples give on others. Measured, it was wrong by a factor of about 1.3 where
        ``lambda_1`` hardly depended on ``N``, 1.5 for an MLP trained briefly, and 3 for one that fits its data.
        """
        self._check(rank)
        if size < self.num_examples:
            raise InputError(f"size must be at least N = {self.num_examples}, got {size}; the curve has smaller ones")
        top, bias = float(self.eigenvalues[rank - 1]), float(self.bias[rank - 1])
        guess = min(top, max(float(self.quotients[rank - 1]), top - bias * (1 - self.num_examples / size)))
        return float(np.clip(guess, *self.interval(rank)))

    def _check(self, rank: int) -> None:
        if not 1 <= rank <= len(self.eigenvalues):
            raise InputError(f"rank must be between 1 and {len(self.eigenvalues)}, got {rank}; ask for a larger k")


def data_curve(
    gram: GGNGram,
    *,
    generator: torch.Generator,
    k: int = 1,
    sizes: Sequence[int] | None = None,
    subsets: int = 30,
    groups: int | None = None,
    level: float = 0.95,
) -> DataCurve:
    """The ``k`` largest eigenvalues of ``G`` over subsets of its examples, their sampling errors, bounds beyond ``N``.

    Subsets and groups are drawn whatever the order of the examples, and whatever their classes: what is asked is what
    other random examples would give. The examples must be a random draw from their source themselves.

    Parameters
    ----------
    gram : GGNGram
        Of a mean over at least four examples.
    generator : torch.Generator
        Draws subsets and groups.
    sizes : sequence of int, optional
        Numbers of examples up to ``N``; by default ``N/4``, ``N/8`` and so on. ``N/2`` is always among them.
    subsets : int
        Random subsets of each size.
    groups : int, optional
        Groups of examples that are left out in turn; by default one for each example, but at most 50.
    level : float
        Confidence of each interval, half of the failures on either side.

    Notes
    -----
    An interval is as good as the sampling errors it is widened by, and these come from the same examples. Its ends are
    ``estimate * exp(+-t stderr / estimate)``: an eigenvalue is positive, and few examples that carry much of it make it
    vary in ratios. For the same reason ``t`` is a quantile of Student's distribution with the degrees of freedom that
    the variation's kurtosis leaves, which are few where few examples decide. And the upper end starts at what halves of
    the examples give, which is too much on average: ``N`` examples themselves are more often below their average than
    above it, where heavy ones are rare. Examples so rare that none is among the ``N`` still leave no trace: whatever
    occurs less often than about ``3/N`` may be missed, and may carry an eigenvalue.

    At 95 %, 214 of 216 intervals from 100 or 300 images held the mean for 1,000 or 3,000 images, of an MLP and of
    convolutions, on training and on test images (``docs/results/data_curve``); but only a third of them had ends within
    a factor of ten. On synthetic data with heavy tails up to 19 % missed for ``N'`` near ``N``, and a third where one
    example in a hundred carries the eigenvalue. Single sets of examples, rather than their mean, vary beyond this.
    """
    rows = Rows.of(gram)
    sizes, groups = _checked(rows, k, sizes, subsets, groups, level)
    start, count = rows.start(k, generator), len(rows.shares)
    means, spreads = np.zeros((2, len(sizes) + 1, k + 1))
    for row, size in enumerate(sizes):
        drawn = [torch.randperm(count, generator=generator)[:size].numpy() for _ in range(subsets)]
        found = np.array([[*values, trace] for values, trace in (rows.subset(each, k, start) for each in drawn)])
        means[row], spreads[row] = found.mean(axis=0), found.std(axis=0, ddof=1)
        if size == count // 2:
            halves = found[:, :k]
    values, trace = rows.subset(np.arange(count), k, start)
    means[-1] = [*values, trace]
    drawn = np.array_split(torch.randperm(count, generator=generator).numpy(), groups)
    left = leave_out(rows, drawn, k, start)
    single = Bracket.of(values, left, halves, rows, level)
    sums = Bracket.of(values.cumsum(), left.sums(), halves.cumsum(axis=1), rows, level)
    traces = mean_of_examples(rows.per_example(np.diag(rows.matrix)), rows.shares)
    return DataCurve(
        sizes=np.array([*sizes, count]),
        subsets=np.array([subsets] * len(sizes) + [1]),
        means=means[:, :k],
        spreads=spreads[:, :k],
        traces=means[:, k],
        trace_spreads=spreads[:, k],
        bias=single.bias,
        stderr=np.array([each.stderr for each in single.whole]),
        quotients=np.array([each.estimate for each in single.held_out]),
        quotient_stderr=np.array([each.stderr for each in single.held_out]),
        bounds=single.bounds,
        sum_bounds=sums.bounds,
        trace_bounds=np.array([traces.end(-1, level), traces.end(1, level)]),
        level=level,
        groups=groups,
    )


def bootstrap(gram: GGNGram, *, generator: torch.Generator, k: int = 1, draws: int = 100) -> Floats:
    """The ``k`` largest eigenvalues for ``N`` examples drawn with replacement, shape (draws, k).

    Their standard deviation estimates the sampling error of the eigenvalues of ``G``, as the jackknife does. Their
    quantiles are no confidence interval: a drawn matrix has the expectation ``G`` and fewer examples, some of them
    several times, so that its largest eigenvalue is on average above that of ``G``, as this one is above that of more
    data. The mean less the eigenvalue estimates the second excess from the first.
    """
    rows = Rows.of(gram)
    _checked(rows, k, None, draws, None, 0.5)
    start, count, found = rows.start(k, generator), len(rows.shares), []
    for _ in range(draws):
        drawn = torch.randint(count, (count,), generator=generator).numpy()
        found.append(rows.reweighted(np.bincount(drawn, minlength=count).astype(np.float64), k, start))
    return np.array(found)


def describe(curve: DataCurve, *, size: int | None = None) -> str:
    """One sentence on the largest eigenvalue: what it is, what fewer examples give, what ``size`` of them would.

    By default ``size`` is ten times ``N``.
    """
    count, top, (low, high) = curve.num_examples, float(curve.eigenvalues[0]), curve.interval()
    size = size or 10 * count
    text = f"From {count:,} examples lambda_1 = {_short(top)} (standard error {_short(curve.stderr[0])})"
    if len(curve.sizes) > 1:
        few = int(np.argmin(np.abs(np.log(curve.sizes[:-1] / (count / 4)))))
        mean = float(curve.means[few, 0])
        than = "more" if mean > top else "no more"
        text += f"; fewer give {than} ({_short(mean)} on average from {curve.sizes[few]:,})"
    text += (
        f", and {size:,} should give between {_short(low)} and {_short(high)} (about {_short(curve.expected(size))})"
    )
    return f"{text} at {100 * curve.level:g} % confidence, unless examples too rare to be among these matter."


def _checked(
    rows: Rows, k: int, sizes: Sequence[int] | None, draws: int, groups: int | None, level: float
) -> tuple[list[int], int]:
    """Sizes below ``N``, ascending, half of it among them, and the number of groups."""
    count = len(rows.shares)
    if count < 4:
        raise InputError(f"a curve over the data needs at least four examples, got {count}")
    if not 1 <= k <= len(rows.matrix):
        raise InputError(f"k must be between 1 and the {len(rows.matrix)} rows, got {k}")
    if draws < 2:
        raise InputError(f"at least two subsets are needed for a spread, got {draws}")
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, got {level}")
    if sizes is None:
        sizes = [count // 2**i for i in range(1, count.bit_length()) if count // 2**i >= _FEWEST]
    if any(not 1 <= size <= count for size in sizes):
        raise InputError(f"sizes must be between 1 and N = {count}, got {list(sizes)}")
    groups = min(count, _GROUPS) if groups is None else groups
    if not 2 <= groups <= count:
        raise InputError(f"groups must be between 2 and N = {count}, got {groups}")
    return sorted({count // 2, *(int(size) for size in sizes)} - {count}), groups


def _short(value: float) -> str:
    """Three or four digits, with commas.

    >>> _short(5417.6), _short(0.012345)
    ('5,418', '0.0123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
