"""Objective: a model and its loss, evaluated at a point in one functional context. Nothing else calls users' code."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.inspection import dropout_modules
from pyhessian_spectra.curvature.kernels import RightDerivatives
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.errors import InputError, OutOfMemoryError, SecondDerivativeError, SpectraError

MODES = ("eval", "train")

_T = TypeVar("_T")


class Objective:
    """The loss of a batch as a function of a point.

    Parameters
    ----------
    model : torch.nn.Module
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``. It may use the model, its parameters and derivatives of either.
    mode : {"eval", "train"}
        Whether BatchNorm uses its running (eval) or the batch's (train) statistics.
    select : callable, optional
        From what the model returns to the tensor, or the tuple of tensors, that the loss is taken of.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        mode: str = "eval",
        select: Callable[[Any], Tensor | tuple[Tensor, ...]] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(loss_fn, type):
            raise InputError(f"loss_fn is the class {loss_fn.__name__}; pass an instance, {loss_fn.__name__}()")
        if mode not in MODES:
            raise InputError(f"mode must be 'eval' or 'train', got {mode!r}")
        if mode == "train" and (dropout := dropout_modules(model)):
            raise InputError(
                f"{dropout[0]} draws another Hessian each product in train mode; set its rate to 0 or use mode='eval'"
            )
        self.model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper has no second derivatives
        self.loss_fn, self.mode, self._select = loss_fn, mode, select
        self._inside = _Inside(self.model)
        self._compiled = any(
            getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in model.modules()
        )

    def run(self, point: Point, batch: Batch, call: Callable[[], _T]) -> _T:
        """What ``call()`` returns where the model is at the point, in its mode, and errors are told in a sentence.

        All that calls the model belongs in it, and all that goes through a graph which the model has made: a
        checkpointed segment is called again on the way back.
        """
        with self._called(batch):
            # buffers are cloned for each call: BatchNorm in train mode updates them in place
            buffers = {name: point.values.get(name, buffer).clone() for name, buffer in self.model.named_buffers()}
            values = {**point.values, **buffers}
            if not values:
                return call()
            return torch.func.functional_call(self._inside, {f"model.{k}": v for k, v in values.items()}, (call,))

    def outputs(self, batch: Batch) -> Any:
        """What the model returns for a batch; within :meth:`run`."""
        inputs = batch.inputs
        if isinstance(inputs, tuple):
            return self.model(*inputs)
        if isinstance(inputs, Mapping) and self._takes_keywords(inputs):
            return self.model(**inputs)
        return self.model(inputs)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of a batch's outputs, a scalar; within :meth:`run`."""
        return _scalar(self.loss_fn(outputs, batch.targets))

    def selected(self, outputs: Any) -> tuple[Tensor, ...]:
        """The tensors that the loss is taken of."""
        chosen = outputs if self._select is None else self._select(outputs)
        tensors = chosen if isinstance(chosen, tuple) else (chosen,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise InputError(
                    f"this matrix needs the tensor that the loss is taken of, and the model returns a "
                    f"{type(tensor).__name__}; pass select=, such as select=lambda outputs: outputs.logits"
                )
        return tensors

    def _takes_keywords(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the entries of a mapping are the model's arguments, rather than the mapping its one argument."""
        try:
            signature = inspect.signature(self.model.forward)
            signature.bind(**inputs)
        except TypeError:
            return False
        except ValueError:  # a function written in C need not have a signature
            pass
        return True

    @contextlib.contextmanager
    def _called(self, batch: Batch) -> Iterator[None]:
        """The model's mode set and put back, kernels that have second derivatives, errors in a sentence."""
        training = self.mode == "train"
        others = [module for module in self.model.modules() if module.training != training]
        recurrent = torch.backends.cudnn.is_available() and any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        try:
            for module in others:
                module.training = training
            # fused attention and cuDNN's recurrent layers have no double backward
            with contextlib.ExitStack() as contexts:
                contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
                contexts.enter_context(torch.backends.cudnn.flags(enabled=not recurrent))
                if self._compiled:  # what torch compiles has no second derivatives
                    contexts.enter_context(torch.compiler.set_stance("force_eager"))
                contexts.enter_context(RightDerivatives())
                contexts.enter_context(torch.enable_grad())
                yield
        except SpectraError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError, MemoryError) as error:
            raise _explained(error, batch) from error
        finally:
            for module in others:
                module.training = not training


class BatchObjective(Objective):
    """A loss that is not one of outputs and targets: ``loss_fn(model, batch) -> scalar``.

    Residuals of differential equations, which differentiate the model, and contrastive losses are such. It has a
    Hessian, but no Gauss-Newton matrix.
    """

    def outputs(self, batch: Batch) -> Any:
        """The model itself, for the loss to call."""
        return self.model

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of the whole batch."""
        return _scalar(self.loss_fn(outputs, batch.inputs))

    def selected(self, outputs: Any) -> tuple[Tensor, ...]:
        """There are none."""
        raise InputError(
            "this matrix needs a loss of outputs and targets, and the risk has one of the whole batch; take the "
            "Hessian, or pass EmpiricalRisk(model, loss_fn, data)"
        )


class _Inside(nn.Module):
    """Calls something within ``functional_call``, where the model has other parameters and buffers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], _T]) -> _T:
        return call()


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss_fn must return a scalar tensor, got {got}; use reduction='mean'")
    return value.reshape(())


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
