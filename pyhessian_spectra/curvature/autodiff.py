"""Derivatives of one batch's loss: the only caller of torch.autograd on a user's model.

A *linearisation* is the derivative of something at a point, built once and applied to many vectors: the graph
of a gradient for the Hessian, the Gauss-Newton matrix and what remains between them. Building it costs one or two
gradients, applying it less than building; its owner decides whether to keep it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.inspection import refuse_once_differentiable
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.point import Point


class _Product(Protocol):
    """A product with (n,), or with the rows of (k, n) where ``batched``.

    ``last`` frees the graph on the way; ``create_graph`` leaves one, to differentiate the product.
    """

    def __call__(self, v: Tensor, *, batched: bool = ..., last: bool = ..., create_graph: bool = ...) -> Tensor: ...


def loss(objective: Objective, point: Point, batch: Batch) -> Tensor:
    """The loss of one batch, a scalar without graph."""
    return objective.run(point, batch, lambda: objective.loss(objective.outputs(batch), batch).detach())


def gradient(objective: Objective, point: Point, batch: Batch) -> Tensor:
    """The gradient of one batch's loss, shape (n,)."""

    def call() -> Tensor:
        value = objective.loss(objective.outputs(batch), batch)
        return _join(_grad(value, point.coordinates), ())

    return objective.run(point, batch, call)


class Linearisation:
    """A symmetric matrix of one batch, ready to be applied to many vectors."""

    def __init__(self, objective: Objective, point: Point, batch: Batch, product: _Product) -> None:
        self.index, self._objective, self._point, self._batch = batch.index, objective, point, batch
        self._product = product

    def matvec(self, v: Tensor, *, last: bool = False, create_graph: bool = False) -> Tensor:
        """The product with ``v`` of shape (n,)."""
        return self._run(lambda: self._product(v, batched=False, last=last, create_graph=create_graph))

    def matmat(self, rows: Tensor) -> Tensor:
        """Products with the rows of (k, n), all at once; shape (k, n)."""
        return self._run(lambda: self._product(rows, batched=True, last=False, create_graph=False))

    def _run(self, call: Callable[[], Tensor]) -> Tensor:
        return self._objective.run(self._point, self._batch, call)


def hessian(objective: Objective, point: Point, batch: Batch) -> Linearisation:
    """The Hessian of one batch's loss, by double backward (Pearlmutter 1994) through the graph of its gradient."""

    def call() -> GradientGraph:
        value = objective.loss(objective.outputs(batch), batch)
        return GradientGraph(point.layout, value, point.coordinates)

    return Linearisation(objective, point, batch, objective.run(point, batch, call).derivative)


class Split(Linearisation):
    """The Hessian, its Gauss-Newton matrix and what remains, of one batch; products are of shape (3, n)."""

    def __init__(self, objective: Objective, point: Point, batch: Batch) -> None:
        def call() -> SplitGraph:
            outputs = objective.outputs(batch)
            tensors = objective.selected(outputs)
            return SplitGraph(point.layout, tensors, objective.loss(outputs, batch), point.coordinates)

        graph = objective.run(point, batch, call)
        super().__init__(objective, point, batch, graph.together)
        self.hessian = Linearisation(objective, point, batch, graph.hessian)
        self.ggn = Linearisation(objective, point, batch, graph.ggn)
        self.residual = Linearisation(objective, point, batch, graph.residual)


def fisher(objective: Objective, point: Point, batch: Batch, num_terms: Callable[[Any], float]) -> Linearisation:
    """``sum_i c_i g_i g_i^T / sum_i c_i`` of one batch, ``g_i`` the gradient of example i's loss, ``c_i`` its terms.

    The Gauss-Newton matrix of ``sum_i c_i l_i^2 / 2 sum_i c_i``, with the examples' losses for outputs.
    """
    terms = torch.tensor([num_terms(target[None]) for target in batch.targets], dtype=torch.float64)
    counted = terms > 0

    def call() -> SplitGraph:
        outputs = objective.outputs(batch)
        objective.selected(outputs)
        tensors, rebuild = _taken_apart(outputs)
        one = torch.func.vmap(lambda y, *z: objective.loss_fn(rebuild([t[None] for t in z]), y[None]))
        losses = one(batch.targets[counted], *(t[counted] for t in tensors))
        shares = (terms[counted] / terms.sum()).to(losses)
        return SplitGraph(point.layout, (losses,), (shares * losses**2).sum() / 2, point.coordinates)

    return Linearisation(objective, point, batch, objective.run(point, batch, call).ggn)


class GradientGraph:
    """The gradient of a scalar with its graph, to be differentiated along vectors."""

    def __init__(self, layout: ParameterLayout, value: Tensor, coordinates: Sequence[Tensor]) -> None:
        self._layout, self._coordinates = layout, coordinates
        refuse_once_differentiable(value)
        self._gradient = _grad(value, coordinates, create_graph=True)

    def derivative(self, v: Tensor, *, batched: bool = False, last: bool = False, create_graph: bool = False) -> Tensor:
        """The Hessian of the scalar times (n,), or times the rows of (k, n) where ``batched``."""
        parts = _grad(
            self._gradient,
            self._coordinates,
            self._layout.unflatten(v),
            batched=batched,
            retain_graph=not last,
            create_graph=create_graph,
        )
        return _join(parts, v.shape[:-1])


