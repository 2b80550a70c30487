"""Objectives whose loss is not one of outputs and targets: of a whole batch, or of a function without arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.failures import tensors_in
from pyhessian_spectra.curvature.inspection import refuse_dependent
from pyhessian_spectra.curvature.objective import Objective
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.errors import InputError

_T = TypeVar("_T")


class BatchObjective(Objective):
    """A loss of the model and a whole batch, ``loss_fn(model, batch) -> scalar``; it has no Gauss-Newton matrix.

    Examples are contrastive losses, and residuals of differential equations, which differentiate the model.
    """

    def outputs(self, batch: Batch) -> Any:
        """The model itself, for the loss to call."""
        return self.model

    def _loss(self, outputs: Any, batch: Batch) -> Tensor:
        return self.loss_fn(outputs, batch.inputs)

    def selected(self, outputs: Any) -> tuple[Tensor, ...]:
        """Raises InputError: the loss is not a function of outputs."""
        raise InputError(
            "this matrix needs a loss of outputs and targets, and the risk has one of the whole batch; take the "
            "Hessian, or pass EmpiricalRisk(model, loss_fn, data)"
        )


class ClosureObjective(Objective):
    """A loss that a user's function computes, ``closure() -> loss`` or ``(loss, outputs)``; a batch is such a function.

    ``named`` are the parameters, by name; the function calls the model that has them, in the mode it is in.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__(_Holder(named), lambda outputs, targets: outputs)
        self.num_examples: int | None = None  # of the outputs that were returned last

    def parameter(self, name: str) -> Tensor:
        """The tensor that was given under a name."""
        return self._own[name]

    def _placed(self, point: Point, call: Callable[[], _T]) -> _T:
        if point.values:
            raise InputError(
                "a closure is evaluated at the parameters as they are, and an analysis needs others beside them; pass "
                "EmpiricalRisk(model, loss_fn, data)"
            )
        return call()

    def outputs(self, batch: Batch) -> Any:
        """What the function returns."""
        found = batch.inputs()
        tensors = [t for t in tensors_in(found[1]) if t.dim()] if isinstance(found, tuple) and len(found) == 2 else []
        self.num_examples = len(tensors[0]) if tensors else None
        return found

    def _loss(self, outputs: Any, batch: Batch) -> Tensor:
        value = outputs[0] if isinstance(outputs, tuple) and len(outputs) == 2 else outputs
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the closure must return the loss, a scalar tensor, or (loss, outputs); got {got}")
        if not value.requires_grad:
            raise InputError(
                "the closure returned a loss without a graph; compute the loss in it, without .item(), .detach() or "
                "torch.no_grad(), and leave backward() to the optimiser"
            )
        return value

    def selected(self, outputs: Any) -> tuple[Tensor, ...]:
        """The second of what the function returns; raises InputError if it returns a loss alone."""
        chosen = outputs[1] if isinstance(outputs, tuple) and len(outputs) == 2 else None
        tensors = chosen if isinstance(chosen, tuple) else (chosen,)
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise InputError(
                "this matrix needs the outputs that the loss is taken of; return (loss, outputs) from the closure, "
                "with outputs a tensor or a tuple of tensors, or take the Hessian"
            )
        refuse_dependent(tensors)
        return tensors


class _Holder(nn.Module):
    """A module of tensors under given names, which may have dots."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._named = named

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from cast(Mapping[str, nn.Parameter], self._named).items()  # other leaves serve as well
