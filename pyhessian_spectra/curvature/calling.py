"""One batch through the model: the only place where a user's model and loss are called."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyhessian_spectra.curvature.kernels import CheapSecondDerivatives
from pyhessian_spectra.errors import InputError, OutOfMemoryError, SecondDerivativeError, SpectraError

if TYPE_CHECKING:
    from pyhessian_spectra.curvature.risk import EmpiricalRisk


@dataclass(frozen=True)
class Batch:
    """One batch on the parameters' device: what the model is called with, and the targets."""

    inputs: Any
    targets: Any
    index: int

    @property
    def num_examples(self) -> int:
        """Length of the targets' first dimension."""
        return len(self.targets) if isinstance(self.targets, Tensor) and self.targets.dim() else 1


@dataclass(frozen=True)
class Point:
    """Copies of a model's parameters and buffers; the coordinates are leaves that require a gradient."""

    coordinates: tuple[Tensor, ...]
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str]) -> Point:
        """The model's values now, with the named parameters as coordinates."""
        parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
        coordinates = tuple(parameters[name].requires_grad_() for name in names)
        return cls(coordinates, parameters, {name: b.detach().clone() for name, b in model.named_buffers()})


def outputs_of(risk: EmpiricalRisk, point: Point, batch: Batch) -> Any:
    """What the model returns for one batch."""
    inputs = batch.inputs
    args, kwargs = (
        ((), inputs) if isinstance(inputs, Mapping) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    # buffers are cloned for each call: BatchNorm in train mode updates them in place
    state = {**point.parameters, **{name: buffer.clone() for name, buffer in point.buffers.items()}}
    with CheapSecondDerivatives():
        return torch.func.functional_call(risk.model, state, args, dict(kwargs))


def one_tensor(outputs: Any) -> Tensor:
    """The outputs, refused where they are not one tensor."""
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"this matrix needs a model that returns one tensor, not a {type(outputs).__name__}; wrap the model so "
            "that it returns the tensor the loss is taken of"
        )
    return outputs


def loss_of(risk: EmpiricalRisk, outputs: Any, batch: Batch) -> Tensor:
    """The loss of one batch's outputs, a scalar."""
    value = risk.loss_fn(outputs, batch.targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss_fn must return a scalar tensor, got {got}; use reduction='mean'")
    return value.reshape(())


@contextlib.contextmanager
def called(risk: EmpiricalRisk, batch: Batch) -> Iterator[None]:
    """Around calls of the model: its mode set and put back, kernels with second derivatives, errors in a sentence."""
    modes = [(module, module.training) for module in risk.model.modules()]
    recurrent = risk.device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module, _ in modes)
    try:
        for module, training in modes:
            if training != (risk.mode == "train"):  # setting costs more than looking
                module.training = not training
        # fused attention and cuDNN's recurrent layers have no double backward
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=not recurrent):
            yield
    except SpectraError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, MemoryError) as error:
        raise _explained(error, batch) from error
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


def _explained(error: Exception, batch: Batch) -> SpectraError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return OutOfMemoryError(
            f"out of memory at batch {batch.index}; lower the batch size (the result does not change) or the memory "
            "budget of the kept linearisation"
        )
    missing = re.search(r"derivative for '?([\w:]+)'? is not implemented", text)
    if missing:
        return SecondDerivativeError(
            f"{missing.group(1)} has no second derivative; replace it in the model by operations that have one"
        )
    shapes = [tuple(x.shape) for x in tensors_in(batch.inputs)]
    return InputError(
        f"the model or the loss failed on batch {batch.index} (inputs of shape {', '.join(map(str, shapes))}, targets "
        f"{tuple(getattr(batch.targets, 'shape', ()))}): {type(error).__name__}: {text}"
    )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a nested structure of mappings, tuples and lists, in order."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return [value] if isinstance(value, Tensor) else []
