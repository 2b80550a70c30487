"""Sample: the data of a risk on all ranks, and the only loop over batches and processes."""

from __future__ import annotations

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
    """What one pass over the data of all ranks found."""

    weights: tuple[float, ...]  # of all batches, in the order of ranks
    num_examples: int
    num_local: int  # batches of this rank
    first_local: int  # where they begin among all


class Sample:
    """Batches on this rank and on others, and means over all of them.

    Parameters
    ----------
    batches : Batches
        Of this rank.
    processes : Processes
    reduction : {"mean", "sum"}
        Whether terms are averaged by weight or added.
    dtype, device
        Of the parameters, and so of floating inputs and of all sums.
    """

    def __init__(
        self, batches: Batches, processes: Processes, reduction: str, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._batches, self.processes, self.reduction = batches, processes, reduction
        self._dtype, self._device = dtype, device
        self._first_pass: tuple[int, float] | None = None

    @property
    def data(self) -> Iterable[Any]:
        """The batches as they were given."""
        return self._batches.data

    def read(self, dtype: torch.dtype | None = None) -> Iterator[tuple[float, Batch]]:
        """One pass over this rank's data: weights and batches, on the parameters' device and in their dtype."""
        return self._batches.read(dtype or self._dtype, self._device)

    @cached_property
    def survey(self) -> Survey:
        """Counts of one pass over the data, without calling the model."""
        weights, examples, failure = [], 0, None
        try:
            for weight, batch in self.read():
                weights.append(weight)
                examples += batch.num_examples
            self._compare(len(weights), sum(weights))
        except Exception as error:
            failure = error
        self.processes.agree(failure)
        everyone = self.processes.gather((weights, examples))
        together = tuple(weight for some, _ in everyone for weight in some)
        if not together:
            empty = not any(True for _ in self._batches.data)
            raise InputError(
                "data is empty; there is no batch to average over"
                if empty
                else "every batch has weight 0: all targets are ignored"
            )
        first = sum(len(some) for some, _ in everyone[: self.processes.rank])
        return Survey(together, sum(count for _, count in everyone), len(weights), first)

    @property
    def shares(self) -> Tensor:
        """Each batch's share of the whole weight, shape (all batches,), float64, in the order of ranks and batches."""
        weights = torch.tensor(self.survey.weights, dtype=torch.float64, device=self._device)
        return weights / weights.sum()

    def terms(
        self, fn: Callable[[Any], Tensor], *, over: Iterable[tuple[float, Any]] | None = None
    ) -> Iterator[tuple[float, Tensor]]:
        """``w_b`` and ``fn(b)`` for each batch of this rank.

        Parameters
        ----------
        fn : callable
            A batch to a tensor, of the same shape for each batch.
        over : iterable of (float, object), optional
            Weights and what ``fn`` is called with, in place of a pass over the data: linearisations that were kept.

        Raises
        ------
        InputError
            The pass did not see the batches the first one saw.
        NonFiniteError
            The value for some batch is NaN or infinite; the sentence says which.
        """
        weights, count = 0.0, 0
        for weight, item in self.read() if over is None else over:
            value = fn(item)
            if not math.isfinite(float(value.detach().sum())):
                raise NonFiniteError(
                    f"the {'product' if value.dim() else 'loss'} of batch {getattr(item, 'index', count)} is NaN or "
                    "infinite; look at that batch's inputs, or use float64"
                )
            weights, count = weights + weight, count + 1
            yield weight, value
        if over is None:
            self._compare(count, weights)

    def _compare(self, count: int, weight: float) -> None:
        """Raise where a pass was not as the first one."""
        then_count, then_weight = self._first_pass = self._first_pass or (count, weight)
        if not math.isclose(weight, then_weight, rel_tol=1e-9):
            raise InputError(
                f"data gave {count} batches of total weight {weight:g}, at first {then_count} of {then_weight:g}; it "
                "must give the same examples each time"
            )

    def mean(
        self,
        fn: Callable[[Any], Tensor],
        shape: Sequence[int] = (),
        *,
        over: Iterable[tuple[float, Any]] | None = None,
    ) -> Tensor:
        """``sum_b w_b fn(b) / sum_b w_b`` over all batches on all ranks, in one reduction.

        Of a loss with ``reduction="sum"`` it is ``sum_b fn(b)``.

        Parameters
        ----------
        fn, over
            See :meth:`terms`, whose errors are raised on all ranks.
        shape : sequence of int
            Of ``fn(b)``.
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
        """:meth:`mean`, and what a linear function says of each batch's term on the way.

        Parameters
        ----------
        fn, shape, over
            As for :meth:`mean`.
        look : callable or None
            ``fn(b)`` to a float64 tensor of ``num_looks`` entries.

        Returns
        -------
        mean : Tensor
        seen : Tensor, shape (all batches, num_looks), float64
            Weighted by :attr:`shares` its rows sum to what the function says of the mean.
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
        """:meth:`mean` over this rank's batches alone, with the graph of its terms where they have one."""
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
            _ = self.survey  # which says why there is none
        return found.mean()


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
            # in place, but where there is a graph that differentiates the sum
            self._total = total + factor * value if value.requires_grad else total.add_(value, alpha=factor)
        self.count, self._weight = self.count + 1, self._weight + weight

    def scaled(self) -> Tensor:
        """The sum."""
        assert self._total is not None
        return self._total * self._first if self.count == 1 and self._first != 1.0 else self._total

    def mean(self) -> Tensor:
        """The sum, divided by the sum of weights where it is weighted."""
        if self.count == 1 and self._weighted:
            assert self._total is not None
            return self._total
        return self.divided(self.scaled(), self._weight)

    def divided(self, total: Tensor, weight: float) -> Tensor:
        """``total / weight`` where the sum is weighted."""
        if not self._weighted:
            return total
        return total / weight if total.requires_grad else total.div_(weight)
