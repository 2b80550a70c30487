"""Derivatives of one batch's loss. No other module calls torch.autograd on a user's model.

A *linearisation* is a derivative at a point, built once and applied to many vectors: the graph of a gradient for the
Hessian, the Gauss-Newton matrix or their difference. Building it costs one or two gradients, applying it less; the
operator that owns it decides whether to keep it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.example_losses import example_losses
from pyhessian_spectra.curvature.inspection import coarsest_dtype
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.errors import InputError

_G = TypeVar("_G", bound="_Graph")


class _Product(Protocol):
    """The product with (n,), or with the rows of (k, n) if ``batched``; ``how`` are arguments of :func:`gradients`."""

    def __call__(self, v: Tensor, **how: bool) -> Tensor: ...


def loss(objective: Objective, point: Point, batch: Batch) -> Tensor:
    """The loss of one batch, a scalar without a graph."""
    return objective.run(point, batch, lambda: objective.evaluate(batch)[1].detach())


def gradient(objective: Objective, point: Point, batch: Batch) -> Tensor:
    """The gradient of one batch's loss, shape (n,)."""

    return objective.run(point, batch, lambda: joined(gradients(objective.evaluate(batch)[1], point.coordinates), ()))


def loss_and_gradient(objective: Objective, point: Point, batch: Batch) -> Tensor:
    """The loss of one batch and its gradient, shape (1 + n,)."""

    def call() -> Tensor:
        value = objective.evaluate(batch)[1]
        return joined((value.detach().to(point.dtype), *gradients(value, point.coordinates)))

    return objective.run(point, batch, call)


def computed_in(objective: Objective, point: Point, batch: Batch) -> torch.dtype:
    """The coarsest dtype in the graphs of one batch's loss and gradient; the objective takes note of it."""

    def call() -> torch.dtype:
        value = objective.evaluate(batch)[1]
        slopes = gradients(value, point.coordinates, create_graph=True)
        return coarsest_dtype(value, *slopes)

    found = objective.run(point, batch, call)
    objective.met(point.dtype, found)
    return found


def slopes(objective: Objective, point: Point, batch: Batch) -> tuple[Tensor, ...]:
    """The gradient of one batch's loss in the model's outputs."""

    def call() -> tuple[Tensor, ...]:
        outputs, value = objective.evaluate(batch)
        return gradients(value, objective.selected(outputs))

    return objective.run(point, batch, call)


def pulled_back(objective: Objective, point: Point, batch: Batch, cotangents: Sequence[Tensor]) -> Tensor:
    """``J^T c``, shape (n,), for cotangents of the outputs."""

    def call() -> Tensor:
        outputs, _ = objective.evaluate(batch)
        return joined(gradients(objective.selected(outputs), point.coordinates, cotangents), ())

    return objective.run(point, batch, call)


class Linearisation:
    """A symmetric matrix of one batch, built once and applied to many vectors.

    ``part`` gives the product of the diagonal block of some parameters; by default it is taken of the whole product.
    """

    def __init__(
        self,
        objective: Objective,
        point: Point,
        batch: Batch,
        product: _Product,
        part: Callable[[ParameterLayout], _Product] | None = None,
    ) -> None:
        self.index, self._objective, self._point, self._batch = batch.index, objective, point, batch
        self._product, self._part = product, part or functools.partial(_cut, product, point.layout)

    def block(self, layout: ParameterLayout) -> Linearisation:
        """The diagonal block of some parameters, on the same graph."""
        return Linearisation(self._objective, self._point, self._batch, self._part(layout))

    def matvec(self, v: Tensor, *, last: bool = False, create_graph: bool = False) -> Tensor:
        """The product with ``v`` of shape (n,); ``last`` frees the graph during the product."""
        return self._run(lambda: self._product(v, retain_graph=not last, create_graph=create_graph))

    def matmat(self, rows: Tensor) -> Tensor:
        """The products with the rows of (k, n) in one backward pass; shape (k, n)."""
        return self._run(lambda: self._product(rows, batched=True, retain_graph=True))

    def _run(self, call: Callable[[], Tensor]) -> Tensor:
        return self._objective.backward(self._point, self._batch, call)


