"""Products as a run takes them: counted, timed, shown and kept, by one meter."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyhessian_spectra.curvature import RiskOperator
from pyhessian_spectra.runs.journal import Answer, Journal
from pyhessian_spectra.spectra import LinearOperator, Meter

Progress = Callable[[str, int, int], None]


class Ledger:
    """Products and time spent so far, and how many products are still to come.

    Attributes
    ----------
    facts : dict
        What is known of the last product with each matrix, by the matrix' name.
    """

    def __init__(self, progress: Progress | None, forecasts: list[int]) -> None:
        self.progress, self.forecasts, self.closed = progress, forecasts, 0
        self.products, self.seconds = 0, 0.0
        self.facts: dict[str, Mapping[str, Any]] = {}
        self.seconds_per_product = 0.0  # with the whole matrix, once that is finished

    def count(self, what: str, products: int, seconds: float) -> None:
        self.products, self.seconds = self.products + products, self.seconds + seconds
        self._tell(what)

    def close_block(self, what: str, index: int) -> None:
        """A block is finished: what it took replaces what was expected of it."""
        self.closed, self.forecasts[index] = self.products, 0
        if index == 0:
            self.seconds_per_product = self.seconds / max(1, self.products)
        self._tell(what)

    def _tell(self, what: str) -> None:
        if self.progress:
            self.progress(what, self.products, max(self.products, self.closed + sum(self.forecasts)))


def watched(op: LinearOperator, what: str, ledger: Ledger, journal: Journal) -> Meter:
    """The operator, metered so that each product is taken through the journal and entered in the ledger."""

    def take(ask: str, v: Tensor, call: Callable[[], list[Tensor]]) -> list[Tensor]:
        def answer() -> Answer:
            start = time.perf_counter()
            arrays = call()
            facts: dict[str, Any] = {"seconds": time.perf_counter() - start}
            if isinstance(op, RiskOperator):
                facts |= {"linearised": op.linearised.name, "bytes": op.linearised_bytes}
            return Answer(arrays, facts)

        arrays, facts = journal.answer(ask, v, answer)
        ledger.facts[what] = facts
        ledger.count(what, 1 if v.dim() == 1 else v.shape[1], facts["seconds"])
        return arrays

    return Meter(op, take)
