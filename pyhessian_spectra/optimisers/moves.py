"""How an optimiser changes parameters: along a step that may be taken back, and to an average and back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.errors import NonFiniteError
from pyhessian_spectra.optimisers.checks import require_range

#: ``line_search(loss_at, loss, slope) -> factor``; see :func:`backtracking`.
LineSearch = Callable[[Callable[[float], float], float, float], float]


class Trial:
    """A step of some parameters, given by a tensor for each, and the loss there."""

    def __init__(self, params: Sequence[Tensor], step: Sequence[Tensor], loss: Callable[[], float]) -> None:
        self._params, self._step, self._loss = params, step, loss
        self._before = [p.detach().clone() for p in params]

    def take(
        self, line_search: LineSearch | None, *, loss: float, slope: float, norm: float
    ) -> tuple[float, float, str | None]:
        """Move the parameters; return the loss there, the step's factor, and why they were moved back, if they were.

        ``loss`` is the one before, ``slope`` the step's inner product with the gradient, ``norm`` its length.
        """
        if not norm:  # at a stationary point, or without a length
            return loss, 1.0, None
        if not math.isfinite(norm):
            return math.nan, 1.0, "the step is NaN or infinite; damp more, or look at the curvature's batch"
        try:
            factor = 1.0 if line_search is None else line_search(self._loss_at, loss, slope)
            factor = require_range("the factor of line_search", factor)
            after = self._loss_at(factor) if factor else math.nan
        except BaseException:
            self._place(0.0)
            raise
        if math.isfinite(after):
            return after, factor, None
        self._place(0.0)
        if not factor:
            return loss, factor, "the line search finds nothing better; damp more, or take another curvature batch"
        return after, factor, "the loss after it is NaN or infinite; damp more, or lower lr"

    def _place(self, factor: float) -> None:
        for p, start, part in zip(self._params, self._before, self._step, strict=True):
            p.copy_(torch.add(start, part, alpha=factor) if factor else start)

    def _loss_at(self, factor: float) -> float:
        self._place(factor)
        try:
            return self._loss()
        except NonFiniteError:
            return math.inf


def average(state: MutableMapping[Tensor, dict[str, Any]], params: Sequence[Tensor], decay: float) -> None:
    """Move the exponential average in each parameter's state; the first is the parameter itself."""
    for p in params:
        if "average" in state[p]:
            state[p]["average"].lerp_(p.detach(), 1 - decay)
        else:
            state[p]["average"] = p.detach().clone()


@contextlib.contextmanager
def placed(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Within this context the parameters have these values."""
    own = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, value in zip(params, values, strict=True):
            p.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(params, own, strict=True):
                p.copy_(value)
