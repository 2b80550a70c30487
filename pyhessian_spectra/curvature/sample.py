"""Sample: the data of a risk on all ranks. No other module loops over batches and processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch, Batches
from pyhessian_spectra.curvature.distributed import Processes
from pyhessian_spectra.errors import InputError, NonFiniteError


class Survey(NamedTuple):
    """Counts from one pass over the data of all ranks."""

    weights: tuple[float, ...]  # of all batches, in the order of ranks
    num_examples: int
    num_local: int  # batches of this rank
    first_local: int  # position of this rank's first batch among all
    by_class: bool  # whether batches hold far fewer classes than as many examples drawn at random would


class Sample:
    """The batches of this rank and of all others, and means over them.

    ``reduction`` says whether terms are averaged by weight or added. Floating inputs and all sums have the parameters'
    ``dtype`` and ``device``.
    """

    def __init__(
        self, batches: Batches, processes: Processes, reduction: str, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._batches, self.processes, self.reduction = batches, processes, reduction
        self._dtype, self._device = dtype, device
        self._first_pass: tuple[int, float] | None = None
        self._checks = True

    @property
    def data(self) -> Iterable[Any]:
        """The batches as the user gave them."""
        return self._batches.data

    def read(self, dtype: torch.dtype | None = None) -> Iterator[tuple[float, Batch]]:
        """One pass over this rank's data: yield weights and batches, converted to the parameters' device and dtype.

        Raises InputError at the end if the total weight of the pass differs from the first pass'.
        """
        total, count = 0.0, 0
        for weight, batch in self._batches.read(dtype or self._dtype, self._device):
            yield weight, batch
            total, count = total + weight, count + 1
        then_count, then = self._first_pass = self._first_pass or (count, total)
        if not math.isclose(total, then, rel_tol=1e-9):
            raise InputError(
                f"data gave {count} batches of total weight {total:g}, at first {then_count} of {then:g}; it must give "
                "the same examples each time"
            )

    def cast(self, dtype: torch.dtype) -> Sample:
        """The same data in another floating dtype; what one pass over them has counted is shared."""
        other = copy.copy(self)
        other._dtype = dtype
        return other

    def unchecked(self) -> Sample:
        """The same data, whose terms are not looked at for NaN and infinity."""
        other = copy.copy(self)
        other._checks = False
        return other

    @cached_property
    def survey(self) -> Survey:
        """Counts from one pass over the data, made without calling the model."""
        weights, examples, failure = [], 0, None
        classes: list[set[int]] = []  # of each batch
        try:
            for weight, batch in self.read():
                weights.append(weight)
                examples += batch.num_examples
                if (
                    isinstance(batch.targets, Tensor)
                    and batch.targets.dim() == 1
                    and batch.targets.dtype == torch.int64
                ):
                    classes.append(set(batch.targets.tolist()))
        except Exception as error:
            failure = error
        self.processes.agree(failure)
        everyone = self.processes.gather((weights, examples, classes))
        together = tuple(weight for some, *_ in everyone for weight in some)
        if not together:
            empty = not any(True for _ in self._batches.data)
            raise InputError(
                "data is empty; there is no batch to average over"
                if empty
                else "every batch has weight 0: all targets are ignored"
            )
        first = sum(len(some) for some, *_ in everyone[: self.processes.rank])
        total = sum(count for _, count, _ in everyone)
        by_class = _by_class([batch for *_, some in everyone for batch in some], total)
        return Survey(together, total, len(weights), first, by_class)

    @property
    def shares(self) -> Tensor:
        """Each batch's share of the total weight, shape (all batches,), float64, in the order of ranks and batches."""
        weights = torch.tensor(self.survey.weights, dtype=torch.float64, device=self._device)
        return weights / weights.sum()

    def terms(
        self, fn: Callable[[Any], Tensor], *, over: Iterable[tuple[float, Any]] | None = None
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield ``w_b`` and ``fn(b)``, which has one shape, for each batch of this rank.

        ``over`` replaces the pass over the data by pairs of a weight and an argument of ``fn``, such as kept
        linearisations. Raises NonFiniteError if a value is NaN or infinite, and what :meth:`read` raises.
        """
        for count, (weight, item) in enumerate(self.read() if over is None else over):
            value = fn(item)
            if self._checks and not math.isfinite(float(value.detach().sum())):
                raise NonFiniteError(
                    f"the {'product' if value.dim() else 'loss'} of batch {getattr(item, 'index', count)} is NaN or "
                    "infinite; look at that batch's inputs, or use float64"
                )
            yield weight, value

    def mean(
        self,
        fn: Callable[[Any], Tensor],
        shape: Sequence[int] = (),
        *,
        over: Iterable[tuple[float, Any]] | None = None,
    ) -> Tensor:
        """``sum_b w_b fn(b) / sum_b w_b`` over all batches on all ranks, in one reduction.

        Of a loss with ``reduction="sum"`` it is ``sum_b fn(b)``. ``shape`` is that of ``fn(b)``, for ranks without
        data. What :meth:`terms` raises on one rank is raised on all.
        """
        return self.observed_mean(fn, shape, None, 0, over=over)[0]

    def observed_mean(
        self,
        fn: Callable[[Any], Tensor],
        shape: Sequence[int],
        look: Callable[[Tensor], Tensor] | None,
        num_looks: int,
        *,
        over: Iterable[tuple[float, Any]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`mean`, and the values of a linear function ``look`` on each batch's term.

        ``look`` maps ``fn(b)`` to a float64 tensor of ``num_looks`` entries. Returns the mean and these values, of
        shape (all batches, num_looks); the rows, weighted by :attr:`shares`, sum to ``look(mean)``.
        """
        found, failure = _Sum(self.reduction), None
        try:
            self._accumulate(found, fn, look, over)
        except Exception as error:
            if not self.processes:
                raise
            failure = error
        if self.processes:
            survey = self.survey
            total = torch.zeros(tuple(shape), dtype=self._dtype, device=self._device)
            seen = torch.zeros(len(survey.weights), num_looks, dtype=torch.float64, device=self._device)
            if failure is None and found.count:
                total = found.scaled().detach()
                if look is not None:
                    seen[survey.first_local : survey.first_local + survey.num_local] = torch.stack(found.seen)
            total, flat = self.processes.sum(total, seen.reshape(-1), failure)
            mean, seen = found.divided(total, sum(survey.weights)), flat.view_as(seen)
        else:
            mean = self._mean_of(found)
            seen = torch.stack(found.seen) if found.seen else torch.zeros(found.count, num_looks, dtype=torch.float64)
        return mean, seen if self.reduction == "mean" or not num_looks else seen / self.shares[:, None]

    def local_mean(self, fn: Callable[[Any], Tensor]) -> Tensor:
        """:meth:`mean` over this rank's batches only; it has a graph if its terms have one."""
        found = _Sum(self.reduction)
        self._accumulate(found, fn, None, None)
        return self._mean_of(found)

    def _accumulate(
        self,
        found: _Sum,
        fn: Callable[[Any], Tensor],
        look: Callable[[Tensor], Tensor] | None,
        over: Iterable[tuple[float, Any]] | None,
    ) -> None:
        for weight, value in self.terms(fn, over=over):
            found.add(weight, value, look)

    def _mean_of(self, found: _Sum) -> Tensor:
        if not found.count:
            _ = self.survey  # raises an error that says why
        return found.mean()


def _by_class(classes: Sequence[set[int]], num_examples: int) -> bool:
    """Whether batches of equal size hold less than half of the classes that they would if examples were mixed."""
    if len(classes) < 2:
        return False
    every = len(set().union(*classes))
    expected = every * (1 - (1 - 1 / every) ** (num_examples / len(classes)))
    return sum(map(len, classes)) / len(classes) < expected / 2


class _Sum:
    """``sum_b w_b x_b``, or ``sum_b x_b``; the weight of a single batch cancels in the mean and is not applied."""

    def __init__(self, reduction: str) -> None:
        self._weighted = reduction == "mean"
        self._total: Tensor | None = None
        self._first, self._weight, self.count = 1.0, 0.0, 0
        self.seen: list[Tensor] = []

    def add(self, weight: float, value: Tensor, look: Callable[[Tensor], Tensor] | None) -> None:
        if look is not None:
            self.seen.append(look(value))
        factor = weight if self._weighted else 1.0
        if self._total is None:
            self._total, self._first = value, factor
        else:
            total = self.scaled()
            # in place, unless the sum is to be differentiated
            self._total = total + factor * value if value.requires_grad else total.add_(value, alpha=factor)
        self.count, self._weight = self.count + 1, self._weight + weight

    def scaled(self) -> Tensor:
        """The sum, weighted if the risk is a mean."""
        assert self._total is not None
        return self._total * self._first if self.count == 1 and self._first != 1.0 else self._total

    def mean(self) -> Tensor:
        """The sum, divided by the sum of weights if the risk is a mean."""
        if self.count == 1 and self._weighted:
            assert self._total is not None
            return self._total
        return self.divided(self.scaled(), self._weight)

    def divided(self, total: Tensor, weight: float) -> Tensor:
        """``total / weight`` if the risk is a mean, else ``total``."""
        if not self._weighted:
            return total
        return total / weight if total.requires_grad else total.div_(weight)
