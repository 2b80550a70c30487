"""Derivatives of single examples' outputs: the rows whose outer products add up to the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyhessian_spectra.curvature.autodiff import gradients, joined
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.example_losses import example_losses
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.taps import Product, Taps, Use
from pyhessian_spectra.errors import InputError, NonFiniteError

# Outputs of one example, whose loss' second derivative is built and diagonalised.
_MOST_OUTPUTS = 2_000

# Bytes of the rows that are computed together.
_TOGETHER = 2**27


class Outputs:
    """The outputs of a batch with their graph, and the loss' derivatives in them; to be used within a run."""

    def __init__(self, objective: Objective, point: Point, batch: Batch) -> None:
        self._point, self._count, self._batch, self._objective = point, batch.num_examples, batch, objective
        self._outputs, self._value = objective.evaluate(batch)
        self._tensors = objective.selected(self._outputs)
        if any(t.numel() % self._count for t in self._tensors):
            shapes = [tuple(t.shape) for t in self._tensors]
            raise InputError(f"outputs of {shapes} do not belong to {self._count} examples each")

    def factors(self) -> Tensor:
        """Factors ``S_i`` (N, r, d) of the loss' second derivatives ``S_i^T S_i`` in each example's outputs (d,).

        Rows beyond an example's rank are zero. Raises InputError if the loss is not convex in the outputs, or mixes
        those of several examples.
        """
        blocks = self._blocks()
        if not bool(torch.isfinite(blocks).all()):
            raise NonFiniteError(
                f"second derivatives of the loss in the outputs of batch {self._batch.index} are NaN or infinite; look "
                "at that batch's inputs, or use float64"
            )
        values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
        eps = 10 * blocks.shape[1] * torch.finfo(self._point.dtype).eps
        least = eps * values.abs().amax(dim=1, keepdim=True)
        # where slopes nearly cancel, as with label smoothing, it is their rounding that counts
        if (values < -least - eps * self._steep).any():
            raise InputError("the loss is not convex in the outputs, so that its Gauss-Newton matrix is no A^T A")
        roots = torch.where(values > least, values, 0.0).sqrt()
        rank = max(1, int((roots > 0).sum(dim=1).max()))  # a row of zeros where no loss of the batch is curved
        return (vectors * roots[:, None, :]).mT.flip(1)[:, :rank].to(self._point.dtype)

    def slopes(self, num_terms: Callable[[Any], float]) -> Tensor:
        """Each example's loss' gradient in its outputs (N, 1, d), times the root of its share in the batch's terms."""
        losses, shares, counted = example_losses(self._objective, self._outputs, self._batch, num_terms)
        found = gradients(losses.sum(), self._tensors, retain_graph=True)
        each = torch.cat([part.reshape(self._count, -1) for part in found], dim=1)
        roots = torch.zeros(self._count, 1).to(each)
        roots[counted, 0] = shares.sqrt()
        return (roots * each)[:, None]

    def _blocks(self) -> Tensor:
        """The loss' second derivatives (N, d, d), float64."""
        count, value, tensors = self._count, self._value, self._tensors
        slopes = gradients(value, tensors, create_graph=True)
        steep = torch.cat([s.detach().reshape(count, -1) for s in slopes], dim=1).abs().amax(dim=1, keepdim=True)
        self._steep = steep.double()

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
        largest = (blocks.abs().max() + self._steep.max()) * probe.abs().max()
        if (product(probe.to(value.dtype)) - alone).abs().max() > rounding * largest:
            raise InputError(
                "the loss mixes the outputs of several examples, whose Gram matrix is not that of its rows"
            )
        return blocks

    def pull_back(self, cotangents: Tensor) -> Tensor:
        """``J^T c`` (k, n), for cotangents (k, N, d) of the outputs."""
        tensors, coordinates = self._tensors, self._point.coordinates
        each = (gradients(tensors, coordinates, _as(c, tensors), retain_graph=True) for c in cotangents)
        return torch.stack([joined(parts) for parts in each])


@dataclass(frozen=True)
class Tapped:
    """Uses of parameters in a forward pass, with the cotangents (c, r, ...) of their outputs.

    ``others`` are the numbers of parameters that have uses which are not known.
    """

    uses: Sequence[Use]
    cotangents: Sequence[Tensor]
    others: set[int]

    def rows(self, wanted: set[int]) -> dict[int, Tensor]:
        """The rows (c, r, p) of the wanted parameters, by number, as far as they are known."""
        found: dict[int, Tensor] = {}
        for use, d in zip(self.uses, self.cotangents, strict=True):
            for i, rows in use.rows(d, wanted - self.others).items():
                found[i] = found[i] + rows if i in found else rows
        return found

    def products(self) -> dict[int, tuple[Product, Tensor]]:
        """The weights that are used once, in a product, with the cotangents of that."""
        met = [use.weight for use in self.uses]
        each = zip(self.uses, self.cotangents, strict=True)
        return {
            use.weight: (use, d)
            for use, d in each
            if isinstance(use, Product) and use.weight is not None and met.count(use.weight) == 1
        }


