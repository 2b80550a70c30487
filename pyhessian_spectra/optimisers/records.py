"""What a step with curvature did, for the record: figures and tests read it, the optimisers do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.cg import CGResult
from pyhessian_spectra.spectra.results import Floats


@dataclass(frozen=True, repr=False)
class SolveRecord(Shown):
    """How the linear system of one block was solved.

    Parameters
    ----------
    label : str
        The block's name.
    status : str
        Why it ended, as in :class:`CGResult`; ``"exact"`` if the matrix was decomposed.
    iterations : int
        Iterations of conjugate gradients.
    num_products : int
        Products with the block: its iterations, one for a start that is not zero, and those taken in vain between two
        looks at a GPU; as many as it has columns where the matrix was built.
    residuals : ndarray, shape (iterations + 1,), float64
        ``||g + (A + damping) d||`` before each iteration and after the last.
    model : ndarray, shape (iterations + 1,), float64
        ``g^T d + d^T (A + damping) d / 2``.
    """

    label: str
    status: str
    iterations: int
    num_products: int
    residuals: Floats
    model: Floats

    @classmethod
    def of(cls, label: str, found: CGResult, num_products: int) -> SolveRecord:
        """The record of what conjugate gradients found."""
        return cls(label, found.status, found.num_iterations, num_products, found.residuals, found.model)


@dataclass(frozen=True, repr=False)
class StepRecord(Shown):
    """One step of an optimiser.

    Parameters
    ----------
    step : int
        Counted from 1.
    loss, loss_after : float
        The minibatch's loss before the step and after it; of a step that was taken back, at the parameters that it
        led to, if it led to any.
    predicted : float
        By how much the quadratic model without damping, ``g^T s + s^T A s / 2``, says that the loss falls along the
        step ``s`` that was taken, with ``A`` block-diagonal if there are several blocks. NaN if parameters of one block
        have steps of different lengths.
    gradient_norm, step_norm : float
        Of the minibatch's gradient, and of the step before a line search.
    factor : float
        The line search's, by which the step was multiplied; 1 without one.
    damping : tuple of float
        Of each block.
    solves : tuple of SolveRecord
        One for each block.
    rejected : str or None
        Why the parameters are what they were, if they are.
    """

    step: int
    loss: float
    loss_after: float
    predicted: float
    gradient_norm: float
    step_norm: float
    factor: float
    damping: tuple[float, ...]
    solves: tuple[SolveRecord, ...]
    rejected: str | None

    @property
    def actual(self) -> float:
        """By how much the minibatch's loss fell."""
        return self.loss - self.loss_after

    @property
    def num_products(self) -> int:
        """Products of all blocks."""
        return sum(solve.num_products for solve in self.solves)

    @property
    def negative_curvature(self) -> bool:
        """Whether a block met a direction along which its matrix is not positive."""
        return any(solve.status == "negative curvature" for solve in self.solves)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON has them: None for what is NaN or infinite."""
        found = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(self).items()}
        solves = [{**vars(s), "residuals": s.residuals.tolist(), "model": s.model.tolist()} for s in self.solves]
        return {**found, "solves": solves}
