"""Derivatives of one batch's loss: the only caller of torch.autograd and torch.func.

A *linearisation* is the derivative of something at a point, built once and applied to many vectors: the graph
of the gradient for the Hessian, of the outputs for the Gauss-Newton matrix. Building it costs one or two gradients,
applying it less than building; its owner decides whether to keep it.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pyhessian_spectra.curvature.kernels import CheapSecondDerivatives
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.errors import InputError, OutOfMemoryError, SecondDerivativeError, SpectraError

if TYPE_CHECKING:
    from pyhessian_spectra.curvature.risk import EmpiricalRisk

# All functions that the decorator wraps share the code of its wrapper.
_ONCE_DIFFERENTIABLE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__


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


def dropout_modules(model: nn.Module) -> list[str]:
    """Names and rates of the modules that draw at random in train mode."""
    found = []
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0)
        if isinstance(rate, (int, float)) and rate > 0:
            found.append(f"{name or 'the model'} ({type(module).__name__}, rate {rate})")
    return found


def unused(risk: EmpiricalRisk, point: Point, batch: Batch) -> list[str]:
    """Names of the coordinates that one batch's loss does not depend on."""
    with _called(risk, batch):
        value = _loss(risk, _outputs(risk, point, batch), batch)
        if not value.requires_grad:
            return list(risk.layout.names)
        parts = torch.autograd.grad(value, point.coordinates, allow_unused=True)
    return [name for name, part in zip(risk.layout.names, parts, strict=True) if part is None]


def called_functions(risk: EmpiricalRisk, point: Point, batch: Batch) -> set[str]:
    """Names of the torch functions one forward pass calls."""
    with torch.no_grad(), _called(risk, batch), _Recorder() as recorder:
        _outputs(risk, point, batch)
    return recorder.names


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def loss(risk: EmpiricalRisk, point: Point, batch: Batch) -> Tensor:
    """The loss of one batch, a scalar without graph."""
    with torch.no_grad(), _called(risk, batch):
        return _loss(risk, _outputs(risk, point, batch), batch)


def gradient(risk: EmpiricalRisk, point: Point, batch: Batch) -> Tensor:
    """The gradient of one batch's loss, shape (n,)."""
    with _called(risk, batch):
        value = _loss(risk, _outputs(risk, point, batch), batch)
        return risk.layout.flatten(_grad(value, point.coordinates))


