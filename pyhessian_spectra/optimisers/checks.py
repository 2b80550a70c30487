"""What an optimiser is given, checked before it moves a parameter."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.distributed import Processes
from pyhessian_spectra.curvature.losses import ClosureObjective
from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError, NonFiniteError, SpectraError
from pyhessian_spectra.spectra.lanczos import lanczos

# Lanczos steps that look for negative curvature of a loss in the outputs.
_STEPS = 20


def require_range(name: str, value: Any, *, below: float = math.inf) -> float:
    """The value as a float; raises InputError if it is not a number of at least 0, finite and less than ``below``."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 <= number < below:
        end = "finite" if below == math.inf else f"less than {below:g}"
        raise InputError(f"{name} must be a number of at least 0 and {end}, got {value!r}")
    return number


def require_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raise InputError if a state cannot be loaded by this optimiser."""
    kind, groups = type(optimizer).__name__, state.get("param_groups", [{}]) if isinstance(state, Mapping) else [{}]
    if any(group.get("optimiser") != kind for group in groups):
        raise InputError(f"this is not the state of a {kind}; load the one that its state_dict() gave")
    own = [p for group in optimizer.param_groups for p in group["params"]]
    places = [place for group in groups for place in group["params"]]
    if len(own) != len(places):
        raise InputError(f"the state is of {len(places)} parameters, the optimiser has {len(own)}; build it alike")
    for place, p in zip(places, own, strict=True):
        for value in state["state"].get(place, {}).values():
            if value.shape != p.shape:
                raise InputError(
                    f"the state has a parameter of shape {tuple(value.shape)} where the optimiser's is "
                    f"{tuple(p.shape)}; build it of the same model"
                )


def require_agreement(processes: Processes, params: Sequence[Tensor], shared: Mapping[str, Any]) -> None:
    """Raise InputError on all ranks if they do not have the same parameters, or anything else that they share."""
    if not processes:
        return
    digest = hashlib.sha256()
    for p in params:
        digest.update(p.detach().cpu().numpy().tobytes())
    everyone = processes.gather({"parameters": digest.hexdigest(), **shared})
    for name, value in everyone[0].items():
        if any(other.get(name) != value for other in everyone):
            raise InputError(
                f"processes do not have the same {name}; start all from one checkpoint, with the same settings and the "
                "same seed of a random partition"
            )


def num_examples(risk: EmpiricalRisk) -> int | None:
    """Examples of a risk, or of closures that were called, on all ranks; None if one of these returned no outputs."""
    if not isinstance(risk.objective, ClosureObjective):
        return risk.num_examples
    counts = risk.sample.processes.gather(risk.objective.num_examples)
    return None if None in counts else sum(count or 0 for count in counts)


def require_fewer(used: int | None, full: int | None) -> None:
    """Raise InputError if the curvature's examples are not fewer than the gradient's, as far as both are known."""
    if used is not None and full is not None and used >= full:
        raise InputError(
            f"the curvature's {used} examples are not fewer than the gradient's {full}; pass a smaller subset, or none"
        )


def require_dependence(risk: EmpiricalRisk, point: Point) -> None:
    """Raise InputError if the loss depends on none of the parameters."""

    def check(batch: Batch) -> None:
        value = risk.objective.evaluate(batch)[1]
        found = torch.autograd.grad(value, point.coordinates, allow_unused=True) if value.requires_grad else [None]
        if all(part is None for part in found):
            raise InputError(
                "the loss depends on none of the optimiser's parameters; build the optimiser from the model that "
                "computes it"
            )

    _with_first_batch(risk, point, check)


def require_repeatable(risk: EmpiricalRisk, point: Point, loss: float) -> None:
    """Raise InputError if the risk has another value than ``loss``, which it had before at the same parameters."""
    again = risk.loss(point)
    computed_in = risk.objective.computed_in.get(risk.dtype, risk.dtype)
    if abs(again - loss) > torch.finfo(computed_in).eps ** 0.5 * abs(loss):
        raise InputError(
            f"the loss at the same parameters was {loss:.6g} and then {again:.6g}, and a step takes it several times; "
            "switch off what draws at random (dropout, augmentation, a loader that leaves examples out), or seed it in "
            "the closure"
        )


def require_convex_loss(risk: EmpiricalRisk, point: Point) -> None:
    """Raise InputError if the loss has negative curvature in the outputs, as Lanczos sees it."""

    def check(batch: Batch) -> None:
        outputs, value = risk.objective.evaluate(batch)
        if not math.isfinite(float(value.detach())):
            raise NonFiniteError("the loss of the curvature's batch is NaN or infinite; look at its inputs")
        tensors = risk.objective.selected(outputs)
        op = HessianOperator.from_loss(value, tensors)
        found = lanczos(op, op.space.sphere(torch.Generator().manual_seed(0)), min(_STEPS, op.n)).eigh()[0]
        computed_in = risk.objective.computed_in.get(risk.dtype, risk.dtype)
        if found[0] < -abs(found).max() * torch.finfo(computed_in).eps ** 0.5:
            raise InputError(
                f"the loss has curvature {found[0]:.3g} in the outputs, so that its Gauss-Newton matrix is not "
                "positive semidefinite; use a loss that is convex in them, or curvature=HessianOperator"
            )

    _with_first_batch(risk, point, check)


def _with_first_batch(risk: EmpiricalRisk, point: Point, check: Callable[[Batch], None]) -> None:
    """Check each rank's first batch; if one fails, all raise."""
    failure = None
    try:
        for _, batch in itertools.islice(risk.sample.read(), 1):
            risk.objective.run(point, batch, lambda: check(batch))  # noqa: B023 - called at once
    except SpectraError as error:
        failure = error
    risk.sample.processes.agree(failure)
