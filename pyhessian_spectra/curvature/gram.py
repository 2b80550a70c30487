"""The spectrum of the Gauss-Newton matrix from the Gram matrix of its rows, exact for the whole and for each group.

The Gauss-Newton matrix is ``G = A^T A``, where ``A`` has a row for each example and each direction in which the loss of
its outputs is curved: ``A = S J`` with ``S^T S`` the loss' second derivative in the outputs. The Gram matrix ``K = A
A^T`` has the same non-zero eigenvalues, is small where there are fewer rows than parameters, and is the sum of those of
groups of parameters (Dangel, Tatzel and Hennig 2022, ViViT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.examples import Examples, read_examples
from pyhessian_spectra.curvature.objective import FAILURES
from pyhessian_spectra.curvature.operators import GGNOperator
from pyhessian_spectra.curvature.partition import Partition
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.rows import output_factors, pull_back, rows_one_by_one, rows_together
from pyhessian_spectra.errors import InputError, SpectraError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.spectra.basis import KrylovBasis
from pyhessian_spectra.spectra.bounds import residuals_of
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, TraceEstimate
from pyhessian_spectra.spectra.rounding import SAFETY, Rounding
from pyhessian_spectra.spectra.spectrum import Spectrum

# Rows that were taken together are wrong, and not only rounded, if a sum of those of so many examples is off by more.
_WRONG, _TRIED = 1e-3, 4

# Coordinates whose products are summed in the rows' own dtype.
_STRIP = 2**13


@dataclass(frozen=True)
class GGNGram:
    """Gram matrices of the rows of a Gauss-Newton matrix ``G = A^T A``, from :func:`ggn_gram`.

    Parameters
    ----------
    matrix : ndarray, shape (m, m), float64
        ``K = A A^T`` of all parameters.
    groups : mapping of str to ndarray, shape (m, m), float64
        Those of the groups of the partition: the eigenvalues of ``K_g`` are those of the diagonal block ``G_gg``.
    sizes : mapping of str to int
        Number of parameters in each group.
    examples : ndarray, shape (m,), int64
        The example that each row belongs to, counted over all batches.
    weights : ndarray, shape (N,), float64, or None
        Each example's share in the mean, so that the matrix of a mean over a subset is the rows' principal submatrix
        over the subset's share; None where the loss is a sum.
    factors : tuple of ndarray, shape (m_b, d), float64
        The cotangents of the outputs (d,) that each batch's rows are pulled back from: ``J_i^T factor`` is a row.
    rounding : float
        Measured bound on how far rounding has moved any eigenvalue, of the whole or of a group.
    notes : tuple of Note
    """

    matrix: Floats
    groups: Mapping[str, Floats]
    sizes: Mapping[str, int]
    examples: np.ndarray
    weights: Floats | None
    factors: tuple[Floats, ...]
    rounding: float
    notes: tuple[Note, ...]
    _op: Meter
    _rows: KrylovBasis

    @property
    def point(self) -> Point:
        """Where the matrix was taken, which the model may have left since."""
        assert isinstance(self._op.op, GGNOperator)
        return self._op.op.point

    def answers(self, risk: EmpiricalRisk) -> Examples:
        """What the model says of the examples where the matrix was taken; raises InputError if the risk has others."""
        found = read_examples(risk, self.point)
        counts = self.examples.max() < len(found) if self.weights is None else len(self.weights) == len(found)
        if not counts or [f.shape[1] for f in self.factors] != [o.shape[1] for o in found.outputs]:
            raise InputError(
                f"the Gram matrix is not of this risk's {len(found)} examples; build it with ggn_gram(risk)"
            )
        return found

    def eigenvalues(self, group: str | None = None) -> Floats:
        """The eigenvalues (m,) of ``K`` or of a group's, ascending; where ``m > n``, the ``n`` largest of them."""
        matrix, n = self._of(group)
        return np.asarray(np.linalg.eigvalsh(matrix)[max(0, len(matrix) - n) :], np.float64)

    def spectrum(self, group: str | None = None) -> Spectrum:
        """The exact spectrum of ``G``, or of a group's block: the eigenvalues of the Gram matrix, and zeros."""
        found, (_, n) = self.eigenvalues(group), self._of(group)
        values = np.concatenate([np.zeros(n - len(found)), found])
        return Spectrum.from_eigenvalues(values, dtype=str(self._op.dtype).split(".")[-1], rounding=self.rounding)

    def trace(self, group: str | None = None) -> TraceEstimate:
        """The trace of ``G`` or of a group's block."""
        matrix, _ = self._of(group)
        # the difference of two matrices of rank m has at most 2 m eigenvalues
        off = (2 * len(matrix)) ** 0.5 * self.rounding
        return TraceEstimate(float(np.trace(matrix)), 0.0, 0, "Gram matrix", rounding=off)

    def frobenius(self, group: str | None = None) -> TraceEstimate:
        """The Frobenius norm of ``G`` or of a group's block."""
        norm = float(np.linalg.norm(self._of(group)[0]))
        return TraceEstimate(norm, 0.0, 0, "Gram matrix", rounding=self.rounding)

    def rank(self, group: str | None = None) -> int:
        """How many eigenvalues are certain not to be zero."""
        return int((self.eigenvalues(group) > self.rounding).sum())

    def effective_dimension(self, damping: float, group: str | None = None) -> float:
        """``sum_i lambda_i / (lambda_i + damping)``; raises InputError unless the damping is positive."""
        if not damping > 0:
            raise InputError(f"damping must be positive, got {damping}")
        values = self.eigenvalues(group).clip(0.0)
        return float((values / (values + damping)).sum())

    def example_shares(self, k: int = 1) -> Floats:
        """Each example's share in each of the ``k`` largest eigenvalues, shape (N, k); columns sum to 1.

        The share is the sum of ``u_i^2`` over the example's rows, ``u`` the eigenvector of ``K``; ranks descend.
        """
        squares = np.linalg.eigh(self.matrix)[1][:, : -k - 1 : -1] ** 2
        shares = np.zeros((int(self.examples.max()) + 1, squares.shape[1]))
        np.add.at(shares, self.examples, squares)
        return shares

    def eigenpairs(self, k: int) -> Eigenpairs:
        """The ``k`` largest eigenpairs of ``G``: vectors ``A^T u / sqrt(lambda)``, residuals from ``k`` fresh products.

        Raises InputError unless ``1 <= k <= rank``.
        """
        if not 1 <= k <= self.rank():
            raise InputError(f"k must be between 1 and the rank {self.rank()}, got {k}")
        values, u = np.linalg.eigh(self.matrix)
        values, u = values[-k:], u[:, -k:]
        vectors = self._rows.combine(torch.from_numpy(u / np.sqrt(values)))
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
        before = self._op.num_products
        residuals = residuals_of(self._op, values, vectors, (self._op @ v for v in vectors.unbind(1)))
        off = self.rounding
        return Eigenpairs(
            values,
            residuals,
            residuals <= np.maximum(1e-4 * values, 2 * off),
            vectors.cpu().numpy(),
            self._op.num_products - before,
            lower=values - off,
            upper=values + off,
            rounding=off,
        )

    def _of(self, group: str | None) -> tuple[Floats, int]:
        if group is None:
            return self.matrix, self._op.n
        if group not in self.groups:
            raise InputError(f"there is no group {group!r}; there are {', '.join(self.groups)}")
        return self.groups[group], self.sizes[group]