def tapped(objective: Objective, point: Point, batch: Batch, factors: Tensor) -> Tapped:
    """The uses of parameters that are known, by one forward pass, and a backward pass for each of the ranks."""
    count, rank = factors.shape[:2]

    def call() -> Tapped:
        with Taps(point.coordinates, count) as taps:
            tensors = objective.selected(objective.outputs(batch))
        taken: list[list[Tensor]] = [[] for _ in taps.uses]
        for s in range(rank):
            pairs = zip(tensors, _as(factors[:, s], tensors), strict=True)
            outputs, cotangents = zip(*((t, c) for t, c in pairs if t.requires_grad), strict=True)
            edges = [use.out for use in taps.uses]
            found = torch.autograd.grad(outputs, edges, cotangents, retain_graph=True, allow_unused=True)
            for kept, use, d in zip(taken, taps.uses, found, strict=True):
                kept.append(factors.new_zeros(use.shape) if d is None else d.reshape(use.shape))
        return Tapped(taps.uses, [torch.stack(d, dim=1) for d in taken], taps.others)

    return objective.run(point, batch, call)


def rows_together(
    objective: Objective, point: Point, batch: Batch, factors: Tensor, wanted: Sequence[int]
) -> Iterator[Tensor]:
    """Yield the rows ``S_i J_i`` (c, r, p), some examples at a time, whose outputs must depend on no other example.

    Rows are of the ``wanted`` parameters, by number.
    """
    leaves, structure = tree_flatten(batch.inputs)
    count, rank = batch.num_examples, factors.shape[1]
    moving = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == count for x in leaves]
    names = [point.layout.names[i] for i in wanted]
    coordinates = tuple(point.coordinates[i].detach() for i in wanted)

    def one(cotangents: Tensor, *own: Tensor) -> Tensor:
        rest = iter(own)
        inputs = tree_unflatten([next(rest)[None] if m else x for x, m in zip(leaves, moving, strict=True)], structure)
        small = replace(batch, inputs=inputs, index=-1)

        def outputs(*moved: Tensor) -> Tensor:
            at = Point(point.layout, point.coordinates, {**point.values, **dict(zip(names, moved, strict=True))})
            tensors = objective.run(at, small, lambda: objective.selected(objective.outputs(small)))
            return torch.cat([t.reshape(-1) for t in tensors])

        pull = torch.func.vjp(outputs, *coordinates)[1]
        return torch.cat([part.reshape(rank, -1) for part in torch.func.vmap(pull)(cotangents)], dim=1)

    step = max(1, _TOGETHER // max(1, rank * sum(c.numel() for c in coordinates) * point.dtype.itemsize))
    parts = [x[: len(factors)] for x, m in zip(leaves, moving, strict=True) if m]
    for start in range(0, len(factors), step):
        yield torch.func.vmap(one)(factors[start : start + step], *(x[start : start + step] for x in parts)).detach()


def rows_one_by_one(
    objective: Objective, point: Point, batch: Batch, factors: Tensor, wanted: Sequence[int]
) -> Iterator[Tensor]:
    """As :func:`rows_together`, by a backward pass of the whole batch for each row: right for any model."""
    coordinates = [point.coordinates[i] for i in wanted]
    for i, own in enumerate(factors):

        def call(i: int = i, own: Tensor = own) -> Tensor:
            tensors = objective.selected(objective.outputs(batch))
            rows = []
            for row in own:
                cotangents = torch.zeros_like(factors[:, 0])
                cotangents[i] = row
                rows.append(joined(gradients(tensors, coordinates, _as(cotangents, tensors), retain_graph=True)))
            return torch.stack(rows)

        yield objective.run(point, batch, call)[None]


def pull_back(objective: Objective, point: Point, batch: Batch, cotangents: Tensor) -> Tensor:
    """``J^T c`` (k, n), for cotangents (k, N, d) of the outputs."""
    return objective.run(point, batch, lambda: Outputs(objective, point, batch).pull_back(cotangents))


def output_factors(objective: Objective, point: Point, batch: Batch) -> Tensor:
    """See :meth:`Outputs.factors`."""
    return objective.run(point, batch, lambda: Outputs(objective, point, batch).factors())


def aligned(factors: Tensor, others: Tensor) -> Tensor:
    """The factors ``Q_i S_i`` nearest to others, (N, r, d), with orthogonal ``Q_i``: of ``S_i^T S_i`` they are too."""
    rank = max(factors.shape[1], others.shape[1])
    factors, others = (torch.nn.functional.pad(s, (0, 0, 0, rank - s.shape[1])) for s in (factors, others))
    u, _, vh = torch.linalg.svd(others @ factors.mT)
    return u @ vh @ factors


def _as(v: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """A vector (N, d) in the shapes of the outputs."""
    sizes = [t.numel() // len(v) for t in tensors]
    parts: Any = v.split(sizes, dim=1)
    return [part.reshape(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]
