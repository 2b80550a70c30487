"""The spectrum of the Gauss-Newton matrix from the Gram matrix of its rows, exact for the whole and for each group.

The Gauss-Newton matrix is ``G = A^T A``, where ``A`` has a row for each example and each direction in which the loss of
its outputs is curved: ``A = S J`` with ``S^T S`` the loss' second derivative in the outputs. The Gram matrix ``K = A
A^T`` has the same non-zero eigenvalues, is small where there are fewer rows than parameters, and is the sum of those of
groups of parameters (Dangel, Tatzel and Hennig 2022, ViViT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.examples import Examples, read_examples
from pyhessian_spectra.curvature.factors import Factors, factors_of, marks
from pyhessian_spectra.curvature.failures import FAILURES
from pyhessian_spectra.curvature.features import Plan, RowFeatures
from pyhessian_spectra.curvature.inner_products import InnerProducts
from pyhessian_spectra.curvature.operators import EmpiricalFisherOperator, GGNOperator
from pyhessian_spectra.curvature.partition import Partition
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.curvature.rows import pull_back
from pyhessian_spectra.errors import InputError, NonFiniteError, SpectraError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.spectra.bounds import residuals_of
from pyhessian_spectra.spectra.gram import GramMatrix
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.results import Eigenpairs, Floats
from pyhessian_spectra.spectra.rounding import SAFETY

#: Most rows of a Gram matrix unless another limit is given.
LIMIT = 10_000

# What few sums of the rows show of their error may be small by chance: errors along a single vector exceed ``_CAREFUL``
# times what one sum shows in 8 cases of 100, and ``SAFETY`` times what ``_ENOUGH`` show in one of 1e4.
_ENOUGH, _CAREFUL = 8, 10.0

# Rows are wrong, and not only rounded, if sums of them are off by more, relative; and if no way gives them to this.
_WRONG, _OTHER = 1e-2, 0.1

_REASON = "vmap fails for them, or examples differ in what the model does with them"


@dataclass(frozen=True, repr=False)
class GGNGram(GramMatrix):
    """Gram matrices of the rows of a Gauss-Newton matrix ``G = A^T A``, from :func:`ggn_gram`.

    It is that of the whole; for the other fields see :class:`GramMatrix`.

    Parameters
    ----------
    groups : mapping of str to GramMatrix
        Those of the groups of the partition: the eigenvalues of ``K_g`` are those of the diagonal block ``G_gg``.
    examples : ndarray, shape (m,), int64
        The example that each row belongs to, counted over all batches that have any weight.
    weights : ndarray, shape (N,), float64, or None
        Each example's share in the mean, so that the matrix of a mean over a subset is the rows' principal submatrix
        over the subset's share; None where the loss is a sum.
    factors : tuple of ndarray, shape (m_b, d), float64
        The cotangents of the outputs (d,) that each batch's rows are pulled back from: ``J_i^T factor`` is a row.
    notes : tuple of Note
    """

    groups: Mapping[str, GramMatrix]
    examples: np.ndarray
    weights: Floats | None
    factors: tuple[Floats, ...]
    notes: tuple[Note, ...]
    _op: RiskOperator

    @property
    def point(self) -> Point:
        """Where the matrix was taken, which the model may have left since."""
        return self._op.point

    def answers(self, risk: EmpiricalRisk) -> Examples:
        """What the model says of the examples where the matrix was taken; raises InputError if the risk has others."""
        found = read_examples(risk, self.point)
        counts = self.examples.max() < len(found) if self.weights is None else len(self.weights) == len(found)
        if not counts or [f.shape[1] for f in self.factors] != [o.shape[1] for o in found.outputs]:
            raise InputError(
                f"the Gram matrix is not of this risk's {len(found)} examples; build it with ggn_gram(risk)"
            )
        return found

    def example_shares(self, k: int = 1) -> Floats:
        """Each example's share in each of the ``k`` largest eigenvalues, shape (N, k); columns sum to 1.

        The share is the sum of ``u_i^2`` over the example's rows, ``u`` the eigenvector of ``K``; ranks descend.
        """
        squares = self.top(k)[1][:, ::-1] ** 2
        shares = np.zeros((int(self.examples.max()) + 1, squares.shape[1]))
        np.add.at(shares, self.examples, squares)
        return shares

    def eigenpairs(self, k: int) -> Eigenpairs:
        """The ``k`` largest eigenpairs of ``G``: vectors ``A^T u / sqrt(lambda)``, residuals from ``k`` fresh products.

        Raises InputError unless ``1 <= k <= rank``.
        """
        if not 1 <= k <= self.rank():
            raise InputError(f"k must be between 1 and the rank {self.rank()}, got {k}")
        values, u = self.top(k)
        vectors = self.combine(torch.from_numpy(u))
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
        op, off = Meter(self._op), self.rounding
        residuals = residuals_of(op, values, vectors, (op @ v for v in vectors.unbind(1)))
        return Eigenpairs(
            values,
            residuals,
            residuals <= np.maximum(1e-4 * values, 2 * off),
            vectors.cpu().numpy(),
            op.num_products,
            lower=values - off,
            upper=values + off,
            rounding=off,
        )

    def combine(self, coefficients: Tensor) -> Tensor:
        """Linear combinations ``A^T u`` (n, k) of the rows, for coefficients (m, k), by a backward pass each."""
        risk, point, start, first = self._op.risk, self._op.point, 0, 0
        total = torch.zeros(coefficients.shape[1], point.layout.n, dtype=point.dtype, device=risk.device)
        for (_, batch), factors in zip(risk.sample.read(), self.factors, strict=True):
            own = slice(start, start + len(factors))
            spread = coefficients[own].T[:, :, None] * torch.from_numpy(factors)
            cotangents = spread.new_zeros(len(spread), batch.num_examples, factors.shape[1])
            cotangents.index_add_(1, torch.from_numpy(self.examples[own] - first), spread)
            total += pull_back(risk.objective, point, batch, cotangents.to(total))
            start, first = start + len(factors), first + batch.num_examples
        return total.T


def ggn_gram(
    risk: EmpiricalRisk,
    *,
    partition: Partition | None = None,
    point: Point | None = None,
    memory_budget: int | None = None,
    limit: int = LIMIT,
) -> GGNGram:
    """Gram matrices of the Gauss-Newton matrix of a risk, whole and by group.

    Rows of weights and biases of linear layers, convolutions and normalisations follow from the layers' inputs and the
    cotangents of their outputs, one backward pass for each rank of an example; those of other parameters are taken
    together by ``vmap``, or one by one, with a note, where that fails.

    Parameters
    ----------
    risk : EmpiricalRisk
        Its loss must be a sum or a mean of convex functions of single examples' outputs.
    partition : Partition, optional
        By default the layers.
    point : Point, optional
        By default a copy of the model's current parameters.
    memory_budget : int, optional
        Bytes of memory for what is kept of the rows, and for the matrices, beyond which they go to disk; by default
        half of the free memory.
    limit : int
        Largest number ``m`` of rows: ``N (C - 1)`` for cross-entropy over ``C`` classes.

    Raises
    ------
    InputError
        The risk is distributed, has more rows than ``limit`` or none, or no outputs, or its loss is not convex in the
        outputs or mixes those of several examples.
    """
    return _gram_of(GGNOperator(risk, point=point), partition, memory_budget, limit)


def fisher_gram(
    risk: EmpiricalRisk,
    *,
    partition: Partition | None = None,
    point: Point | None = None,
    memory_budget: int | None = None,
    limit: int = LIMIT,
) -> GGNGram:
    """As :func:`ggn_gram`, of the empirical Fisher matrix: it has one row for each example, its loss' gradient.

    The loss must be a mean; raises InputError otherwise.
    """
    if risk.reduction == "sum":
        raise InputError("the empirical Fisher matrix is that of a mean loss, and this one is a sum")
    return _gram_of(EmpiricalFisherOperator(risk, point=point), partition, memory_budget, limit)


def _gram_of(
    op: GGNOperator | EmpiricalFisherOperator, partition: Partition | None, memory_budget: int | None, limit: int
) -> GGNGram:
    risk = op.risk
    if risk.sample.processes:
        raise InputError("a Gram matrix is built in one process; pass the risk without a process group")
    partition = partition or Partition.by_layer(risk.layout)
    plan, every = Plan(set(range(len(op.point.coordinates)))), list[Factors]()
    for batch, factors in factors_of(op):
        every.append(factors)
        if sum(int(f.used.sum()) for f in every) > limit:
            raise InputError(f"the matrix has more than limit = {limit:,} rows; take fewer examples, or raise limit")
        plan.try_out(risk.objective, op.point, batch, factors.own)
    if not any(bool(f.used.any()) for f in every):
        raise InputError("no example's loss is curved in the outputs: the matrix is zero at this point")
    again = torch.stack([f.sums for f in every]).sum(dim=0)
    try:
        features, inner = _multiplied(op, partition, plan, every, memory_budget)
        wrong = _apart(inner, again) > _WRONG
    except (SpectraError, *FAILURES):
        wrong = True
    if wrong:  # what some examples do differs from what the first ones did
        plan = Plan(set(), {}, {f.index for f in every})
        features, inner = _multiplied(op, partition, plan, every, memory_budget)
        if (apart := _apart(inner, again)) > _OTHER:
            raise InputError(
                f"derivatives of the outputs differ by {apart:.1%} when they are taken again: the data or the model "
                "change from pass to pass, or its precision does not do; give the same examples each time, or take "
                "float64"
            )
    dtype = str(op.dtype).removeprefix("torch.")
    known, difference = inner.sums, inner.sums - again

    def gram(matrix: Floats, summed: float, among: Tensor) -> dict[str, Any]:
        """A Gram matrix with its errors, as two extremes show them: of each row for itself, of all in proportion."""
        count, size = known.shape[1], float(np.trace(matrix)) ** 0.5
        seen, off = (float(x[among].norm()) / count**0.5 for x in (known, difference))
        off = max(off * max(1.0, size / seen if seen else 1.0), torch.finfo(op.dtype).eps * size)
        return {
            "matrix": matrix,
            "n": int(among.sum()),
            "dtype": dtype,
            "rows_off": (SAFETY if count >= _ENOUGH else _CAREFUL) * off,
            "sums_off": summed,
        }

    terms = np.concatenate([f.terms for f in every])
    owner = _owner(op.n, partition)
    groups = {
        group.label: GramMatrix(**gram(inner.matrices[number], float(inner.off[number]), owner == number))
        for number, group in enumerate(partition)
    }
    return GGNGram(
        **gram(inner.matrices.sum(axis=0), float(inner.off.sum()), torch.ones(op.n, dtype=torch.bool)),
        groups=groups,
        examples=features.examples,
        weights=None if risk.reduction == "sum" else terms / terms.sum(),
        factors=tuple(f.own[f.used].double().cpu().numpy() for f in every),
        notes=tuple(
            Note("verification", f"Rows of batch {index} were taken one by one: {_REASON}.")
            for index in sorted(plan.alone)
        ),
        _op=op,
    )


def _multiplied(
    op: RiskOperator, partition: Partition, plan: Plan, every: Sequence[Factors], memory_budget: int | None
) -> tuple[RowFeatures, InnerProducts]:
    """The rows as the plan says, and their inner products."""
    features = RowFeatures(op.risk.objective, op.point, plan, memory_budget)
    for (_, batch), f in zip(op.risk.sample.read(), every, strict=True):
        if not torch.equal(marks(batch), f.marks):
            raise InputError("data gave other examples in a second pass; it must give the same ones in the same order")
        features.add(batch, f.own)
    own = [f.coefficients[:, : f.own.shape[1]][f.used] for f in every]
    coefficients, owner = torch.cat(own).double().cpu(), _owner(op.n, partition)
    inner = InnerProducts(features, op.risk.layout, owner, coefficients, memory_budget)
    if not np.isfinite(inner.matrices).all():
        raise NonFiniteError("inner products of the rows are NaN or infinite; look at the inputs, or use float64")
    return features, inner


def _owner(n: int, partition: Partition) -> Tensor:
    """The number of each coordinate's group (n,), the last one for those without."""
    owner = torch.full((n,), len(partition))
    for number, group in enumerate(partition):
        owner[group.indices] = number
    return owner


def _apart(inner: InnerProducts, again: Tensor) -> float:
    """How far the sums of the rows are from those taken again, relative."""
    return float((inner.sums - again).norm()) / max(float(again.norm()), torch.finfo(torch.float64).tiny)
