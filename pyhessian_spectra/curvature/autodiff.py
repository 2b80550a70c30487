"""Derivatives of one batch's loss; with ``inspection``, the only callers of torch.autograd on a user's model.

A *linearisation* is the derivative of something at a point, built once and applied to many vectors: the graph
of a gradient for the Hessian, the Gauss-Newton matrix and what remains between them. Building it costs one or two
gradients, applying it less than building; its owner decides whether to keep it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pyhessian_spectra.curvature.calling import Batch, Point, called, loss_of, one_tensor, outputs_of
from pyhessian_spectra.curvature.inspection import refuse_once_differentiable
from pyhessian_spectra.curvature.parameters import ParameterLayout

if TYPE_CHECKING:
    from pyhessian_spectra.curvature.risk import EmpiricalRisk


class _Product(Protocol):
    """A product with (n,), or with the rows of (k, n) where ``batched``; ``last`` frees the graph on the way."""

    def __call__(self, v: Tensor, *, batched: bool, last: bool) -> Tensor: ...


def loss(risk: EmpiricalRisk, point: Point, batch: Batch) -> Tensor:
    """The loss of one batch, a scalar without graph."""
    with torch.no_grad(), called(risk, batch):
        return loss_of(risk, outputs_of(risk, point, batch), batch)


def gradient(risk: EmpiricalRisk, point: Point, batch: Batch) -> Tensor:
    """The gradient of one batch's loss, shape (n,)."""
    with called(risk, batch):
        value = loss_of(risk, outputs_of(risk, point, batch), batch)
        return risk.layout.flatten(_grad(value, point.coordinates))


class Linearisation:
    """A symmetric matrix of one batch, ready to be applied to many vectors."""

    def __init__(self, risk: EmpiricalRisk, batch: Batch, product: _Product) -> None:
        self.index, self._risk, self._batch, self._product = batch.index, risk, batch, product

    def matvec(self, v: Tensor, *, last: bool = False) -> Tensor:
        """The product with ``v`` of shape (n,); ``last`` frees the graph on the way."""
        with called(self._risk, self._batch):
            return self._product(v, batched=False, last=last)

    def matmat(self, rows: Tensor) -> Tensor:
        """Products with the rows of (k, n), all at once; shape (k, n)."""
        with called(self._risk, self._batch):
            return self._product(rows, batched=True, last=False)


def hessian(risk: EmpiricalRisk, point: Point, batch: Batch) -> Linearisation:
    """The Hessian of one batch's loss, by double backward (Pearlmutter 1994) through the graph of its gradient."""
    with torch.enable_grad(), called(risk, batch):
        value = loss_of(risk, outputs_of(risk, point, batch), batch)
        return Linearisation(risk, batch, GradientGraph(risk.layout, value, point.coordinates).derivative)