def _cut(product: _Product, whole: ParameterLayout, layout: ParameterLayout) -> _Product:
    """The product of a block, cut out of the product of the whole with zeros elsewhere; passes are the whole's."""
    places = torch.cat([torch.arange(whole.slices[name].start, whole.slices[name].stop) for name in layout.names])

    def call(v: Tensor, **how: bool) -> Tensor:
        embedded = v.new_zeros(*v.shape[:-1], whole.n).index_copy(-1, places.to(v.device), v)
        return product(embedded, **how)[..., places.to(v.device)]

    return call


def hessian(objective: Objective, point: Point, batch: Batch) -> Linearisation:
    """The Hessian of one batch's loss, by double backward (Pearlmutter 1994) through the gradient's graph."""

    def call() -> GradientGraph:
        return GradientGraph(point.layout, objective.evaluate(batch)[1], point.coordinates)

    graph = objective.run(point, batch, call)
    return Linearisation(objective, point, batch, graph.derivative, lambda layout: graph.block(layout).derivative)


class Split(Linearisation):
    """The Hessian, the Gauss-Newton matrix and their difference for one batch; products have shape (3, n)."""

    def __init__(self, objective: Objective, point: Point, batch: Batch) -> None:
        def call() -> SplitGraph:
            outputs, value = objective.evaluate(batch)
            return SplitGraph(point.layout, objective.selected(outputs), value, point.coordinates)

        graph = objective.run(point, batch, call)
        super().__init__(objective, point, batch, graph.together)
        at, part = (objective, point, batch), graph.block
        self.hessian = Linearisation(*at, graph.hessian, lambda layout: part(layout).hessian)
        self.ggn = Linearisation(*at, graph.ggn, lambda layout: part(layout).ggn)
        self.residual = Linearisation(*at, graph.residual, lambda layout: part(layout).residual)


def fisher(objective: Objective, point: Point, batch: Batch, num_terms: Callable[[Any], float]) -> Linearisation:
    """``sum_i c_i g_i g_i^T / sum_i c_i`` of one batch, ``g_i`` the gradient of example i's loss, ``c_i`` its terms.

    The Gauss-Newton matrix of ``sum_i c_i l_i^2 / 2 sum_i c_i``, with the examples' losses for outputs.
    """

    def call() -> SplitGraph:
        outputs, _ = objective.evaluate(batch)
        objective.selected(outputs)
        losses, shares, _ = example_losses(objective, outputs, batch, num_terms)
        return SplitGraph(point.layout, (losses,), (shares * losses**2).sum() / 2, point.coordinates)

    graph = objective.run(point, batch, call)
    return Linearisation(objective, point, batch, graph.ggn, lambda layout: graph.block(layout).ggn)


class _Graph:
    """The gradient of a scalar with its graph, by parameter."""

    def __init__(self, layout: ParameterLayout, coordinates: Sequence[Tensor], gradient: Sequence[Tensor]) -> None:
        self._layout, self._coordinates, self._gradient = layout, coordinates, gradient

    def block(self: _G, layout: ParameterLayout) -> _G:
        """The same graph for some of the parameters only; all others are constants."""
        part, places = copy.copy(self), {name: i for i, name in enumerate(self._layout.names)}
        chosen = [places[name] for name in layout.names]
        part._layout = layout
        part._coordinates = [self._coordinates[i] for i in chosen]
        part._gradient = [self._gradient[i] for i in chosen]
        return part


class GradientGraph(_Graph):
    """The gradient of a scalar with its graph, for derivatives along vectors."""

    def __init__(self, layout: ParameterLayout, value: Tensor, coordinates: Sequence[Tensor]) -> None:
        super().__init__(layout, coordinates, gradients(value, coordinates, create_graph=True))

    def derivative(self, v: Tensor, **how: bool) -> Tensor:
        """The scalar's Hessian times ``v`` (n,), or times the rows of (k, n) if ``batched``."""
        return joined(gradients(self._gradient, self._coordinates, self._layout.unflatten(v), **how), v.shape[:-1])


