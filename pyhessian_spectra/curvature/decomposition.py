"""Decomposition: the Hessian, the Gauss-Newton matrix and their difference from shared linearisations."""

from __future__ import annotations

from operator import attrgetter

from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.operators import GGNOperator, HessianOperator, ResidualOperator
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import Linearised, RiskOperator


class Decomposition:
    """``H = G + R`` of a risk: three operators that share the time and memory of one forward pass and one graph.

    Parameters
    ----------
    risk : EmpiricalRisk
        With a loss of outputs and targets.
    point : Point, optional
        By default a copy of the model's current parameters.

    Attributes
    ----------
    hessian, ggn, residual : RiskOperator, shape (n, n)
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

    def __init__(self, risk: EmpiricalRisk, *, point: Point | None = None) -> None:
        self._shared = _Shared(risk, point=point)
        self.hessian: RiskOperator = _Part(self._shared, "hessian", HessianOperator.kind)
        self.ggn: RiskOperator = _Part(self._shared, "ggn", GGNOperator.kind)
        self.residual: RiskOperator = _Part(self._shared, "residual", ResidualOperator.kind)

    @property
    def linearised(self) -> Linearised:
        """Whether linearisations are kept between products; the first product decides it."""
        return self._shared.linearised

    def products(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``H v``, ``G v`` and ``R v``, each of shape (n,), for four thirds of the arithmetic of ``H v`` alone.

        ``H v`` is computed as ``G v + R v``, so that a small ``R v`` loses no digits.
        """
        hessian, ggn, residual = self._shared.together(v)
        return hessian, ggn, residual


class _Shared(RiskOperator):
    """The linearisations of all batches, whose products have a row for each of H, G and R."""

    def together(self, v: Tensor) -> Tensor:
        """The products with ``v`` (n,), shape (3, n)."""
        self._check(v)
        return self._matvec(v.detach())

    def _linearise(self, batch: Batch) -> autodiff.Split:
        return autodiff.Split(self.risk.objective, self.point, batch)

    @property
    def _product_shape(self) -> tuple[int, ...]:
        return (3, self.n)


class _Part(RiskOperator):
    """One of the three matrices, on the shared linearisations."""

    def __init__(self, shared: _Shared, name: str, kind: str) -> None:
        super().__init__(shared.risk, point=shared.point)
        self.kind, self._shared, self._pick = kind, shared, attrgetter(name)

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return self._pick(autodiff.Split(self.risk.objective, self.point, batch))

    def _decide(self) -> None:
        if self.point is not self._shared.point:
            super()._decide()
            return
        self._shared._decide()
        self._decision.linearised, self._decision.num_bytes = self._shared.linearised, self._shared.linearised_bytes
        if self._kept is None and self._shared._kept is not None:
            self._kept = [(weight, self._pick(split)) for weight, split in self._shared._kept]
