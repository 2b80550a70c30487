"""Products as a run takes them: counted, timed, shown and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyhessian_spectra.curvature import RiskOperator
from pyhessian_spectra.runs.journal import Answer, Journal
from pyhessian_spectra.spectra import LinearOperator, Meter

Progress = Callable[[str, int, int], None]


class Watch:
    """Counts, times, shows and keeps products; ``forecasts`` says how many each unfinished block should take."""

    def __init__(self, journal: Journal, progress: Progress | None, forecasts: list[int]) -> None:
        self._journal, self._progress, self._forecasts, self._closed = journal, progress, forecasts, 0
        self.products, self.seconds = 0, 0.0
        self.seconds_per_product = 0.0  # with the whole matrix, once that is finished
        self.facts: Mapping[str, Any] = {}  # of the first product of this block

    def meter(self, op: LinearOperator, what: str) -> Meter:
        """The operator, with every product taken through the journal, counted, and shown under the name ``what``."""

        def take(op: LinearOperator, ask: str, v: Tensor, call: Callable[[], list[Tensor]]) -> list[Tensor]:
            def answer() -> Answer:
                start = time.perf_counter()
                arrays = call()
                facts: dict[str, Any] = {"seconds": time.perf_counter() - start}
                if isinstance(op, RiskOperator):
                    facts |= {"linearised": op.linearised.name, "bytes": op.linearised_bytes}
                return arrays, facts

            arrays, facts = self._journal.answer(ask, v, answer)
            self.facts = self.facts or facts
            self.products += 1 if v.dim() == 1 else v.shape[1]
            self.seconds += facts["seconds"]
            self.tell(what)
            return arrays

        return Meter(op, take)

    def close_block(self, what: str, index: int) -> None:
        """A block is finished: what it took replaces what was expected of it."""
        self._closed, self._forecasts[index], self.facts = self.products, 0, {}
        if index == 0:
            self.seconds_per_product = self.seconds / max(1, self.products)
        self.tell(what)

    def tell(self, what: str) -> None:
        """Show what is under way."""
        if self._progress:
            self._progress(what, self.products, max(self.products, self._closed + sum(self._forecasts)))
