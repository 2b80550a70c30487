"""A few examples of an operator's data, on which its derivatives are compared with differences of the loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.differences import Comparison
from pyhessian_spectra.curvature.operators import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    ResidualOperator,
)
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.relative import RelativeHessianOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import SpectraError, UnverifiedError

# Few examples have few kinks (a ReLU's zero) near them, and cost little.
_EXAMPLES, _SINGLE_EXAMPLES = 16, 4

# What was lost at two points is at most this part of what may be lost at others.
_LOST = 10

NO_GRADIENT = "as with detach, no_grad, a hook on gradients, or an estimator that passes straight through"
_CUT_OFF = "as with a backward of one's own that cannot be differentiated"
_ENTANGLED = (
    "the product with the Fisher matrix differs from that of each example's own gradient, since examples of a batch "
    "act on one another, as through statistics of the batch"
)


@dataclass
class Case:
    """An operator's linearisation of a few examples, in float64 where they compute in it."""

    op: RiskOperator
    batch: Batch
    linearisation: autodiff.Linearisation

    @classmethod
    def of(cls, op: RiskOperator) -> Case | None:
        """A few examples in float64; a whole batch, or the model's own dtype, where that fails; None without data."""
        error: Exception | None = None
        count = _SINGLE_EXAMPLES if op.kind == EmpiricalFisherOperator.kind else _EXAMPLES
        for dtype in dict.fromkeys((torch.float64, op.dtype)):
            try:
                there = op if dtype == op.dtype else op.at(op.point.cast(op.risk.model, dtype))
                for _, batch in itertools.islice(op.risk.sample.read(dtype), 1):
                    for part in (batch.rows(0, count), batch):
                        try:
                            case = cls(there, part, there._linearise(part))
                            case.gradient(there.point)  # fails where segments are checkpointed and convert
                            if math.isfinite(case.loss(there.point)):
                                return case
                        except SpectraError as failed:
                            error = failed
            except (RuntimeError, TypeError) as failed:  # of a device without float64
                error = failed
        if error is not None:
            raise error
        return None

    def off_in(self, op: RiskOperator) -> float:
        """How far the operator's own products are off these, relative, for one random vector."""
        if op.point.dtype == self.op.point.dtype:
            return 0.0
        v = self.steps()[1] * self.op.space.rademacher(torch.Generator().manual_seed(0))
        exact = self.linearisation.matvec(v)
        own = op._linearise(self.batch.cast(op.dtype)).matvec(v.to(op.dtype), last=True)
        return float((own.to(exact) - exact).norm() / (exact.norm() or 1.0))

    def loss(self, point: Point) -> float:
        """The value of the loss, by torch's own operations."""
        return float(autodiff.loss(self.op.risk.objective.native(), point, self.batch))

    def lost(self, point: Point, eps: float) -> float:
        """What rounding of torch's operations takes from the loss beyond ``eps`` of its value.

        Of a network that fits its data, cross-entropy leaves little in ``log(1 + exp(-30))``, where the package's own
        version of it is exact. Their difference is believed as far as rounding reaches: that of far smaller weights.
        """
        small = point.moved(point.flat(), -0.999)
        own = float(autodiff.loss(self.op.risk.objective, point, self.batch))
        return min(abs(self.loss(point) - own), 10 * eps * abs(self.loss(small)))

    def gradient(self, point: Point) -> Tensor:
        """The gradient of the loss, from one backward pass."""
        return autodiff.gradient(self.op.risk.objective, point, self.batch)

    def computed_in(self, point: Point) -> torch.dtype:
        """The coarsest dtype in the graphs of the loss and its gradient at a point."""
        return autodiff.computed_in(self.op.risk.objective, point, self.batch.cast(point.dtype))

    def comparisons(self) -> Iterator[Comparison]:
        """Gradients against values of the loss, then products against gradients, along a random line."""
        point, kind, eps = self.op.point, self.op.kind, torch.finfo(self.computed_in(self.op.point)).eps
        scale, own = self.steps()
        generator = torch.Generator().manual_seed(0)
        u, v = (torch.randn(len(scale), generator=generator, dtype=torch.float64).to(scale) for _ in range(2))
        hv, gradient, line = own * self.linearisation.matvec(own * v), self.gradient(point), scale * v
        size, lost = float((scale * gradient).norm()), 0.0
        slope = Comparison(f"the gradient differs from differences of the loss ({NO_GRADIENT})", eps**0.4)
        product = Comparison(f"products with the {kind} differ from differences of gradients ({_CUT_OFF})", eps**0.4)
        difference = _DIFFERENCES.get(kind)
        if isinstance(self.op, RelativeHessianOperator):
            difference = _difference_of_relative_gradients
        for power in (1, 0, 2, 3, -1, -2):
            if slope.agrees and (product.agrees or difference is None):
                break
            step = eps ** (1 / 3) * (0.1 if eps < 1e-10 else 0.4) ** power
            noise = 100 * eps / (2 * step)
            ahead, behind = point.moved(line, step), point.moved(line, -step)
            values, gradients = (self.loss(ahead), self.loss(behind)), (self.gradient(ahead), self.gradient(behind))
            simpson = (gradients[0] + 4 * gradient + gradients[1]) @ line / 6
            rise = v.new_tensor((values[0] - values[1]) / (2 * step))
            slope.add(simpson, rise, size, noise * abs(values[0]) + _LOST * lost / (2 * step))
            if not slope.agrees:
                lost = max(lost, *(self.lost(p, eps) for p in (ahead, behind)))
            if difference is not None:
                found = own * difference(self, ahead, behind, *gradients) / (2 * step)
                product.add(hv, found, float(max(found.norm(), hv.norm())), noise * size)
        yield slope
        if difference is not None:
            yield product
        elif kind == EmpiricalFisherOperator.kind:
            product = Comparison(_ENTANGLED, eps**0.4, placed=False)
            alone = own * self.of_single_gradients(own * v)
            product.add(hv, alone, float(alone.norm()))
            yield product
        else:
            hu, both = (own * self.linearisation.matvec(own * x) for x in (u, u + v))
            symmetry = Comparison(f"products with the {kind} are not symmetric, u.Av being another than v.Au", eps**0.4)
            symmetry.add(u @ hv, v @ hu, float(hu.norm() + hv.norm()) * len(scale) ** 0.5)
            linearity = Comparison(
                f"products with the {kind} are not linear, A(u + v) being another than Au + Av", eps**0.4
            )
            linearity.add(both, hu + hv, float(hu.norm() + hv.norm()))
            yield from (symmetry, linearity)

    def steps(self) -> tuple[Tensor, Tensor]:
        """What steps of the parameters are relative to (n,), and what those of the operator's coordinates are."""
        scale = parameter_scale(self.op.risk, self.op.point)
        if not isinstance(self.op, RelativeHessianOperator):
            return scale, scale
        moves = (scale > torch.finfo(scale.dtype).tiny).to(scale)
        return moves * self.op.scales(), moves

    def of_single_gradients(self, v: Tensor) -> Tensor:
        """``sum_i c_i g_i (g_i . v) / sum_i c_i``, with each example's gradient from a batch of its own."""
        total, weights = torch.zeros_like(v), 0.0
        for i in range(self.batch.num_examples):
            one = self.batch.rows(i, i + 1)
            weight = self.op.risk.num_terms(one.targets)
            if weight:
                try:
                    g = autodiff.gradient(self.op.risk.objective, self.op.point, one)
                except SpectraError as error:
                    raise UnverifiedError(
                        "an example alone has no gradient, since the model takes statistics over the batch, so that "
                        "there is no Fisher matrix; use mode='eval', or the Hessian"
                    ) from error
                total, weights = total + weight * g * (g @ v), weights + weight
        return total / weights