def ggn_gram(
    risk: EmpiricalRisk,
    *,
    partition: Partition | None = None,
    point: Point | None = None,
    memory_budget: int | None = None,
    limit: int = 10_000,
) -> GGNGram:
    """Gram matrices of the Gauss-Newton matrix of a risk, whole and by group.

    Parameters
    ----------
    risk : EmpiricalRisk
        Its loss must be a sum or a mean of convex functions of single examples' outputs.
    partition : Partition, optional
        By default the layers.
    point : Point, optional
        By default a copy of the model's current parameters.
    memory_budget : int, optional
        Bytes of memory for the rows (m, n), beyond which they go to disk; by default half of the free memory.
    limit : int
        Largest number ``m`` of rows: ``N (C - 1)`` for cross-entropy over ``C`` classes.

    Raises
    ------
    InputError
        The risk is distributed, has more rows than ``limit`` or none, or no outputs, or its loss is not convex in the
        outputs or mixes those of several examples.
    """
    if risk.sample.processes:
        raise InputError("a Gram matrix is built in one process; pass the risk without a process group")
    matrix = GGNOperator(risk, point=point)
    op, point, partition = Meter(matrix), matrix.point, partition or Partition.by_layer(risk.layout)
    total = sum(risk.sample.survey.weights) if risk.reduction == "mean" else None
    rows, examples, notes, first = KrylovBasis(op.space, memory_budget=memory_budget), [], [], 0
    terms, kept = [], []
    for weight, batch in risk.sample.read():
        factors = output_factors(risk.objective, point, batch) * (1.0 if total is None else (weight / total) ** 0.5)
        used = factors.abs().amax(dim=2) > 0
        if len(rows) + int(used.sum()) > limit:
            raise InputError(f"G has more than limit = {limit:,} rows; take fewer examples, or raise limit")
        build = rows_together
        if not _are_right(risk, point, batch, factors):
            build = rows_one_by_one
            notes.append(
                Note("verification", f"Rows of batch {batch.index} were taken one by one: vmap fails for them.")
            )
        start = 0
        for part in build(risk.objective, point, batch, factors):
            for row in part[used[start : start + len(part)]]:
                rows.append(row, 1.0)
            start += len(part)
        examples.append(first + used.nonzero()[:, 0])
        kept.append(factors[used].double().cpu().numpy())
        terms.append(weight * _shares(risk, batch))
        first += batch.num_examples
    if not len(rows):
        raise InputError("no example's loss is curved in the outputs: the Gauss-Newton matrix is zero at this point")
    grams = {group.label: _gram(rows, group.indices) for group in partition}
    rest = torch.ones(op.n, dtype=torch.bool)
    rest[torch.cat([group.indices for group in partition])] = False
    whole = np.sum([*grams.values(), _gram(rows, rest.nonzero()[:, 0])], axis=0)
    return GGNGram(
        whole,
        grams,
        {group.label: len(group) for group in partition},
        torch.cat(examples).cpu().numpy(),
        None if total is None else np.concatenate(terms) / total,
        tuple(kept),
        _off(rows, op, whole),
        tuple(notes),
        op,
        rows,
    )


