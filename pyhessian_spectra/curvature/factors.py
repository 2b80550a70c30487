"""The factors of all batches' second derivatives in the outputs, and sums of the rows that they belong to."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.failures import tensors_in
from pyhessian_spectra.curvature.operators import EmpiricalFisherOperator, GGNOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.rows import Outputs, aligned
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats

# Sums of the rows that are taken again for their error: many of few rows, whose errors may be alike, one of many.
_SUMS, _MOST_SUMS = 512, 32


@dataclass(frozen=True)
class Factors:
    """Of one batch: its factors, scaled so that ``G`` is the sum over all batches' rows, and what is known of these.

    Parameters
    ----------
    own, used : Tensor, shapes (N, r, d) and (N, r)
        The factors, and which of them are not zero.
    coefficients : Tensor, shape (N, r', s)
        Normal random numbers for these directions, and for any further ones that they leave out.
    sums : Tensor, shape (n, s), float64
        The rows' sums with these coefficients, in float64 or at another rounding.
    terms, marks
        The examples' weights in the mean (N,), and numbers by which they are known again.
    index
        The batch's place in the data, where batches without weight count too.
    """

    own: Tensor
    used: Tensor
    coefficients: Tensor
    sums: Tensor
    terms: Floats
    marks: Tensor
    index: int


def factors_of(op: GGNOperator | EmpiricalFisherOperator) -> Iterator[tuple[Batch, Factors]]:
    """The factors of each batch.

    They are of outputs in float64 where the model computes in it: those of confident predictions are small differences.
    """
    risk, other = op.risk, op.reference() or op

    def factors(outputs: Outputs) -> Tensor:
        return outputs.factors() if isinstance(op, GGNOperator) else outputs.slopes(risk.num_terms)

    total, generator = sum(risk.sample.survey.weights), torch.Generator().manual_seed(1)
    counts: list[int] = []  # of sums, which the first batch decides
    for (weight, batch), (_, again) in zip(risk.sample.read(), other.risk.sample.read(), strict=True):
        scale = 1.0 if risk.reduction == "sum" else (weight / total) ** 0.5

        def call(weight: float = weight, batch: Batch = batch, again: Batch = again, scale: float = scale) -> Factors:
            outputs = Outputs(other.risk.objective, other.point, again)
            exact = scale * factors(outputs)
            if other.dtype != op.dtype:
                own = exact.to(op.dtype)
            else:
                here = functools.partial(Outputs, risk.objective, op.point, batch)
                own = scale * risk.objective.run(op.point, batch, lambda: factors(here()))
                exact = aligned(exact, own)
            used = own.abs().amax(dim=2) > 0
            rows = int(used.sum(dim=1).max()) * risk.num_examples
            count = counts[0] if counts else int(np.clip(_SUMS / max(1, rows), 1, _MOST_SUMS))
            counts[:] = [count]
            shape = (*exact.shape[:2], count)
            normal = torch.randn(shape, generator=generator, dtype=torch.float64).to(exact)
            if op.dtype == torch.float64:  # what is left out is far below the rounding of the others
                normal[:, : own.shape[1]] *= used[:, :, None]
                normal[:, own.shape[1] :] = 0.0
            sums = outputs.pull_back(torch.einsum("nrs,nrd->snd", normal, exact)).T.double().cpu()
            return Factors(own, used, normal, sums, _terms(risk, weight, batch), marks(batch), batch.index)

        yield batch, other.risk.objective.run(other.point, again, call)


def _terms(risk: EmpiricalRisk, weight: float, batch: Batch) -> Floats:
    """The weight of each example of a batch (N,); equal where targets do not tell."""
    try:
        terms = np.array([risk.weight_of(batch.rows(i, i + 1)) for i in range(batch.num_examples)])
    except InputError:
        terms = np.zeros(batch.num_examples)
    return weight * (terms / terms.sum() if terms.sum() > 0 else np.full(len(terms), 1 / len(terms)))


def marks(batch: Batch) -> Tensor:
    """Sums over each example's inputs and targets (N, tensors), by which its examples are known again."""
    found = []
    for x in tensors_in((batch.inputs, batch.targets)):
        if x.dim() and len(x) == batch.num_examples:
            flat = torch.nan_to_num(x.detach().double().reshape(len(x), -1))
            found.append(flat @ torch.linspace(1.0, 2.0, flat.shape[1], dtype=torch.float64, device=flat.device))
    return torch.stack(found) if found else torch.empty(0)
