"""Objective: a model and its loss at a point, in a functional context. Only this and ``losses.py`` call users' code."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.failures import FAILURES, explained
from pyhessian_spectra.curvature.inspection import (
    RefusedBroadcasts,
    coarsest_dtype,
    custom_functions,
    dropout_modules,
    refuse_dependent,
    refuse_hidden_parameters,
    refuse_once_differentiable,
)
from pyhessian_spectra.curvature.kernels import RightDerivatives
from pyhessian_spectra.curvature.outputs import separate
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.promotion import Promoted, ToldOwn
from pyhessian_spectra.errors import InputError, SpectraError

MODES = ("eval", "train")

_T = TypeVar("_T")
_C = TypeVar("_C", Promoted, ToldOwn)


class Objective:
    """The loss of a batch as a function of a point; for the arguments see :class:`EmpiricalRisk`."""

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
        self.model = getattr(model, "_orig_mod", model)  # compiled models have no second derivatives
        self.loss_fn, self.mode, self._select = loss_fn, mode, select
        self._inside, self._modules = _Inside(self.model), list(self.model.modules())
        self._own = dict(self.model.named_parameters())
        self._places = _places(self.model)
        self._dtype = next((p.dtype for p in self._own.values() if p.requires_grad), None)
        self._buffered = any(True for _ in self.model.buffers())
        self._inspected: set[tuple[torch.dtype, int, bool]] = set()
        self.computed_in: dict[torch.dtype, torch.dtype] = {}  # the coarsest dtype met, by that of the point
        self.fails_in: dict[torch.dtype, bool] = {}  # whether a gradient failed at a point of a dtype, once tried
        self.latest: Tensor | None = None  # the loss that was evaluated last, without a graph
        self._within: tuple[Point, Batch] | None = None
        # until the first evaluation has shown it
        self._rewrites = True, True  # operations of the model, and of the loss
        self._attends = self._recalls = True
        self._contexts: list[Callable[[], AbstractContextManager]] = []
        if torch.backends.cudnn.is_available() and any(isinstance(module, nn.RNNBase) for module in self._modules):
            self._contexts.append(lambda: torch.backends.cudnn.flags(enabled=False))  # nor has its RNN
        if any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in self._modules):
            self._contexts.append(lambda: torch.compiler.set_stance("force_eager"))

    def native(self, mode: str | None = None) -> Objective:
        """The same objective on torch's own operations throughout, in this or another mode: for comparisons."""
        other = copy.copy(self)
        other._rewrites, other.mode, other._inspected = (False, False), mode or self.mode, set()
        return other

    def parameter(self, name: str) -> Tensor:
        """The parameter that the model has under a name now, found without the checks of ``get_parameter``."""
        module, (*path, own) = self.model, name.split(".")
        for part in path:
            module = cast(nn.Module, module._modules[part])
        return cast(Tensor, module._parameters[own])

    def run(self, point: Point, batch: Batch, call: Callable[[], _T]) -> _T:
        """``call()``, made with the model at the point and in its mode; errors are raised again as a SpectraError.

        Every call of the model belongs in it; for backward passes see :meth:`backward`. A nested run at the same point
        and batch just calls.
        """
        outer = self._within
        if outer is not None and outer[0] is point and outer[1] is batch:
            return call()
        training = self.mode == "train"
        others = [module for module in self._modules if module.training != training]
        self._within = (point, batch)
        try:
            for module in others:
                vars(module)["training"] = training  # ten times faster than setting the attribute
            with torch.enable_grad():
                return self._surrounded(point, lambda: self._placed(point, call))
        except SpectraError:
            raise
        except FAILURES as error:
            raise explained(error, batch) from error
        finally:
            self._within = outer
            for module in others:
                vars(module)["training"] = not training

    def backward(self, point: Point, batch: Batch, call: Callable[[], _T]) -> _T:
        """``call()``, a backward pass through a graph from an earlier run, which may call the model again.

        The model is placed at the point only if it may: if there are checkpointed segments, or users' functions.
        """
        if self._recalls:
            return self.run(point, batch, call)
        try:
            with torch.enable_grad():
                return call()
        except FAILURES as error:
            raise explained(error, batch) from error

    def _surrounded(self, point: Point, call: Callable[[], _T]) -> _T:
        """``call()`` within the torch settings that the model needs; others are not set, since that costs time."""
        promoted = self._in_another(point, Promoted)
        if not (self._contexts or self._attends or promoted):
            return call()
        with contextlib.ExitStack() as stack:
            if promoted:
                stack.enter_context(promoted)
            for context in self._contexts:
                stack.enter_context(context())
            if self._attends:  # fused attention has no double backward
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            return call()

    def _placed(self, point: Point, call: Callable[[], _T]) -> _T:
        """``call()`` with the point's values in place of the model's parameters and buffers."""
        values = point.values
        if self._buffered:  # cloned for each call: BatchNorm in train mode updates them in place
            buffers = {name: values.get(name, buffer).clone() for name, buffer in self.model.named_buffers()}
            values = {**values, **buffers}
        if not values:
            return call()
        placed = {f"model.{place}": value for name, value in values.items() for place in self._places[name]}
        # not tie_weights: a module that the model has twice would be left with the values in place of its parameters
        return torch.func.functional_call(self._inside, placed, (call,), tie_weights=False)

    def evaluate(self, batch: Batch) -> tuple[Any, Tensor]:
        """The model's outputs for a batch, and the scalar loss; to be called within :meth:`run`."""
        assert self._within is not None
        if self._seen(self._within[0], batch) in self._inspected:
            outputs, value, _ = self._called(batch)
        else:
            outputs, value = self._inspect(batch)
        self.latest = value.detach()
        return outputs, value

    def _called(self, batch: Batch) -> tuple[Any, Tensor, list[RightDerivatives | None]]:
        """Outputs and loss, and what rewrote the operations of each; nothing does where there are none to rewrite."""
        model, loss = (RightDerivatives() if rewrites else None for rewrites in self._rewrites)
        with self._told(), model or contextlib.nullcontext():
            outputs = self.outputs(batch)
        with self._told(), loss or contextlib.nullcontext():
            value = self._loss(outputs, batch)
        return outputs, _scalar(value), [model, loss]

    def _told(self) -> AbstractContextManager:
        assert self._within is not None
        return self._in_another(self._within[0], ToldOwn) or contextlib.nullcontext()

    def _in_another(self, point: Point, context: type[_C]) -> _C | None:
        """A context for a point in another dtype than the model's own; None where it is that."""
        return None if self._dtype in (None, point.dtype) else context(cast(torch.dtype, self._dtype), point.dtype)

    @contextlib.contextmanager
    def around_loss(self) -> Iterator[None]:
        """For calls of the loss function itself, within :meth:`run`: as :meth:`evaluate` calls it."""
        with self._told(), RightDerivatives() if self._rewrites[1] else contextlib.nullcontext():
            yield

    def _inspect(self, batch: Batch) -> tuple[Any, Tensor]:
        """As :meth:`evaluate`, looking for what would make derivatives wrong; for the first call with a batch."""
        assert self._within is not None
        point = self._within[0]
        versions = [c._version for c in point.coordinates]
        with RefusedBroadcasts(batch.targets):
            outputs, value, kernels = self._called(batch)
        refuse_once_differentiable(value)
        refuse_hidden_parameters(value, {name: self._own[name] for name in point.values if name in self._own})
        for name, c, version in zip(point.layout.names, point.coordinates, versions, strict=True):
            if c._version != version:
                raise InputError(
                    f"the model changes its parameter {name} in place when it is called, so that the gradient is not "
                    "that of the loss; make the change part of the computation, or leave it out (such as max_norm)"
                )
        self.met(point.dtype, coarsest_dtype(value))
        self._inspected.add(self._seen(point, batch))
        used = [each for each in kernels if each is not None]
        if used and len(self._inspected) == 1:
            scripted = any(isinstance(module, torch.jit.ScriptModule) for module in self._modules)
            model, loss = (each is not None and (each.met or scripted) for each in kernels)
            self._rewrites, self._attends = (model, loss), scripted or any(each.attended for each in used)
            self._recalls = scripted or any(each.hooked for each in used) or bool(custom_functions(value))
        return outputs, value

    def met(self, dtype: torch.dtype, computed_in: torch.dtype) -> None:
        """Take note of a dtype that something is computed in at a point of some dtype."""
        both = self.computed_in.get(dtype, computed_in), computed_in
        self.computed_in[dtype] = max(both, key=lambda each: torch.finfo(each).eps)

    @staticmethod
    def _seen(point: Point, batch: Batch) -> tuple[torch.dtype, int, bool]:
        """What was inspected if this batch was at this point: at the live one nothing is replaced."""
        return point.dtype, batch.index, bool(point.values)

    def outputs(self, batch: Batch) -> Any:
        """The model's outputs for a batch; to be called within :meth:`run`.

        Each is a node of its own, unless ``select`` says which of them the loss is a function of: the model may have
        computed the loss itself.
        """
        inputs = batch.inputs
        if isinstance(inputs, tuple):
            outputs = self.model(*inputs)
        elif isinstance(inputs, Mapping) and self._takes_keywords(inputs):
            outputs = self.model(**inputs)
        else:
            outputs = self.model(inputs)
        return separate(outputs) if self._select is None else outputs

    def _loss(self, outputs: Any, batch: Batch) -> Tensor:
        return self.loss_fn(outputs, batch.targets)

    def selected(self, outputs: Any) -> tuple[Tensor, ...]:
        """The output tensors that the loss is a function of; raises InputError if they are no tensors."""
        chosen = outputs if self._select is None else self._select(outputs)
        tensors = chosen if isinstance(chosen, tuple) else (chosen,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise InputError(
                    f"this matrix needs the tensor that the loss is taken of, and the model returns a "
                    f"{type(tensor).__name__}; pass select=, such as select=lambda outputs: outputs.logits"
                )
        refuse_dependent(tensors)
        return tensors

    def _takes_keywords(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the mapping's entries are keyword arguments of the model, or the mapping is its one argument."""
        try:
            signature = inspect.signature(self.model.forward)
            signature.bind(**inputs)
        except TypeError:
            return False
        except ValueError:  # functions written in C may have no signature
            pass
        return True


class _Inside(nn.Module):
    """A module whose forward makes a call, so that ``functional_call`` can replace the model's tensors during it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], _T]) -> _T:
        return call()


def _places(model: nn.Module) -> dict[str, list[str]]:
    """The attributes that hold each parameter and buffer, by its name: several if it is tied, each module once."""
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    places: dict[str, list[str]] = {name: [] for name in names.values()}
    for prefix, module in model.named_modules():
        for own, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                places[names[id(tensor)]].append(f"{prefix}.{own}".removeprefix("."))
    return places


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss_fn must return a scalar tensor, got {got}; use reduction='mean'")
    return value.reshape(()) if value.dim() else value
