"""An operator whose products are counted, timed, reported and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from pyhessian_spectra.analysis.journal import Answer, Journal
from pyhessian_spectra.curvature.operators import RiskOperator
from pyhessian_spectra.spectra import LinearOperator

Progress = Callable[[str, int, int], None]


class Ledger:
    """Products and time spent so far, and how many products are still to come."""

    def __init__(self, progress: Progress | None, forecasts: list[int]) -> None:
        self.progress, self.forecasts, self.closed = progress, forecasts, 0
        self.products, self.seconds = 0, 0.0
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


class Watched(LinearOperator):
    """An operator whose products are timed, reported and kept as they are taken.

    Attributes
    ----------
    linearisation : str
        That of the operator, or of the one that took the products an earlier run has kept.
    """

    def __init__(self, op: RiskOperator, what: str, ledger: Ledger, journal: Journal) -> None:
        super().__init__(op.shape[0], dtype=op.dtype, device=op.device)
        self.linearisation = op.linearisation
        self._op, self._what, self._ledger, self._journal = op, what, ledger, journal

    def _product(self, v: Tensor) -> Tensor:
        return self._answer("product", v, lambda: [self._op @ v])[0]

    _matvec = _matmat = _product

    def _with_forms(self, v: Tensor, vectors: Tensor, sections: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        product, weights, own, crossed = self._answer(
            "forms", v, lambda: list(self._op.with_forms(v, vectors, sections))
        )
        return product, weights, own, crossed

    def _answer(self, kind: str, v: Tensor, take: Callable[[], list[Tensor]]) -> list[Tensor]:
        def ask() -> Answer:
            start = time.perf_counter()
            arrays = take()
            facts = {"seconds": time.perf_counter() - start, "linearisation": self._op.linearisation}
            return Answer(arrays, {**facts, "columns": self._op.columns})

        arrays, facts = self._journal.answer(kind, v, ask)
        # what an earlier run found to be fastest rounds its own way, so the products to come are taken likewise
        self._op.columns, self.linearisation = facts["columns"], facts["linearisation"]
        self._ledger.count(self._what, 1 if v.dim() == 1 else v.shape[1], facts["seconds"])
        return arrays
