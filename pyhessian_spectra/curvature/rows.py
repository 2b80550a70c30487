"""Derivatives of single examples' outputs: the rows whose outer products add up to the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyhessian_spectra.curvature.autodiff import gradients, joined
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.errors import InputError

# Outputs of one example, whose loss' second derivative is built and diagonalised.
_MOST_OUTPUTS = 2_000

# Bytes of the rows that are computed together.
_TOGETHER = 2**27


def output_factors(objective: Objective, point: Point, batch: Batch) -> Tensor:
    """Factors ``S_i`` (N, r, d) of the loss' second derivatives ``S_i^T S_i`` in each example's outputs (d,).

    Rows beyond an example's rank are zero. Raises InputError if the loss is not convex in the outputs, or mixes those
    of several examples.
    """
    count = batch.num_examples

    def call() -> Tensor:
        outputs, value = objective.evaluate(batch)
        tensors = objective.selected(outputs)
        if any(t.numel() % count for t in tensors):
            raise InputError(f"outputs of {[tuple(t.shape) for t in tensors]} do not belong to {count} examples each")
        slopes = gradients(value, tensors, create_graph=True)

        def product(v: Tensor) -> Tensor:
            found = gradients(slopes, tensors, _as(v, tensors), retain_graph=True)
            return torch.cat([part.reshape(count, -1) for part in found], dim=1).double()

        size = sum(t.numel() for t in tensors) // count
        if size > _MOST_OUTPUTS:
            raise InputError(f"each example has {size:,} outputs; a Gram matrix is built of at most {_MOST_OUTPUTS:,}")
        columns = torch.eye(size, dtype=value.dtype, device=value.device)
        blocks = torch.stack([product(column.expand(count, size)) for column in columns], dim=2)
        probe = torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(blocks)
        alone = torch.einsum("nij,nj->ni", blocks, probe)
        rounding = 100 * size * torch.finfo(value.dtype).eps
        if (product(probe.to(value.dtype)) - alone).abs().max() > rounding * blocks.abs().max() * probe.abs().max():
            raise InputError(
                "the loss mixes the outputs of several examples, whose Gram matrix is not that of its rows"
            )
        return blocks

    blocks = objective.run(point, batch, call)
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    least = 10 * blocks.shape[1] * torch.finfo(point.dtype).eps * values.abs().amax(dim=1, keepdim=True)
    if (values < -least).any():
        raise InputError("the loss is not convex in the outputs, so that its Gauss-Newton matrix is no A^T A")
    roots = torch.where(values > least, values, 0.0).sqrt()
    rank = max(1, int((roots > 0).sum(dim=1).max()))  # a row of zeros where no loss of the batch is curved
    return (vectors * roots[:, None, :]).mT.flip(1)[:, :rank].to(point.dtype)


def rows_together(objective: Objective, point: Point, batch: Batch, factors: Tensor) -> Iterator[Tensor]:
    """Yield the rows ``S_i J_i`` (c, r, n), some examples at a time, whose outputs must depend on no other example."""
    leaves, structure = tree_flatten(batch.inputs)
    count, rank = batch.num_examples, factors.shape[1]
    moving = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == count for x in leaves]
    coordinates = tuple(c.detach() for c in point.coordinates)

    def one(cotangents: Tensor, *own: Tensor) -> Tensor:
        rest = iter(own)
        inputs = tree_unflatten([next(rest)[None] if m else x for x, m in zip(leaves, moving, strict=True)], structure)
        small = replace(batch, inputs=inputs, index=-1)

        def outputs(*moved: Tensor) -> Tensor:
            at = Point(point.layout, moved, {**point.values, **dict(zip(point.layout.names, moved, strict=True))})
            tensors = objective.run(at, small, lambda: objective.selected(objective.outputs(small)))
            return torch.cat([t.reshape(-1) for t in tensors])

        pull = torch.func.vjp(outputs, *coordinates)[1]
        return torch.cat([part.reshape(rank, -1) for part in torch.func.vmap(pull)(cotangents)], dim=1)

    step = max(1, _TOGETHER // max(1, rank * point.layout.n * point.dtype.itemsize))
    parts = [x[: len(factors)] for x, m in zip(leaves, moving, strict=True) if m]
    for start in range(0, len(factors), step):
        yield torch.func.vmap(one)(factors[start : start + step], *(x[start : start + step] for x in parts))


def rows_one_by_one(objective: Objective, point: Point, batch: Batch, factors: Tensor) -> Iterator[Tensor]:
    """As :func:`rows_together`, by a backward pass of the whole batch for each row: right for any model."""
    for i, own in enumerate(factors):

        def call(i: int = i, own: Tensor = own) -> Tensor:
            tensors = objective.selected(objective.outputs(batch))
            rows = []
            for row in own:
                cotangents = torch.zeros_like(factors[:, 0])
                cotangents[i] = row
                rows.append(joined(gradients(tensors, point.coordinates, _as(cotangents, tensors), retain_graph=True)))
            return torch.stack(rows)

        yield objective.run(point, batch, call)[None]


def pull_back(objective: Objective, point: Point, batch: Batch, cotangents: Tensor) -> Tensor:
    """``J^T c`` (n,), for cotangents (N, d) of the outputs."""

    def call() -> Tensor:
        tensors = objective.selected(objective.outputs(batch))
        return joined(gradients(tensors, point.coordinates, _as(cotangents, tensors)))

    return objective.run(point, batch, call)


def _as(v: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """A vector (N, d) in the shapes of the outputs."""
    sizes = [t.numel() // len(v) for t in tensors]
    parts: Any = v.split(sizes, dim=1)
    return [part.reshape(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]
