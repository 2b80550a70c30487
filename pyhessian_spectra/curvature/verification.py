"""verify: whether an operator's products are the derivatives that they are called, found from values of the loss.

The oracle is the user's model and loss on torch's own operations. Their values along a random line tell whether
gradients are right, and gradients along it whether products are. Differences are taken in float64 whatever the model's
dtype, on a few examples, at the first of several steps at which they agree: small ones, within which kinks are unlikely
to lie, then large ones, which rounding disturbs less.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pyhessian_spectra.curvature.cases import NO_GRADIENT, Case, parameter_scale
from pyhessian_spectra.curvature.cuts import check_cuts
from pyhessian_spectra.curvature.differences import Comparison, seen
from pyhessian_spectra.curvature.faults import place_of_fault
from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator, leaves_of
from pyhessian_spectra.errors import UnverifiedError
from pyhessian_spectra.spectra.operator import LinearOperator

# Above this, relative, products that are rounded differ from exact ones by more than users would take for rounding.
_ROUNDED = 0.01

# How far beside a point derivatives are compared where they do not agree at it, relative to each parameter's size.
_BESIDE = 0.01

_KINK = (
    "The loss has a kink at exactly these parameters, as where inputs and biases are zero: derivatives are those of "
    "one side. They were checked at a point nearby."
)


class Verdict(NamedTuple):
    """What :func:`verify` found to be right, in words, and sentences about what it could not see."""

    found: str
    doubts: tuple[str, ...] = ()


def verify(op: LinearOperator) -> Verdict:
    """Check a curvature operator, or those that it is composed of, and the weights of its risk's batches.

    Raises UnverifiedError, on all ranks alike, with a sentence that says where the fault lies as far as that can be
    told. It costs about ten gradients of sixteen examples for each operator; and for the first one two values and a
    gradient of the whole risk, and the losses of each batch and of its parts.
    """
    verdicts, leaves = [], list(leaves_of(op))
    for leaf in leaves:
        failure: Exception | None = None
        try:
            verdicts.append(_checked(leaf))
            if leaf is leaves[0]:
                verdicts.append(Verdict(check_cuts(leaf.risk, leaf.point)))
        except Exception as error:
            failure = error
        leaf.risk.sample.processes.agree(failure)
    if leaves:
        verdicts.append(_check_whole(leaves[0]))
    found = "; ".join(dict.fromkeys(filter(None, (each.found for each in verdicts))))
    return Verdict(found, tuple(dict.fromkeys(doubt for each in verdicts for doubt in each.doubts)))


def _check_whole(op: RiskOperator) -> Verdict:
    """Compare the gradient over all examples with two values of the risk, which may know other cases than the first."""
    risk, point = op.risk, op.point
    if op.computes_in(torch.float64) and op.dtype != torch.float64:
        risk, point = risk.replace(dtype=torch.float64), point.cast(risk.model, torch.float64)
    comparison = _compared_whole(risk, point)
    if not comparison.refuted:
        return Verdict("")
    if not _compared_whole(risk, _beside(risk, point)).agrees:
        raise UnverifiedError(f"{comparison.what}, by {comparison.best:.2g}, relative, on some that come later")
    return Verdict("", (_KINK,))


def _compared_whole(risk: EmpiricalRisk, point: Point) -> Comparison:
    """The gradient along a random line against the rise of the risk."""
    eps, scale = torch.finfo(point.dtype).eps, parameter_scale(risk, point)
    v = scale * torch.randn(len(scale), generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(scale)
    gradient = risk.gradient(point)
    comparison = Comparison(
        f"the gradient over all examples differs from differences of the risk ({NO_GRADIENT})", 1e-3
    )
    size = float((scale * gradient).norm())
    for step in (0.1 * eps ** (1 / 3), eps ** (1 / 3), 10 * eps ** (1 / 3)):
        values = [risk.loss(point.moved(v, s)) for s in (step, -step)]
        rise = v.new_tensor((values[0] - values[1]) / (2 * step))
        comparison.add(gradient @ v, rise, size, 100 * eps * abs(values[0]) / (2 * step))
        if comparison.agrees:
            break
    return comparison


def _checked(op: RiskOperator) -> Verdict:
    """Check one operator; nothing is found where this rank has no data."""
    case = Case.of(op)
    if case is None:
        return Verdict("")
    inside = case.computed_in(op.point)
    if torch.finfo(inside).eps > torch.finfo(op.dtype).eps:
        raise UnverifiedError(
            f"the model computes in {_name(inside)} while its parameters are {_name(op.dtype)}, so that products are "
            "less exact than any error of a number would say; let it compute in the dtype of its parameters"
        )
    examples = f"{case.batch.num_examples} examples"
    comparisons, doubts = list(case.comparisons()), []
    if any(each.refuted for each in comparisons):
        beside = Case.of(op.at(_beside(op.risk, op.point)))
        others = [] if beside is None else list(beside.comparisons())
        if others and all(each.agrees for each in others):
            comparisons = others
            doubts.append(_KINK)
    for comparison in comparisons:
        if comparison.refuted:
            told = f"{comparison.what}, by {comparison.best:.2g}, relative, on {examples}"
            if case.loss(case.op.point) != case.loss(case.op.point):
                raise UnverifiedError(f"{told}; the model or the loss changes from call to call")
            if comparison.placed:
                told = f"{told}; {place_of_fault(op.risk, case.batch.cast(op.dtype), _is_refuted)}"
            raise UnverifiedError(told)
    if (off := case.off_in(op)) > _ROUNDED:
        doubts.append(
            f"Products with the {op.kind} in {_name(op.dtype)} differ from those in float64 by {off:.1g}, relative, on "
            f"{examples}: by rounding, or because the model is another function there. Matrices are built in float64."
        )
    right, unseen = seen(comparisons)
    if unseen:
        doubts.append(
            f"Whether {unseen} are right cannot be seen from differences on {examples} ({op.kind}): rounding or kinks "
            "of the loss disturb these more."
        )
    return Verdict(right and f"{op.kind} on {examples}: {right}", tuple(doubts))


def _beside(risk: EmpiricalRisk, point: Point) -> Point:
    """A point nearby, where no parameter is zero by its initialisation."""
    scale = parameter_scale(risk, point)
    drawn = torch.randn(len(scale), generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(scale)
    return point.moved(scale * drawn, _BESIDE)


def _is_refuted(risk: EmpiricalRisk) -> bool:
    case = Case.of(HessianOperator(risk))
    return case is not None and any(comparison.refuted for comparison in case.comparisons())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