class Split(Linearisation):
    """The Hessian, its Gauss-Newton matrix and what remains, of one batch; products are of shape (3, n)."""

    def __init__(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        with torch.enable_grad(), called(risk, batch):
            outputs = one_tensor(outputs_of(risk, point, batch))
            graph = SplitGraph(risk.layout, outputs, loss_of(risk, outputs, batch), point.coordinates)
        super().__init__(risk, batch, graph.together)
        self.hessian = Linearisation(risk, batch, graph.hessian)
        self.ggn = Linearisation(risk, batch, graph.ggn)
        self.residual = Linearisation(risk, batch, graph.residual)


def fisher(risk: EmpiricalRisk, point: Point, batch: Batch) -> Linearisation:
    """``sum_i c_i g_i g_i^T / sum_i c_i`` of one batch, ``g_i`` the gradient of example i's loss, ``c_i`` its terms.

    The Gauss-Newton matrix of ``sum_i c_i l_i^2 / 2 sum_i c_i``, with the examples' losses for outputs.
    """
    with torch.enable_grad(), called(risk, batch):
        outputs = one_tensor(outputs_of(risk, point, batch))
        terms = torch.tensor([risk.number_of_terms(target[None]) for target in batch.targets], dtype=torch.float64)
        counted = terms > 0
        losses = torch.func.vmap(lambda z, y: risk.loss_fn(z[None], y[None]))(outputs[counted], batch.targets[counted])
        shares = (terms[counted] / terms.sum()).to(risk.device, risk.dtype)
        graph = SplitGraph(risk.layout, losses, (shares * losses**2).sum() / 2, point.coordinates)
        return Linearisation(risk, batch, graph.ggn)


class GradientGraph:
    """The gradient of a scalar with its graph, to be differentiated along vectors."""

    def __init__(self, layout: ParameterLayout, value: Tensor, coordinates: Sequence[Tensor]) -> None:
        self._layout, self._coordinates = layout, coordinates
        refuse_once_differentiable(value)
        self._gradient = _grad(value, coordinates, create_graph=True)

    def derivative(self, v: Tensor, *, batched: bool = False, last: bool = False) -> Tensor:
        """The Hessian of the scalar times (n,), or times the rows of (k, n) where ``batched``."""
        parts = _grad(
            self._gradient, self._coordinates, self._layout.unflatten(v), batched=batched, retain_graph=not last
        )
        return _join(parts, v.shape[:-1])


class SplitGraph:
    """The gradient ``J^T s`` of a scalar of outputs with its graph; ``s`` are the slopes of the scalar in the outputs.

    Along ``v`` its derivative is ``H v``, and ``R v`` where ``s`` is held fixed. With respect to ``s`` it is ``J v``,
    which the graph of ``s`` takes on to ``G v = J^T (second derivative of the scalar in the outputs) J v``. A product
    with G takes two thirds of the arithmetic of one with H or R, and all three at once four thirds.
    """

    def __init__(self, layout: ParameterLayout, outputs: Tensor, value: Tensor, coordinates: Sequence[Tensor]) -> None:
        self._layout, self._coordinates = layout, coordinates
        refuse_once_differentiable(value)
        self._slopes = _grad(value, (outputs,), create_graph=True)[0]
        if not self._slopes.requires_grad:  # the scalar is linear in the outputs
            self._slopes.requires_grad_()
        self._gate = _Gate()
        self._slopes.register_hook(self._gate)
        self._cotangent = self._slopes.view_as(self._slopes)
        self._gradient = _grad(outputs, coordinates, (self._cotangent,), create_graph=True)

    def hessian(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        """The products with H."""
        return _join(self._along(v, self._coordinates, batched=batched, last=last), v.shape[:-1])

    def residual(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        """The products with R, by themselves: nothing cancels as in a difference of H and G."""
        with self._gate.closed():
            return self.hessian(v, batched=batched, last=last)

    def ggn(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        """The products with G."""
        (pushed,) = self._along(v, (self._cotangent,), batched=batched, last=False)
        return self._pull_back(pushed, v, batched=batched, last=last)

    def together(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        """The products with H, G and R; shape (3, n), or (3, k, n) where ``batched``."""
        with self._gate.closed():
            pushed, *rest = self._along(v, (self._cotangent, *self._coordinates), batched=batched, last=False)
        ggn, residual = self._pull_back(pushed, v, batched=batched, last=last), _join(rest, v.shape[:-1])
        return torch.stack([ggn + residual, ggn, residual])

    def _along(self, v: Tensor, inputs: Sequence[Tensor], *, batched: bool, last: bool) -> tuple[Tensor, ...]:
        """The derivative of the gradient times ``v`` with respect to inputs."""
        return _grad(self._gradient, inputs, self._layout.unflatten(v), batched=batched, retain_graph=not last)

    def _pull_back(self, pushed: Tensor, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        parts = _grad(self._slopes, self._coordinates, (pushed,), batched=batched, retain_graph=not last)
        return _join(parts, v.shape[:-1])


class _Gate:
    """Lets what arrives at the slopes pass on to the graph they come from, or stops it there."""

    def __init__(self) -> None:
        self._stopped = False

    def __call__(self, arriving: Tensor) -> Tensor | None:
        return torch.zeros_like(arriving) if self._stopped else None

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Within it nothing passes."""
        self._stopped = True
        try:
            yield
        finally:
            self._stopped = False


def _grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    batched: bool = False,
) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` with zeros for what does not depend on what."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    cotangent_of = zip(outputs, [None] * len(outputs) if vectors is None else vectors, strict=True)
    pairs = [(out, vector) for out, vector in cotangent_of if out.requires_grad]
    if not pairs:
        lead = vectors[0].shape[:1] if batched and vectors else ()
        return tuple(x.new_zeros(*lead, *x.shape) for x in inputs)
    used, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(
        used,
        inputs,
        cotangents,
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
        is_grads_batched=batched,
    )
    lead = cotangents[0].shape[:1] if batched and cotangents[0] is not None else ()
    return tuple(x.new_zeros(*lead, *x.shape) if part is None else part for part, x in zip(found, inputs, strict=True))


def _join(parts: Sequence[Tensor], lead: Sequence[int]) -> Tensor:
    return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)