def _shares(risk: EmpiricalRisk, batch: Batch) -> Floats:
    """Each example's share in the batch's mean (N,); equal where targets do not tell."""
    try:
        terms = np.array([risk.weight_of(batch.rows(i, i + 1)) for i in range(batch.num_examples)])
    except InputError:
        terms = np.zeros(batch.num_examples)
    return terms / terms.sum() if terms.sum() > 0 else np.full(batch.num_examples, 1 / batch.num_examples)


def _are_right(risk: EmpiricalRisk, point: Point, batch: Batch, factors: Tensor) -> bool:
    """Whether the rows of the first examples, taken together, are those of the whole batch."""
    try:
        part = next(rows_together(risk.objective, point, batch, factors[:_TRIED]))
    except (SpectraError, *FAILURES):  # whatever vmap cannot take
        return False
    signs = torch.randint(0, 2, part.shape[:2], generator=torch.Generator().manual_seed(0)).to(part) * 2 - 1
    cotangents = torch.zeros_like(factors[:, 0])
    cotangents[: len(part)] = (signs[:, :, None] * factors[: len(part)]).sum(dim=1)
    expected = pull_back(risk.objective, point, batch, cotangents)
    found = (signs[:, :, None] * part).sum(dim=(0, 1))
    return bool((found - expected).abs().max() <= _WRONG * expected.abs().max())


def _gram(rows: KrylovBasis, indices: Tensor) -> Floats:
    """The Gram matrix (m, m) of these coordinates of the rows, summed in float64 over strips of them."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for strip in indices.split(_STRIP):
        part = rows.coordinates(strip)
        total += (part @ part.T).cpu()
    return total.numpy()


def _off(rows: KrylovBasis, op: Meter, gram: Floats) -> float:
    """A bound on how far eigenvalues of the Gram matrix are from those of ``G``, by Weyl's inequality."""
    generator = torch.Generator().manual_seed(0)
    v = op.space.rademacher(generator)
    product = rows.combine(rows.dots(v)[:, None])[:, 0]
    u = torch.randint(0, 2, (len(rows),), generator=generator).double() * 2 - 1
    again = rows.dots(rows.combine(u[:, None])[:, 0]).cpu().numpy()
    return Rounding(op).seen([(v, product)]).norm + SAFETY * float(np.linalg.norm(gram @ u.numpy() - again))
