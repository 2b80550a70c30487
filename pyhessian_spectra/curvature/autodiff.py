"""Derivatives of one batch's loss; with ``inspection``, the only callers of torch.autograd on a user's model.

A *linearisation* is the derivative of something at a point, built once and applied to many vectors: the graph
of the gradient for the Hessian, of the outputs for the Gauss-Newton matrix. Building it costs one or two gradients,
applying it less than building; its owner decides whether to keep it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyhessian_spectra.curvature.calling import Batch, Point, called, loss_of, one_tensor, outputs_of
from pyhessian_spectra.curvature.inspection import refuse_once_differentiable
from pyhessian_spectra.curvature.parameters import ParameterLayout

if TYPE_CHECKING:
    from pyhessian_spectra.curvature.risk import EmpiricalRisk


def loss(risk: EmpiricalRisk, point: Point, batch: Batch) -> Tensor:
    """The loss of one batch, a scalar without graph."""
    with torch.no_grad(), called(risk, batch):
        return loss_of(risk, outputs_of(risk, point, batch), batch)


def gradient(risk: EmpiricalRisk, point: Point, batch: Batch) -> Tensor:
    """The gradient of one batch's loss, shape (n,)."""
    with called(risk, batch):
        value = loss_of(risk, outputs_of(risk, point, batch), batch)
        return risk.layout.flatten(_grad(value, point.coordinates))


class Linearisation(ABC):
    """A symmetric matrix of one batch, ready to be applied to many vectors."""

    def __init__(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        self.index, self._risk, self._point, self._batch = batch.index, risk, point, batch
        with called(risk, batch), torch.enable_grad():
            self._build(risk, point, batch)

    @abstractmethod
    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        """Run the model and set up the graphs."""

    @abstractmethod
    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        """The product with (n,), or with the rows of (k, n) where ``batched``."""

    def matvec(self, v: Tensor, *, last: bool = False) -> Tensor:
        """The product with ``v`` of shape (n,); ``last`` frees the graph on the way."""
        with called(self._risk, self._batch):
            return self._product(v, batched=False, last=last)

    def matmat(self, rows: Tensor) -> Tensor:
        """Products with the rows of (k, n), all at once; shape (k, n)."""
        with called(self._risk, self._batch):
            return self._product(rows, batched=True, last=False)


class HessianLinearisation(Linearisation):
    """The Hessian of one batch's loss, by double backward (Pearlmutter 1994) through the graph of its gradient."""

    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        value = loss_of(risk, outputs_of(risk, point, batch), batch)
        self._gradient = GradientGraph(risk.layout, value, point.coordinates)

    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        return self._gradient.derivative(v, batched=batched, last=last)


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


class _Jacobian:
    """``J`` and ``J^T`` of a tensor-valued function of the coordinates.

    ``J v`` comes from differentiating ``u -> J^T u``, which is linear, so that its graph serves every ``v``.
    """

    def __init__(self, layout: ParameterLayout, outputs: Tensor, coordinates: Sequence[Tensor]) -> None:
        self._layout, self._coordinates, self._outputs = layout, coordinates, outputs
        self._cotangent = torch.zeros_like(outputs, requires_grad=True)
        self._pulled = _grad(outputs, coordinates, (self._cotangent,), create_graph=True)

    def jvp(self, v: Tensor, *, batched: bool) -> Tensor:
        parts = self._layout.unflatten(v)
        return _grad(self._pulled, (self._cotangent,), parts, batched=batched, retain_graph=True)[0]

    def vjp(self, u: Tensor, *, batched: bool, last: bool) -> Tensor:
        parts = _grad(self._outputs, self._coordinates, (u,), batched=batched, retain_graph=not last)
        return _join(parts, u.shape[:1] if batched else ())


class GGNLinearisation(Linearisation):
    """The generalised Gauss-Newton matrix ``J^T (Hessian of the loss in the outputs) J`` of one batch."""

    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        outputs = one_tensor(outputs_of(risk, point, batch))
        self._jacobian = _Jacobian(risk.layout, outputs, point.coordinates)
        self._leaf = outputs.detach().requires_grad_()
        self._loss_gradient = _grad(loss_of(risk, self._leaf, batch), (self._leaf,), create_graph=True)

    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        pushed = self._jacobian.jvp(v, batched=batched)
        curved = _grad(self._loss_gradient, (self._leaf,), (pushed,), batched=batched, retain_graph=True)[0]
        return self._jacobian.vjp(curved, batched=batched, last=last)


class FisherLinearisation(Linearisation):
    """``sum_i c_i g_i g_i^T / sum_i c_i`` of one batch, ``g_i`` the gradient of example i's loss, ``c_i`` its terms."""

    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        outputs = one_tensor(outputs_of(risk, point, batch))
        terms = torch.tensor([risk.number_of_terms(target[None]) for target in batch.targets], dtype=torch.float64)
        counted = terms > 0
        losses = torch.func.vmap(lambda z, y: risk.loss_fn(z[None], y[None]))(outputs[counted], batch.targets[counted])
        self._shares = (terms[counted] / terms.sum()).to(risk.device, risk.dtype)
        self._jacobian = _Jacobian(risk.layout, losses, point.coordinates)

    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        slopes = self._jacobian.jvp(v, batched=batched)
        return self._jacobian.vjp(self._shares * slopes, batched=batched, last=last)


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