class SplitGraph:
    """The gradient ``J^T s`` of a scalar of outputs with its graph; ``s`` are the slopes of the scalar in the outputs.

    Along ``v`` its derivative is ``H v``, and ``R v`` where ``s`` is held fixed. With respect to ``s`` it is ``J v``,
    which the graph of ``s`` takes on to ``G v = J^T (second derivative of the scalar in the outputs) J v``. A product
    with G takes two thirds of the arithmetic of one with H or R, and all three at once four thirds.
    """

    def __init__(
        self, layout: ParameterLayout, outputs: Sequence[Tensor], value: Tensor, coordinates: Sequence[Tensor]
    ) -> None:
        self._layout, self._coordinates = layout, coordinates
        refuse_once_differentiable(value)
        slopes = _grad(value, outputs, create_graph=True)
        # where the scalar is linear in the outputs, the slopes have no graph
        self._slopes = [s if s.requires_grad else s.requires_grad_() for s in slopes]
        self._gate = _Gate()
        for slope in self._slopes:
            slope.register_hook(self._gate)
        self._cotangents = [slope.view_as(slope) for slope in self._slopes]
        self._gradient = _grad(outputs, coordinates, self._cotangents, create_graph=True)

    def hessian(self, v: Tensor, *, batched: bool = False, last: bool = False, create_graph: bool = False) -> Tensor:
        """The products with H."""
        parts = self._along(v, self._coordinates, batched=batched, retain_graph=not last, create_graph=create_graph)
        return _join(parts, v.shape[:-1])

    def residual(self, v: Tensor, *, batched: bool = False, last: bool = False, create_graph: bool = False) -> Tensor:
        """The products with R, by themselves: nothing cancels as in a difference of H and G."""
        with self._gate.closed():
            return self.hessian(v, batched=batched, last=last, create_graph=create_graph)

    def ggn(self, v: Tensor, *, batched: bool = False, last: bool = False, create_graph: bool = False) -> Tensor:
        """The products with G."""
        pushed = self._along(v, self._cotangents, batched=batched, retain_graph=True, create_graph=create_graph)
        return self._pull_back(pushed, v, batched=batched, retain_graph=not last, create_graph=create_graph)

    def together(self, v: Tensor, *, batched: bool = False, last: bool = False, create_graph: bool = False) -> Tensor:
        """The products with H, G and R; shape (3, n), or (3, k, n) where ``batched``."""
        count = len(self._cotangents)
        with self._gate.closed():
            inputs = (*self._cotangents, *self._coordinates)
            parts = self._along(v, inputs, batched=batched, retain_graph=True, create_graph=create_graph)
        ggn = self._pull_back(parts[:count], v, batched=batched, retain_graph=not last, create_graph=create_graph)
        residual = _join(parts[count:], v.shape[:-1])
        return torch.stack([ggn + residual, ggn, residual])

    def _along(self, v: Tensor, inputs: Sequence[Tensor], **how: bool) -> tuple[Tensor, ...]:
        """The derivative of the gradient times ``v`` with respect to inputs."""
        return _grad(self._gradient, inputs, self._layout.unflatten(v), **how)

    def _pull_back(self, pushed: Sequence[Tensor], v: Tensor, **how: bool) -> Tensor:
        return _join(_grad(self._slopes, self._coordinates, pushed, **how), v.shape[:-1])


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
        retain_graph=True if create_graph else retain_graph,
        allow_unused=True,
        is_grads_batched=batched,
    )
    lead = cotangents[0].shape[:1] if batched and cotangents[0] is not None else ()
    return tuple(x.new_zeros(*lead, *x.shape) if part is None else part for part, x in zip(found, inputs, strict=True))


def _join(parts: Sequence[Tensor], lead: Sequence[int]) -> Tensor:
    return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)


def _taken_apart(outputs: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors of a model's outputs, and a function that puts others in their place."""
    if isinstance(outputs, Tensor):
        return [outputs], lambda tensors: tensors[0]
    if isinstance(outputs, Mapping):
        items = dict(outputs)
        build: Callable[[dict[Any, Any]], Any] = dict if type(outputs) is dict else lambda d: type(outputs)(**d)
    elif dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        items = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
        build = lambda d: dataclasses.replace(outputs, **d)  # noqa: E731 - one of several ways to build
    elif isinstance(outputs, (tuple, list)):
        items = dict(enumerate(outputs))
        make = getattr(outputs, "_make", type(outputs))
        build = lambda d: make(d.values())  # noqa: E731
    else:
        return [], lambda tensors: outputs
    parts = {key: _taken_apart(value) for key, value in items.items()}

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        rebuilt, start = {}, 0
        for key, (held, put) in parts.items():
            rebuilt[key] = put(tensors[start : start + len(held)])
            start += len(held)
        return build(rebuilt)

    return [tensor for held, _ in parts.values() for tensor in held], rebuild
