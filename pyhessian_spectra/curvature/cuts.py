"""Whether a risk depends on how its data are cut into batches: whether batches have the weights of their means."""

from __future__ import annotations

import math

import torch

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.inspection import labels_averaged
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import SpectraError, UnverifiedError

_REMEDY = (
    "; pass weight=, a function of a batch that gives the number of terms that its loss averages (of a loss that is no "
    "mean, the risk is then the mean over the batches as they are)"
)


def check_cuts(risk: EmpiricalRisk, point: Point) -> str:
    """Raise UnverifiedError if the loss of two batches together is not the mean of theirs by the weights assumed.

    The first batch and the last, which differ most where data are sorted; where they do not fit together, each of them
    against its parts, as all others. Weights that the user gave are what the risk is defined by. Returns what could not
    be checked.
    """
    ends: list[tuple[float, Batch]] = []
    for pair in risk.sample.read(torch.float64) if risk.weights_guessed else ():
        ends = [*ends[:1], pair]
    if len(ends) < 2:
        return ""
    together = ends[0][1].joined(ends[1][1])
    cuts = [(ends, together)] if together is not None else [(_parts(risk, batch), batch) for _, batch in ends]
    for dtype in dict.fromkeys((torch.float64, point.dtype)):
        try:
            there = point if dtype == point.dtype else point.cast(risk.model, dtype)
            for parts, whole in cuts:
                _check_cut(risk, there, parts, whole)
            if together is None:
                _check_labels(risk, there, ends)
            break
        except UnverifiedError:
            raise
        except (SpectraError, RuntimeError, TypeError):  # as of a model that takes batches of one size
            continue
    else:
        return "weights of batches not checked, since the model takes no others"
    for _, batch in risk.sample.read():  # in the model's own dtype, since there may be many
        try:
            _check_cut(risk, point, _parts(risk, batch), batch)
        except UnverifiedError:
            raise
        except (SpectraError, RuntimeError, TypeError):
            return "weights of batches not checked one by one, since the model takes no others"
    return ""


def _parts(risk: EmpiricalRisk, batch: Batch) -> list[tuple[float, Batch]]:
    """An uneven cut of one batch, with the weights that its parts would have."""
    middle, end = (batch.num_examples + 2) // 3, batch.num_examples
    parts = [batch.rows(0, middle), batch.rows(middle, end)] if middle < end else [batch]
    return [(risk.weight_of(part), part) for part in parts]


def _check_cut(risk: EmpiricalRisk, point: Point, parts: list[tuple[float, Batch]], whole: Batch) -> None:
    parts = [(weight, part) for weight, part in parts if weight or risk.reduction == "sum"]  # a mean of no terms is NaN
    objective = risk.objective.native("eval")  # in train mode batch statistics depend on the cut, as they should
    found = [float(autodiff.loss(objective, point, b.cast(point.dtype))) for b in (whole, *(b for _, b in parts))]
    weights = [weight if risk.reduction == "mean" else 1.0 for weight, _ in parts]
    total = sum(weights) if risk.reduction == "mean" else 1.0
    expected = sum(w * value for w, value in zip(weights, found[1:], strict=True)) / total
    size = sum(w * abs(value) for w, value in zip(weights, found[1:], strict=True)) / total
    eps = torch.finfo(objective.computed_in.get(point.dtype, point.dtype)).eps
    if math.isfinite(found[0]) and not abs(found[0] - expected) <= eps**0.5 * max(size, abs(found[0])):
        what = "mean, weighted by the terms counted in the targets" if risk.reduction == "mean" else "sum"
        raise UnverifiedError(
            f"the risk depends on how the data are cut into batches: the loss of some examples is {found[0]:.6g}, the "
            f"{what}, of its values on two parts of them {expected:.6g}{_REMEDY}"
        )


def _check_labels(risk: EmpiricalRisk, point: Point, batches: list[tuple[float, Batch]]) -> None:
    """Compare weights with the numbers by which cross-entropy has divided, which its graph holds."""

    def averaged(batch: Batch) -> float | None:
        batch = batch.cast(point.dtype)
        return risk.objective.run(point, batch, lambda: labels_averaged(risk.objective.evaluate(batch)[1]))

    ratios = [count / weight for weight, batch in batches if (count := averaged(batch)) is not None]
    if len(ratios) == 2 and not math.isclose(*ratios, rel_tol=1e-6):
        raise UnverifiedError(
            f"the weights of batches are not the numbers of labels that the loss averages: {ratios[0]:.4g} and "
            f"{ratios[1]:.4g} for each term counted in the targets{_REMEDY}"
        )