def _difference_of_gradients(case: Case, ahead: Point, behind: Point, above: Tensor, below: Tensor) -> Tensor:
    return above - below


def _difference_of_relative_gradients(case: Case, ahead: Point, behind: Point, above: Tensor, below: Tensor) -> Tensor:
    assert isinstance(case.op, RelativeHessianOperator)
    return case.op.slopes(ahead, above) - case.op.slopes(behind, below)


def _difference_of_slopes(case: Case, ahead: Point, behind: Point, *_: Tensor) -> Tensor:
    """``J^T (s(ahead) - s(behind))``, with the loss's gradient ``s`` in the outputs and the Jacobian in between."""
    objective, batch = case.op.risk.objective, case.batch
    pairs = zip(*(autodiff.slopes(objective, p, batch) for p in (ahead, behind)), strict=True)
    return autodiff.pulled_back(objective, case.op.point, batch, [a - b for a, b in pairs])


def _difference_of_jacobians(case: Case, ahead: Point, behind: Point, *_: Tensor) -> Tensor:
    """``(J(ahead) - J(behind))^T s``, with ``s`` in between."""
    objective, batch = case.op.risk.objective, case.batch
    slopes = autodiff.slopes(objective, case.op.point, batch)
    above, below = (autodiff.pulled_back(objective, p, batch, slopes) for p in (ahead, behind))
    return above - below


_DIFFERENCES: dict[str, Callable[..., Tensor]] = {
    HessianOperator.kind: _difference_of_gradients,
    GGNOperator.kind: _difference_of_slopes,
    ResidualOperator.kind: _difference_of_jacobians,
}


def parameter_scale(risk: EmpiricalRisk, point: Point) -> Tensor:
    """What steps are relative to (n,): the root mean square of each parameter's entries, of all where these are zero.

    Rows of embeddings for padding do not move, since torch takes them for constants.
    """
    whole = float(point.flat().square().mean().sqrt()) or 1.0
    padding = {
        f"{name}.weight".removeprefix("."): module.padding_idx
        for name, module in risk.model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None
    }
    sizes = []
    for name, c in zip(point.layout.names, point.coordinates, strict=True):
        sizes.append(torch.full_like(c, float(c.detach().square().mean().sqrt()) or whole, requires_grad=False))
        if name in padding:
            sizes[-1][padding[name]] = torch.finfo(c.dtype).tiny
    return point.layout.flatten(sizes)
