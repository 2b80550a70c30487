"""Statistics of paired runs: differences with intervals, and rank correlations over runs that share seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

LEVEL = 0.95
_RESAMPLES = 1000


@dataclass(frozen=True)
class Paired:
    """Mean of the differences of ``pairs`` pairs, and its interval by Student's t at ``LEVEL``."""

    mean: float
    lower: float
    upper: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.lower:+.3g}, {self.upper:+.3g}] in {self.pairs} pairs"

    @property
    def below(self) -> bool:
        """Whether the interval lies below zero."""
        return self.upper < 0

    @property
    def above(self) -> bool:
        """Whether the interval lies above zero."""
        return self.lower > 0


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired:
    """``first - second`` by seed, over the seeds that both have; fewer than two have no interval."""
    seeds = sorted(first.keys() & second.keys())
    apart = np.array([first[seed] - second[seed] for seed in seeds])
    if len(apart) < 2:
        return Paired(float(apart.mean()) if len(apart) else float("nan"), -float("inf"), float("inf"), len(apart))
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
    return Paired(float(apart.mean()), float(apart.mean() - half), float(apart.mean() + half), len(apart))


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over ``runs`` runs, and its interval at ``LEVEL`` by the bootstrap over seeds."""

    value: float
    lower: float
    upper: float
    runs: int

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.lower:+.2f}, {self.upper:+.2f}] over {self.runs} runs"


def rank_correlation(x: ArrayLike, y: ArrayLike, seeds: Sequence[int], *, seed: int = 0) -> Correlation:
    """Spearman's correlation of ``x`` and ``y``, a value a run; runs of one seed are drawn together.

    Runs that share a start are not independent, so the bootstrap draws seeds, each with all its runs.
    """
    x, y, of = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray(seeds)
    groups = [np.flatnonzero(of == each) for each in np.unique(of)]
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        chosen = np.concatenate([groups[i] for i in generator.integers(len(groups), size=len(groups))])
        if np.ptp(x[chosen]) and np.ptp(y[chosen]):
            drawn.append(scipy.stats.spearmanr(x[chosen], y[chosen]).statistic)
    lower, upper = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if drawn else (float("nan"), float("nan"))
    return Correlation(float(scipy.stats.spearmanr(x, y).statistic), float(lower), float(upper), len(x))
