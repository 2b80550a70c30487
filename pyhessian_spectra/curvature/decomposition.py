"""Decomposition: the Hessian, the Gauss-Newton matrix and what remains, over linearisations they share."""

from __future__ import annotations

from operator import attrgetter

from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.calling import Batch
from pyhessian_spectra.curvature.operators import RiskOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.spectra.operator import LinearOperator


class Decomposition:
    """``H = G + R`` of a risk: three operators that take the time and memory of one forward pass and one graph.

    Parameters
    ----------
    risk : EmpiricalRisk
        Its model returns one tensor, which its loss is taken of.
    memory_budget : int, optional
        Bytes that the shared linearisations may take, by default half of what is free on the device.

    Attributes
    ----------
    hessian, ggn, residual : LinearOperator, shape (n, n)
        ``H``, the generalised Gauss-Newton matrix ``G``, and ``R = H - G``; see :class:`ResidualOperator`.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> data = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> parts = Decomposition(EmpiricalRisk(model, torch.nn.MSELoss(), data))
    >>> [float(product) for product in parts.products(torch.ones(1))]
    [10.0, 10.0, 0.0]
    """

    def __init__(self, risk: EmpiricalRisk, *, memory_budget: int | None = None) -> None:
        self._shared = _Shared(risk, memory_budget=memory_budget)
        self.hessian: LinearOperator = _Part(self._shared, "hessian")
        self.ggn: LinearOperator = _Part(self._shared, "ggn")
        self.residual: LinearOperator = _Part(self._shared, "residual")

    @property
    def linearisation(self) -> str:
        """Whether linearisations are kept, and why, once the first product has decided it."""
        return self._shared.linearisation

    def products(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``H v``, ``G v`` and ``R v`` of shape (n,), for four thirds of the arithmetic of ``H v`` alone.

        ``H v`` is the sum of the other two, so that of a small ``R`` no digits are lost. Counts as one product of each.
        """
        hessian, ggn, residual = self._shared @ v
        for op in (self.hessian, self.ggn, self.residual):
            op.num_matvecs += 1
        return hessian, ggn, residual


class _Shared(RiskOperator):
    """The linearisations of all batches; a product with (n,) has the three parts' products for rows."""

    def _linearise(self, batch: Batch) -> autodiff.Split:
        return autodiff.Split(self.risk, self._point, batch)


class _Part(RiskOperator):
    """One of the matrices whose linearisations are shared."""

    def __init__(self, shared: _Shared, name: str) -> None:
        super().__init__(shared.risk, memory_budget=shared._budget)
        self._shared, self._pick = shared, attrgetter(name)

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return self._pick(self._shared._linearise(batch))

    def _decide(self) -> None:
        self._shared._decide()
        if self._decided:
            return
        self._decided = True
        self.linearisation, self._kept_bytes = self._shared.linearisation, self._shared._kept_bytes
        if self._shared._kept is not None:
            self._kept = [(weight, self._pick(split)) for weight, split in self._shared._kept]