class SplitGraph(_Graph):
    """The graph of the gradient ``J^T s`` of a scalar function of outputs; ``s`` is its gradient in the outputs.

    The derivative of ``v^T J^T s`` in the parameters is ``H v``, and ``R v`` if ``s`` is held fixed. Its derivative in
    ``s`` is ``J v``, which the graph of ``s`` maps to ``G v = J^T (second derivative of the scalar in the outputs) J
    v``. A product with G takes two thirds of the arithmetic of one with H or R; all three together take four thirds.
    """

    def __init__(
        self, layout: ParameterLayout, outputs: Sequence[Tensor], value: Tensor, coordinates: Sequence[Tensor]
    ) -> None:
        slopes = _slopes(value, outputs)
        # if the scalar is linear in the outputs, the slopes have no graph
        self._slopes = [s if s.requires_grad else s.requires_grad_() for s in slopes]
        self._gate = _Gate()
        for slope in self._slopes:
            slope.register_hook(self._gate)
        self._cotangents = [slope.view_as(slope) for slope in self._slopes]
        super().__init__(layout, coordinates, gradients(outputs, coordinates, self._cotangents, create_graph=True))

    def hessian(self, v: Tensor, **how: bool) -> Tensor:
        """The products with H."""
        return joined(self._along(v, self._coordinates, **how), v.shape[:-1])

    def residual(self, v: Tensor, **how: bool) -> Tensor:
        """The products with R, taken directly: no digits cancel as in the difference of H and G."""
        with self._gate.closed():
            return self.hessian(v, **how)

    def ggn(self, v: Tensor, **how: bool) -> Tensor:
        """The products with G."""
        pushed = self._along(v, self._cotangents, **{**how, "retain_graph": True})
        return self._pull_back(pushed, v, **how)

    def together(self, v: Tensor, **how: bool) -> Tensor:
        """The products with H, G and R; shape (3, n), or (3, k, n) where ``batched``."""
        count = len(self._cotangents)
        with self._gate.closed():
            parts = self._along(v, (*self._cotangents, *self._coordinates), **{**how, "retain_graph": True})
        ggn, residual = self._pull_back(parts[:count], v, **how), joined(parts[count:], v.shape[:-1])
        return torch.stack([ggn + residual, ggn, residual])

    def _along(self, v: Tensor, inputs: Sequence[Tensor], **how: bool) -> tuple[Tensor, ...]:
        """The derivative of ``v`` times the gradient with respect to ``inputs``."""
        return gradients(self._gradient, inputs, self._layout.unflatten(v), **how)

    def _pull_back(self, pushed: Sequence[Tensor], v: Tensor, **how: bool) -> Tensor:
        return joined(gradients(self._slopes, self._coordinates, pushed, **how), v.shape[:-1])


def _slopes(value: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradient of a scalar in outputs, with a graph; raises InputError if it is computed from none of them."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in outputs]
    found = torch.autograd.grad(value, outputs, create_graph=True, allow_unused=True)
    if all(slope is None for slope in found):
        raise InputError(
            "the loss is not computed from the outputs that are given with it; return, or select=, the very tensors "
            "that the loss function was given"
        )
    return [torch.zeros_like(t) if slope is None else slope for slope, t in zip(found, outputs, strict=True)]


class _Gate:
    """A hook that stops cotangents at the slopes while it is closed, so that the slopes count as constants."""

    def __init__(self) -> None:
        self._stopped = False

    def __call__(self, arriving: Tensor) -> Tensor | None:
        return torch.zeros_like(arriving) if self._stopped else None

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Within this context the gate is closed."""
        self._stopped = True
        try:
            yield
        finally:
            self._stopped = False


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    batched: bool = False,
) -> tuple[Tensor, ...]:
    """``torch.autograd.grad``, with zeros for inputs that the outputs do not depend on."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    cotangents = [None] * len(outputs) if vectors is None else vectors
    pairs = [(out, vector) for out, vector in zip(outputs, cotangents, strict=True) if out.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        used, along = zip(*pairs, strict=True)
        retain_graph = True if create_graph else retain_graph
        found = torch.autograd.grad(
            used, inputs, along, retain_graph, create_graph, allow_unused=True, is_grads_batched=batched
        )
    lead = vectors[0].shape[:1] if batched and vectors is not None else ()
    return tuple(x.new_zeros(*lead, *x.shape) if part is None else part for part, x in zip(found, inputs, strict=True))


def joined(parts: Sequence[Tensor], lead: Sequence[int] = ()) -> Tensor:
    """Tensors of the parameters' shapes as one vector (n,), or as rows with leading dimensions ``lead``."""
    return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)
