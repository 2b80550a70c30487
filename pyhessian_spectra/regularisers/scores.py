"""Scores of weights by the Hessian of their layer, exact, without that matrix ever being held.

A layer's block of the Hessian ``H_ll`` is that of one weight tensor, without the bias: Rahimi et al. (2020) score the
weights of a layer by the elements in their row of it.

Where a linear layer is used once for each example and the outputs are piecewise linear in its weights, ``H_ll`` is its
Gauss-Newton matrix almost everywhere, ``sum_i B_i (x) x_i x_i^T`` with the layer's inputs ``x_i`` and the loss' second
derivative ``B_i`` in what it gives. Its rows are then sums over blocks ``X^T diag(B_ab) X``, of which one is held at a
time: for N examples, C classes and a layer from I to O, I^2 + N (I + C O) numbers, and N I^2 O^2 / 2 multiplications.
Whether this form is the Hessian is not assumed: a product along a random vector is compared with the Hessian's own. All
other layers are streamed, a product of the Hessian for each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.failures import FAILURES
from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.partition import Partition
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.curvature.rows import Tapped, output_factors, tapped
from pyhessian_spectra.errors import InputError

#: What may be asked of a weight's row in its layer's block of the Hessian.
SCORES = ("sum", "mean", "diagonal")

#: Most products of the Hessian that a layer may take unless another limit is given.
LIMIT = 20_000

# A closed form is the Hessian if their products along one random vector agree to this power of eps: 5e-7 in float64, in
# which both are computed wherever the model does. What is left of scores by a form that is nearly right is no more.
_AGREES = 0.4

# Columns of the Hessian that are held together, and bytes of rows that are.
_COLUMNS, _ROWS_BYTES = 64, 2**27


def curvature_scores(
    risk: EmpiricalRisk, layers: int | str | Sequence[str] = 1, *, score: str = "sum", limit: int = LIMIT
) -> dict[str, Tensor]:
    r"""How strongly the loss curves along each weight, within its layer (Rahimi et al. 2020).

    Parameters
    ----------
    risk : EmpiricalRisk
        Its Hessian is taken at the model's current parameters.
    layers : int or str or sequence of str
        The last so many layers, or names of modules or parameters, or globs. Weights of two or more dimensions are
        scored, each in the block of its own tensor; biases and normalisations are not.
    score : {"sum", "mean", "diagonal"}
        :math:`\sum_j |H_{ij}|`, the same divided by the number of the layer's weights, or :math:`|H_{ii}|`.
    limit : int
        Most products of the Hessian for a layer that has no closed form; each of its weights takes one.

    Returns
    -------
    dict of str to Tensor
        By parameter name, of the weight's shape and dtype; in units of the loss over those of the weight squared.

    Raises
    ------
    InputError
        Names of no weights, another score, more products than ``limit``, or a risk of several processes.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), (torch.tensor([[1.0, -2.0]]), torch.zeros(1, 1)))
    >>> curvature_scores(risk)['weight'].round()  # of the Hessian [[2, -4], [-4, 8]]
    tensor([[ 6., 12.]])
    """
    if score not in SCORES:
        raise InputError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    if risk.sample.processes:
        raise InputError("scores are taken in one process; pass the risk without a process group")
    return {name: _scored(risk, name, score, limit) for name in weights_of(risk.model, risk.layout, layers)}


def weights_of(model: nn.Module, layout: ParameterLayout, layers: int | str | Sequence[str]) -> tuple[str, ...]:
    """Names of the weights of the last so many layers, or of those that names or globs match.

    Raises InputError for a name that matches nothing, or nothing with two or more dimensions.
    """
    if isinstance(layers, int):
        groups = [group.names for group in Partition.by_layer(layout)]
        if not 1 <= layers <= len(groups):
            raise InputError(f"layers must be between 1 and {len(groups)}, the number that have weights, got {layers}")
        return tuple(name for names in groups[-layers:] for name in names if len(layout.shapes[name]) > 1)
    found: dict[str, None] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        module = dict(model.named_modules()).get(pattern)
        if module is not None and not list(module.parameters()):
            raise InputError(
                f"layer {pattern!r} is a {type(module).__name__} without parameters; name one with weights"
            )
        weights = [name for name in layout.match(pattern) if len(layout.shapes[name]) > 1]
        if not weights:
            raise InputError(
                f"{pattern!r} has no weight of two or more dimensions; name a linear or another such layer"
            )
        found.update(dict.fromkeys(weights))
    return tuple(name for name in layout.names if name in found)


def _scored(risk: EmpiricalRisk, name: str, score: str, limit: int) -> Tensor:
    """The scores of one weight, by a closed form where it is found to hold."""
    op = HessianOperator(risk.restrict(name))
    exact = _precise(op)
    form, closed = _kronecker(exact), None
    if form is not None:
        closed = form.diagonal() if score == "diagonal" else form.to(op.dtype).row_sums()
    elif score == "diagonal":
        closed = _diagonal(exact)
    if closed is None and op.n > limit:
        other = score != "diagonal" and _diagonal(exact) is not None
        advice = "take score='diagonal', which needs none" if other else "score a smaller layer"
        raise InputError(
            f"scores of {name} take a product of the Hessian for each of its {op.n:,} weights, more than limit = "
            f"{limit:,}; {advice}, or raise limit"
        )
    values = _streamed(op, score) if closed is None else closed.to(op.dtype)
    return (values / op.n if score == "mean" else values).view(risk.layout.shapes[name])


def _precise(op: RiskOperator) -> RiskOperator:
    """The operator in float64 where the model computes in it, else itself."""
    if op.dtype == torch.float64 or not op.computes_in(torch.float64):
        return op
    return cast(RiskOperator, op.reference())


def _is_hessian(op: RiskOperator, product: Callable[[Tensor], Tensor]) -> bool:
    """Whether a form's product along a random vector is the Hessian's."""
    v = op.space.randn(torch.Generator().manual_seed(0))  # signs may cancel exactly
    expected = op @ v
    return bool((product(v) - expected).norm() <= op.space.eps**_AGREES * expected.norm())


def _pieces(op: RiskOperator, held: int) -> Iterator[Tapped]:
    """What is known of the one weight's uses, some examples at a time; cotangents add up to the Gauss-Newton matrix.

    ``held`` numbers are held for each example and each rank of its loss.
    """
    risk, point = op.risk, op.point
    total = sum(risk.sample.survey.weights)
    for weight, batch in risk.sample.read():
        share = 1.0 if risk.reduction == "sum" else weight / total
        factors = share**0.5 * output_factors(risk.objective, point, batch)
        step = max(1, _ROWS_BYTES // (factors.shape[1] * held * factors.element_size()))
        for start in range(0, batch.num_examples, step):
            part: Batch = batch.rows(start, start + step)
            yield tapped(risk.objective, point, part, factors[start : start + step])


@dataclass(frozen=True)
class _Kronecker:
    """``sum_i B_i (x) x_i x_i^T`` with inputs ``x_i`` (N, I) and ``B_i = F_i^T F_i`` of factors (N, r, O)."""

    inputs: Tensor
    factors: Tensor

    def product(self, v: Tensor) -> Tensor:
        """The product with ``v`` (O I,)."""
        given = self.inputs @ v.view(self.factors.shape[2], -1).T
        curved = torch.einsum("nro,nr->no", self.factors, torch.einsum("nro,no->nr", self.factors, given))
        return (curved.T @ self.inputs).reshape(-1)

    def to(self, dtype: torch.dtype) -> _Kronecker:
        """The same matrix in another dtype."""
        return _Kronecker(self.inputs.to(dtype), self.factors.to(dtype))

    def diagonal(self) -> Tensor:
        """The diagonal (O I,)."""
        return (self.factors.square().sum(dim=1).T @ self.inputs.square()).reshape(-1)

    def row_sums(self) -> Tensor:
        """Sums over the rows of absolute values (O I,); blocks (a, b) are symmetric, and alike for (b, a)."""
        sums = self.inputs.new_zeros(self.factors.shape[2], self.inputs.shape[1])
        for a in range(len(sums)):
            weights = torch.einsum("nr,nrb->bn", self.factors[:, :, a], self.factors[:, :, a:])
            for b, weight in enumerate(weights, start=a):
                met = weight.nonzero()[:, 0]  # a rectifier leaves most of them out
                x = self.inputs[met]
                rows = (x.T @ (weight[met, None] * x)).abs_().sum(dim=1)
                sums[a] += rows
                if b > a:
                    sums[b] += rows
        return sums.reshape(-1)


def _kronecker(op: RiskOperator) -> _Kronecker | None:
    """The Hessian of a linear layer in closed form, or None where there is none."""
    inputs, factors = [], []
    try:
        for piece in _pieces(op, 1):
            use, d = piece.products().get(0, (None, None))
            if use is None or d is None:
                return None
            each, given = use.cotangents(d), use.features(use.given)  # (c, r, G, O, P) and (c, G, F, P)
            if given.shape[1] > 1 or given.shape[3] > 1:
                return None
            inputs.append(given.flatten(1))
            factors.append(each.flatten(2))
    except FAILURES:
        return None
    rank = max(f.shape[1] for f in factors)
    padded = [nn.functional.pad(f, (0, 0, 0, rank - f.shape[1])) for f in factors]
    form = _Kronecker(torch.cat(inputs), torch.cat(padded))
    return form if _is_hessian(op, form.product) else None


def _diagonal(op: RiskOperator) -> Tensor | None:
    """The diagonal from each example's rows, or None where it is not the Hessian's."""
    squares = products = torch.zeros(op.n, dtype=op.dtype, device=op.device)
    v = op.space.randn(torch.Generator().manual_seed(0))
    try:
        for piece in _pieces(op, op.n):
            rows = piece.rows({0}).get(0)
            if rows is None:
                return None
            flat = rows.flatten(0, 1).flatten(1)
            squares = squares + flat.square().sum(dim=0)
            products = products + (flat @ v) @ flat
    except FAILURES:
        return None
    return squares if _is_hessian(op, lambda _: products) else None


def _streamed(op: RiskOperator, score: str) -> Tensor:
    """The scores (n,), a product for each weight."""
    found = []
    for start in range(0, op.n, _COLUMNS):
        here = torch.arange(start, min(start + _COLUMNS, op.n), device=op.device)
        columns = torch.zeros(op.n, len(here), dtype=op.dtype, device=op.device)
        columns[here, here - start] = 1.0
        products = (op @ columns).abs()
        found.append(products[here, here - start] if score == "diagonal" else products.sum(dim=0))
    return torch.cat(found)
