"""Curvature matrices of a risk as linear operators."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.calling import Batch
from pyhessian_spectra.curvature.inspection import measured_bytes
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.basis import free_bytes
from pyhessian_spectra.spectra.operator import LinearOperator

_T = TypeVar("_T")

# Products carried by one backward pass: fewer than 4 are not worth measuring, more than 32 gained nothing.
_FEWEST_COLUMNS, _MOST_COLUMNS = 4, 32


class RiskOperator(LinearOperator):
    """A curvature matrix of a risk, at the parameters the model has when this is built.

    The linearisations of all batches are kept between products when they fit a memory budget, and rebuilt for
    each product when they do not.

    Parameters
    ----------
    risk : EmpiricalRisk
    memory_budget : int, optional
        Bytes that kept linearisations may take, by default half of what is free on the device. 0 rebuilds always.

    Attributes
    ----------
    linearisation : str
        Whether linearisations are kept, and why, once the first product has decided it.
    columns : int or None
        Products that one backward pass carries where many are asked for at once; None until it was measured.
    """

    def __init__(self, risk: EmpiricalRisk, *, memory_budget: int | None = None) -> None:
        if not isinstance(risk, EmpiricalRisk):
            raise InputError(
                f"an EmpiricalRisk is needed, got {type(risk).__name__}; pass EmpiricalRisk(model, loss_fn, data)"
            )
        super().__init__(risk.n, dtype=risk.dtype, device=risk.device)
        self.risk = risk
        self.linearisation = "undecided: no product has been taken yet"
        self.columns: int | None = None
        self._budget = free_bytes(risk.device) // 2 if memory_budget is None else memory_budget
        self._point = risk.point()
        self._kept: list[tuple[float, autodiff.Linearisation]] | None = None
        self._kept_bytes = 0
        self._decided = False

    @abstractmethod
    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        """The linearisation of one batch."""

    def _matvec(self, v: Tensor) -> Tensor:
        self._decide()
        if self._kept is not None:
            return self.risk.mean(lambda kept: kept.matvec(v), over=self._kept)
        return self.risk.mean(lambda batch: self._linearise(batch).matvec(v, last=True))

    def _terms(self, v: Tensor) -> Iterator[tuple[float, Tensor]]:
        if self.risk.distributed:  # the other ranks' batches are not seen here, only the sum is
            yield from super()._terms(v)
            return
        self._decide()
        if self._kept is not None:
            products = self.risk.terms(lambda kept: kept.matvec(v), over=self._kept)
        else:
            products = self.risk.terms(lambda batch: self._linearise(batch).matvec(v, last=True))
        for weight, product in products:
            yield weight / self.risk.survey.weight, product

    def _matmat(self, v: Tensor) -> Tensor:
        self._decide()
        rows = v.T.contiguous()
        if self.columns is None and len(rows) >= _FEWEST_COLUMNS:
            self.columns = self._measured_columns(rows)
        step = self.columns if self._kept and self.columns else 1
        return torch.cat([self._products(rows[i : i + step]) for i in range(0, len(rows), step)]).T

    def _products(self, rows: Tensor) -> Tensor:
        """Products with the rows of (k, n) in one backward pass; shape (k, n)."""
        if len(rows) == 1:
            return self._matvec(rows[0])[None]
        return self.risk.mean(lambda kept: kept.matmat(rows), over=self._kept)

    def _measured_columns(self, rows: Tensor) -> int:
        """How many products one backward pass should carry, measured once.

        Many at once save overhead on small networks; on large ones they cost memory and cache and gain nothing.
        """
        width = min(len(rows), _MOST_COLUMNS, self._budget // max(1, self._kept_bytes))
        if self._kept is None or width < _FEWEST_COLUMNS:
            return 1
        signs = torch.where(torch.arange(width, device=self.device) % 3 == 1, -1.0, 1.0).to(self.dtype)
        try:
            block, together = _best_of_two(lambda: self._products(rows[:width]), self.device)
        except InputError:  # vmap does not know every operation; one by one always works
            return 1
        single, apart = _best_of_two(lambda: self._products((signs @ rows[:width])[None])[0], self.device)
        # vmap also gets some wrong (torch 2.13: batch_norm in train mode): products must be linear in their columns
        rounding = 100 * width * torch.finfo(self.dtype).eps * block.abs().max()
        agree = bool((signs @ block - single).abs().max() <= rounding)
        return width if agree and together < width * apart else 1

    def _decide(self) -> None:
        """Keep the linearisations of all batches or of none: batches may come in another order next time."""
        if self._decided:
            return
        self._decided = True
        self.linearisation = "rebuilt for each product: the memory budget is 0"
        if self._budget <= 0:
            return
        count, kept = self.risk.survey.num_batches, []
        for weight, batch in self.risk.batches():
            with measured_bytes() as size:
                kept.append((weight, self._linearise(batch)))
            self._kept_bytes += size[0]
            forecast = self._kept_bytes * count / len(kept)
            if forecast > self._budget:
                self.linearisation = (
                    f"rebuilt for each product: keeping it would take {forecast / 2**20:,.0f} MiB, the budget is "
                    f"{self._budget / 2**20:,.0f} MiB"
                )
                return
        self.linearisation = (
            f"kept between products: {self._kept_bytes / 2**20:,.1f} MiB for {count} batch{'es' if count > 1 else ''}"
        )
        self._kept = kept


class HessianOperator(RiskOperator):
    """The Hessian of a risk (Pearlmutter 1994), exact up to rounding.

    Examples
    --------
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> data = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> op = HessianOperator(EmpiricalRisk(model, torch.nn.MSELoss(), data))
    >>> op @ torch.ones(1)
    tensor([10.])
    """

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.hessian(self.risk, self._point, batch)

    @staticmethod
    def from_loss(loss: Tensor, params: Iterable[Tensor]) -> LinearOperator:
        """The Hessian of a scalar loss whose graph is at hand, with respect to tensors in that graph.

        The gradient's graph is kept as long as the operator lives; ``.grad`` is not touched.
        """
        return _LossHessian(loss, tuple(params))


class GGNOperator(RiskOperator):
    """The generalised Gauss-Newton matrix ``J^T H_out J`` (Schraudolph 2002); semidefinite for convex losses."""

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.Split(self.risk, self._point, batch).ggn


class ResidualOperator(RiskOperator):
    """``H - G``, the Hessian less the generalised Gauss-Newton matrix: the second derivatives of the outputs.

    ``sum_c (d loss / d z_c) (d^2 z_c / d theta^2)``, a mean over examples (Sagun, Bottou and LeCun 2016; Papyan 2019).
    A product costs what one with the Hessian does and is taken directly, not as a difference of two.
    """

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.Split(self.risk, self._point, batch).residual


class EmpiricalFisherOperator(RiskOperator):
    """The empirical Fisher matrix ``sum_i c_i g_i g_i^T / sum_i c_i`` over examples.

    ``g_i`` is the gradient of example i's own loss and ``c_i`` the number of terms that loss averages, so it is what
    batches of one example give; for classifiers ``c_i = 1``.
    """

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        return autodiff.fisher(self.risk, self._point, batch)


class _LossHessian(LinearOperator):
    def __init__(self, loss: Tensor, params: Sequence[Tensor]) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError("loss must be a scalar tensor with a graph; compute it without torch.no_grad()")
        if not params:
            raise InputError("params is empty; pass the tensors to differentiate with respect to")
        layout = ParameterLayout({str(i): p.shape for i, p in enumerate(params)})
        super().__init__(layout.n, dtype=params[0].dtype, device=params[0].device)
        self._gradient = autodiff.GradientGraph(layout, loss, params)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._gradient.derivative(v)


def timed(call: Callable[[], _T], device: torch.device) -> tuple[_T, float]:
    """The result of a call that may run asynchronously on a device, and its wall time in seconds."""
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start


def _best_of_two(call: Callable[[], _T], device: torch.device) -> tuple[_T, float]:
    """The result of a call and its seconds, the shorter of two runs: the first may set things up.

    On the CPU it is the thread's own time: another process's turn falls on the longer of two calls more often, and
    would decide between them.
    """

    def own() -> tuple[_T, float]:
        start = time.thread_time()
        return call(), time.thread_time() - start

    return min((own() if device.type == "cpu" else timed(call, device) for _ in range(2)), key=lambda pair: pair[1])
