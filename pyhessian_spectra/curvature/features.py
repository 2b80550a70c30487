"""What is kept of the rows of a Gauss-Newton matrix: their coordinates, or the two factors of these if that is less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.failures import FAILURES
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.rows import pull_back, rows_one_by_one, rows_together, tapped
from pyhessian_spectra.curvature.taps import Product, products
from pyhessian_spectra.errors import InputError, SpectraError
from pyhessian_spectra.spectra.basis import KrylovBasis
from pyhessian_spectra.spectra.space import VectorSpace

# Rows that were taken together are wrong, and not only rounded, if a sum of those of so many examples is off by more.
_WRONG, _TRIED = 1e-3, 4

# Bytes of what is computed together: it should be small beside the rows, and large beside the cost of a call.
_TOGETHER = 2**27


@dataclass
class Plan:
    """How each parameter's rows are taken, found by trying the first examples of each batch.

    Parameters
    ----------
    tapped : set of int
        Parameters, by number, whose rows follow from inputs and outputs of the operations that they enter; those of
        all others are derivatives of each example's outputs.
    paired : dict of int to Product
        Those of ``tapped`` whose rows are kept as inputs and cotangents of one product.
    alone : set of int
        Batches, by index, of which the rows of the others are taken one by one.
    size : int
        Number of cotangents of an example.
    """

    tapped: set[int]
    paired: dict[int, Product] | None = None
    alone: set[int] = field(default_factory=set)
    size: int = 1

    def others(self, point: Point) -> list[int]:
        """The parameters, by number, that are not ``tapped``."""
        return [i for i in range(len(point.coordinates)) if i not in self.tapped]

    def try_out(self, objective: Objective, point: Point, batch: Batch, factors: Tensor) -> None:
        """Strike out what is wrong of the first examples' rows; right is what all examples' outputs say together."""
        few, own = batch.rows(0, min(_TRIED, len(factors))), factors[:_TRIED]
        normal = torch.randn(own.shape[:2], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(own)
        cotangents = torch.zeros_like(factors[:, 0])
        cotangents[: len(own)] = (normal[:, :, None] * own).sum(dim=1)
        right = [p.flatten() for p in point.layout.unflatten(pull_back(objective, point, batch, cotangents[None])[0])]
        least = 100 * torch.finfo(point.dtype).eps * max(float(part.abs().max()) for part in right)

        def are_right(numbers: list[int], rows: Tensor) -> bool:
            expected = torch.cat([right[i] for i in numbers])
            off = (normal[:, :, None] * rows).sum(dim=(0, 1)) - expected
            return bool(off.abs().max() <= _WRONG * expected.abs().max() + least)

        try:
            found = tapped(objective, point, few, own)
            self.tapped &= {i for i, rows in found.rows(self.tapped).items() if are_right([i], rows)}
        except (SpectraError, *FAILURES):  # such as of a model that needs its whole batch
            self.tapped, self.paired = set(), {}
        else:
            met = {i: use for i, (use, _) in found.products().items() if i in self.tapped}
            before = {i: use for i, use in met.items() if _is_less(use)} if self.paired is None else self.paired
            same = lambda i: i in met and met[i].given.shape[1:] == before[i].given.shape[1:]  # noqa: E731
            self.paired = {i: use for i, use in before.items() if same(i)}
            self.size = max(self.size, sum(use.shape[1:].numel() for use in found.uses))
        others = self.others(point)
        try:
            if others and not are_right(others, next(rows_together(objective, point, few, own, others))):
                self.alone.add(batch.index)
        except (SpectraError, *FAILURES):  # whatever vmap cannot take
            self.alone.add(batch.index)


def _is_less(use: Product) -> bool:
    features, positions = use.features(use.given[:1]).shape[2:]
    return positions == 1 or 2 * positions <= features


class RowFeatures:
    """The rows of ``A`` in order of their examples, kept as the plan says.

    Beyond ``memory_budget`` bytes, by default half of the free memory, they go to disk.
    """

    def __init__(self, objective: Objective, point: Point, plan: Plan, memory_budget: int | None = None) -> None:
        self._objective, self._point, self._plan, self._paired = objective, point, plan, plan.paired or {}
        sizes = [c.numel() for c in point.coordinates]
        widths = [self._shape(i).numel() if i in self._paired else n for i, n in enumerate(sizes)]
        inputs = [use.given.shape[1:].numel() for use in self._paired.values()]
        self._columns = np.cumsum([0, *widths])
        self._inputs = dict(zip(self._paired, np.cumsum([0, *inputs]), strict=False))

        def kept(width: int) -> KrylovBasis:
            space = VectorSpace(width, dtype=point.dtype, device=point.coordinates[0].device)
            return KrylovBasis(space, memory_budget=memory_budget)

        self._rows, self._given = kept(sum(widths)), kept(max(1, sum(inputs)))
        self._examples: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def examples(self) -> np.ndarray:
        """The example of each row (m,), int64, counted over all batches."""
        return np.array(self._examples, dtype=np.int64)

    def add(self, batch: Batch, factors: Tensor) -> None:
        """Take the rows of a batch for its factors (N, r, d); those of zeros are left out."""
        objective, point, others = self._objective, self._point, self._plan.others(self._point)
        build = rows_one_by_one if batch.index in self._plan.alone else rows_together
        rest = (row for part in build(objective, point, batch, factors, others) for row in part) if others else iter(())
        step = max(1, _TOGETHER // (factors.shape[1] * self._plan.size * point.dtype.itemsize))
        for start in range(0, len(factors), step):
            own = factors[start : start + step]
            parts = self._tapped(batch.rows(start, start + len(own)), own) if self._plan.tapped else {}
            if others:
                together = torch.stack([next(rest) for _ in own])
                sizes = [point.coordinates[i].numel() for i in others]
                parts |= dict(zip(others, together.split(sizes, dim=2), strict=True))
            rows = torch.cat([parts[i] for i in range(len(point.coordinates))], dim=2)
            if rows.shape[2] != self._columns[-1]:
                raise InputError("examples have outputs of different sizes within the model")
            used = own.abs().amax(dim=2) > 0
            for i, row in zip(used.nonzero()[:, 0].tolist(), rows[used], strict=True):
                self._rows.append(row, 1.0)
                self._examples.append(self._count + i)
            self._count += len(own)

    def _tapped(self, batch: Batch, factors: Tensor) -> dict[int, Tensor]:
        found = tapped(self._objective, self._point, batch, factors)
        parts, uses = found.rows(self._plan.tapped - set(self._paired)), found.products()
        for i in self._paired:
            use, cotangents = uses[i]
            parts[i] = use.cotangents(cotangents).flatten(2)
        given = [uses[i][0].given.flatten(1) for i in self._paired]
        if any(uses[i][0].given.shape[1:] != use.given.shape[1:] for i, use in self._paired.items()):
            raise InputError("examples have inputs of different sizes within the model")
        for row in torch.cat(given, dim=1) if given else ():
            self._given.append(row, 1.0)
        return parts

    def factored(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Inputs (N, f) and cotangents (m, o) whose outer products are a weight's rows, if they are such products."""
        if number not in self._paired or self._shape(number)[0] != 1 or self._shape(number)[2] != 1:
            return None
        return self._paired[number].features(self._given_to(number))[:, 0, :, 0], self._kept(number)

    def blocks(self, number: int, width: int) -> Iterator[tuple[int, Tensor]]:
        """The rows of one parameter in blocks (m, c) of about ``width`` columns, each with its first column."""
        if number not in self._paired:
            first, last = int(self._columns[number]), int(self._columns[number + 1])
            for start in range(first, last, width):
                yield start - first, self._rows.coordinates(torch.arange(start, min(start + width, last)))
            return
        groups, outputs, _ = self._shape(number)
        d, given = self._kept(number).view(len(self), *self._shape(number)), self._given_to(number)
        features = self._point.coordinates[number].numel() // (groups * outputs)
        step = max(1, width // features)
        for group in range(groups):
            for start in range(0, outputs, step):
                own = d[:, group : group + 1, start : start + step]
                yield (group * outputs + start) * features, self._multiplied(number, group, given, own)

    def _multiplied(self, number: int, group: int, given: Tensor, d: Tensor) -> Tensor:
        """The rows (m, o f) of some outputs of a weight, for the inputs (N, ...) and cotangents (m, 1, o, P)."""
        examples, use = self.examples, self._paired[number]
        most = int(np.bincount(examples).max())
        size = use.features(given[:1]).numel() + most * d[0].numel()
        step, blocks = max(1, _TOGETHER // (8 * size * d.element_size())), []
        for first in range(0, self._count, step):
            low, high = np.searchsorted(examples, [first, first + step])
            own, among = (
                examples[low:high] - first,
                np.arange(low, high) - np.searchsorted(examples, examples[low:high]),
            )
            features = use.features(given[first : first + step])[:, group : group + 1]
            padded = d.new_zeros(len(features), most, *d.shape[1:])
            padded[own, among] = d[low:high]
            blocks.append(products(padded, features)[own, among].flatten(1))
        return torch.cat(blocks)

    def _shape(self, number: int) -> torch.Size:
        """Groups, outputs of each and positions of a paired weight's cotangents."""
        use = self._paired[number]
        return use.cotangents(torch.empty(1, 1, *use.shape[1:], device="meta")).shape[2:]

    def _kept(self, number: int) -> Tensor:
        return self._rows.coordinates(torch.arange(int(self._columns[number]), int(self._columns[number + 1])))

    def _given_to(self, number: int) -> Tensor:
        shape, start = self._paired[number].given.shape[1:], int(self._inputs[number])
        return self._given.coordinates(torch.arange(start, start + shape.numel())).view(-1, *shape)