class Linearisation(ABC):
    """A symmetric matrix of one batch, ready to be applied to many vectors."""

    def __init__(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        self.index, self._risk, self._point, self._batch = batch.index, risk, point, batch
        with _called(risk, batch), torch.enable_grad():
            self._build(risk, point, batch)

    @abstractmethod
    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        """Run the model and set up the graphs."""

    @abstractmethod
    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        """The product with (n,), or with the rows of (k, n) where ``batched``."""

    def matvec(self, v: Tensor, *, last: bool = False) -> Tensor:
        """The product with ``v`` of shape (n,); ``last`` frees the graph on the way."""
        with _called(self._risk, self._batch):
            return self._product(v, batched=False, last=last)

    def matmat(self, rows: Tensor) -> Tensor:
        """Products with the rows of (k, n), all at once; shape (k, n)."""
        with _called(self._risk, self._batch):
            return self._product(rows, batched=True, last=False)


class HessianLinearisation(Linearisation):
    """The Hessian of one batch's loss, by double backward (Pearlmutter 1994) through the graph of its gradient."""

    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        value = _loss(risk, _outputs(risk, point, batch), batch)
        self._gradient = GradientGraph(risk.layout, value, point.coordinates)

    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        return self._gradient.derivative(v, batched=batched, last=last)


class GradientGraph:
    """The gradient of a scalar with its graph, to be differentiated along vectors."""

    def __init__(self, layout: ParameterLayout, value: Tensor, coordinates: Sequence[Tensor]) -> None:
        self._layout, self._coordinates = layout, coordinates
        _refuse_once_differentiable(value)
        self._gradient = _grad(value, coordinates, create_graph=True)

    def derivative(self, v: Tensor, *, batched: bool = False, last: bool = False) -> Tensor:
        """The Hessian of the scalar times (n,), or times the rows of (k, n) where ``batched``."""
        parts = _grad(
            self._gradient, self._coordinates, self._layout.unflatten(v), batched=batched, retain_graph=not last
        )
        return _join(parts, v.shape[:-1])


class _Jacobian:
    """``J`` and ``J^T`` of a tensor-valued function of the coordinates.

    ``J v`` comes from differentiating ``u -> J^T u``, which is linear, so that its graph serves every ``v``.
    """

    def __init__(self, layout: ParameterLayout, outputs: Tensor, coordinates: Sequence[Tensor]) -> None:
        self._layout, self._coordinates, self._outputs = layout, coordinates, outputs
        self._cotangent = torch.zeros_like(outputs, requires_grad=True)
        self._pulled = _grad(outputs, coordinates, (self._cotangent,), create_graph=True)

    def jvp(self, v: Tensor, *, batched: bool) -> Tensor:
        parts = self._layout.unflatten(v)
        return _grad(self._pulled, (self._cotangent,), parts, batched=batched, retain_graph=True)[0]

    def vjp(self, u: Tensor, *, batched: bool, last: bool) -> Tensor:
        parts = _grad(self._outputs, self._coordinates, (u,), batched=batched, retain_graph=not last)
        return _join(parts, u.shape[:1] if batched else ())


class GGNLinearisation(Linearisation):
    """The generalised Gauss-Newton matrix ``J^T (Hessian of the loss in the outputs) J`` of one batch."""

    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        outputs = _one_tensor(_outputs(risk, point, batch))
        self._jacobian = _Jacobian(risk.layout, outputs, point.coordinates)
        self._leaf = outputs.detach().requires_grad_()
        self._loss_gradient = _grad(_loss(risk, self._leaf, batch), (self._leaf,), create_graph=True)

    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        pushed = self._jacobian.jvp(v, batched=batched)
        curved = _grad(self._loss_gradient, (self._leaf,), (pushed,), batched=batched, retain_graph=True)[0]
        return self._jacobian.vjp(curved, batched=batched, last=last)


class FisherLinearisation(Linearisation):
    """``sum_i c_i g_i g_i^T / sum_i c_i`` of one batch, ``g_i`` the gradient of example i's loss, ``c_i`` its terms."""

    def _build(self, risk: EmpiricalRisk, point: Point, batch: Batch) -> None:
        outputs = _one_tensor(_outputs(risk, point, batch))
        terms = torch.tensor([risk.number_of_terms(target[None]) for target in batch.targets], dtype=torch.float64)
        counted = terms > 0
        losses = torch.func.vmap(lambda z, y: risk.loss_fn(z[None], y[None]))(outputs[counted], batch.targets[counted])
        self._shares = (terms[counted] / terms.sum()).to(risk.device, risk.dtype)
        self._jacobian = _Jacobian(risk.layout, losses, point.coordinates)

    def _product(self, v: Tensor, *, batched: bool, last: bool) -> Tensor:
        slopes = self._jacobian.jvp(v, batched=batched)
        return self._jacobian.vjp(self._shares * slopes, batched=batched, last=last)


@contextlib.contextmanager
def measured_bytes() -> Iterator[list[int]]:
    """Within the block, count the bytes of distinct storages that autograd saves; the list's one entry is the sum."""
    seen: set[int] = set()
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def _outputs(risk: EmpiricalRisk, point: Point, batch: Batch) -> Any:
    inputs = batch.inputs
    args, kwargs = (
        ((), inputs) if isinstance(inputs, Mapping) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    # buffers are cloned for each call: BatchNorm in train mode updates them in place
    state = {**point.parameters, **{name: buffer.clone() for name, buffer in point.buffers.items()}}
    with CheapSecondDerivatives():
        return torch.func.functional_call(risk.model, state, args, dict(kwargs))


def _one_tensor(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"this matrix needs a model that returns one tensor, not a {type(outputs).__name__}; wrap the model so "
            "that it returns the tensor the loss is taken of"
        )
    return outputs


def _loss(risk: EmpiricalRisk, outputs: Any, batch: Batch) -> Tensor:
    value = risk.loss_fn(outputs, batch.targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss_fn must return a scalar tensor, got {got}; use reduction='mean'")
    return value.reshape(())


def _grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    batched: bool = False,
) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` with zeros for what does not depend on what."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    cotangent_of = zip(outputs, [None] * len(outputs) if vectors is None else vectors, strict=True)
    pairs = [(out, vector) for out, vector in cotangent_of if out.requires_grad]
    if not pairs:
        lead = vectors[0].shape[:1] if batched and vectors else ()
        return tuple(x.new_zeros(*lead, *x.shape) for x in inputs)
    used, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(
        used,
        inputs,
        cotangents,
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
        is_grads_batched=batched,
    )
    lead = cotangents[0].shape[:1] if batched and cotangents[0] is not None else ()
    return tuple(x.new_zeros(*lead, *x.shape) if part is None else part for part, x in zip(found, inputs, strict=True))


def _refuse_once_differentiable(value: Tensor) -> None:
    """Raise where a function in the graph of ``value`` is marked once_differentiable.

    The graph of its gradient is cut there, and a derivative with respect to given inputs comes out too small without a
    word: torch's own error waits at a node that such a derivative never reaches, or is not there at all.
    """
    for node in _nodes(value):
        function = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE_DIFFERENTIABLE:
            raise SecondDerivativeError(
                f"{function.__name__} has no second derivative (it is marked once_differentiable); replace it in the "  # type: ignore[union-attr]
                "model or the loss by operations that have one"
            )


def _nodes(value: Tensor) -> set[torch.autograd.graph.Node]:
    """The nodes of the graph of a tensor."""
    found: set[torch.autograd.graph.Node] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


def _join(parts: Sequence[Tensor], lead: Sequence[int]) -> Tensor:
    return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)


@contextlib.contextmanager
def _called(risk: EmpiricalRisk, batch: Batch) -> Iterator[None]:
    """Around calls of the model: its mode set and put back, kernels with second derivatives, errors in a sentence."""
    modes = [(module, module.training) for module in risk.model.modules()]
    recurrent = risk.device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module, _ in modes)
    try:
        for module, _ in modes:
            module.training = risk.mode == "train"
        # fused attention and cuDNN's recurrent layers have no double backward
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=not recurrent):
            yield
    except SpectraError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, MemoryError) as error:
        raise _explained(error, batch) from error
    finally:
        for module, training in modes:
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
