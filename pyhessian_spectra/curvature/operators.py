"""Which curvature matrices there are: Hessian, Gauss-Newton, their difference, and the empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.operator import LinearOperator


class HessianOperator(RiskOperator):
    """The Hessian of a risk (Pearlmutter 1994), exact up to rounding.

    Examples
    --------
    >>> import torch
    >>> from pyhessian_spectra import EmpiricalRisk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> data = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> op = HessianOperator(EmpiricalRisk(model, torch.nn.MSELoss(), data))
    >>> op @ torch.ones(1)
    tensor([10.])
    """

    kind = "Hessian"

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.hessian(self.risk.objective, self.point, batch)

    @staticmethod
    def from_loss(loss: Tensor, params: Iterable[Tensor]) -> LinearOperator:
        """The Hessian of a scalar loss that was computed with a graph, with respect to tensors in that graph.

        The operator keeps the gradient's graph; ``.grad`` is not touched. Raises InputError if the loss has no graph.
        """
        return _LossHessian(loss, tuple(params))


class GGNOperator(RiskOperator):
    """The generalised Gauss-Newton matrix ``J^T H_out J`` (Schraudolph 2002); semidefinite if the loss is convex."""

    kind = "GGN"

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.Split(self.risk.objective, self.point, batch).ggn


class ResidualOperator(RiskOperator):
    """``H - G``, the Hessian minus the generalised Gauss-Newton matrix: the part from the outputs' second derivatives.

    It is ``sum_c (d loss / d z_c) (d^2 z_c / d theta^2)``, averaged over examples (Sagun, Bottou and LeCun 2016; Papyan
    2019). A product costs as much as one with the Hessian and is taken directly, not as a difference of two products.
    """

    kind = "Residual"

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.Split(self.risk.objective, self.point, batch).residual


class EmpiricalFisherOperator(RiskOperator):
    """The empirical Fisher matrix ``sum_i c_i g_i g_i^T / sum_i c_i`` over examples.

    ``g_i`` is the gradient of example i's own loss and ``c_i`` the number of terms that this loss averages (1 for
    classifiers), as if every batch had one example. The loss must be a mean.
    """

    kind = "EmpiricalFisher"

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.fisher(self.risk.objective, self.point, batch, self.risk.num_terms)


class _LossHessian(LinearOperator):
    kind = "Hessian"

    def __init__(self, loss: Tensor, params: Sequence[Tensor]) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError("loss must be a scalar tensor with a graph; compute it without torch.no_grad()")
        if not params:
            raise InputError("params is empty; pass the tensors to differentiate with respect to")
        layout = ParameterLayout({str(i): p.shape for i, p in enumerate(params)})
        super().__init__(layout.n, dtype=params[0].dtype, device=params[0].device)
        self._gradient = autodiff.GradientGraph(layout, loss, params)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._gradient.derivative(v, retain_graph=True)
