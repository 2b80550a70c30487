"""The trace of the block of a last linear layer, exactly, for little more than a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyhessian_spectra.curvature.autodiff import gradients
from pyhessian_spectra.curvature.risk_operator import RiskOperator

# Each output takes a derivative of the loss in the outputs.
_MOST_OUTPUTS = 100


def head_trace(op: RiskOperator) -> Tensor | None:
    """The trace, with a graph, if the operator's parameters are those of the model's last linear layer; else None.

    For outputs ``z = W a + b`` the block of the Hessian and of the Gauss-Newton matrix is ``sum_i A_i (x) a_i a_i^T``
    with the second derivative ``A_i`` of the loss in the outputs of example (or token) ``i``, and its trace ``sum_i tr
    A_i (|a_i|^2 + 1)``, 1 for the bias. None also where the loss mixes the outputs of several examples, or these have
    many outputs. The operator is of one batch.
    """
    ((_, batch),) = op.risk.sample.read()
    objective, coordinates = op.risk.objective, op.point.coordinates

    def call() -> Tensor | None:
        with _Uses(coordinates) as uses:
            outputs, value = objective.evaluate(batch)
        tensors = objective.selected(outputs)
        if len(tensors) != 1 or len(uses.met) != 1:
            return None
        z, (func, args, kwargs, result) = tensors[0], uses.met[0]
        if func is not F.linear or result is not z or z.shape[-1] > _MOST_OUTPUTS:
            return None
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        weights = [given.get(name) for name in ("weight", "bias")]
        if any(all(c is not w for w in weights) for c in coordinates):  # such as a view of a parameter
            return None
        has_weight, has_bias = (any(c is w for c in coordinates) for w in weights)
        blocks = _blocks(value, z)
        if blocks is None:
            return None
        lengths = has_weight * given["input"].square().sum(dim=-1) + has_bias
        return (blocks.diagonal(dim1=-2, dim2=-1).sum(dim=-1) * lengths).sum()

    return objective.run(op.point, batch, call)


def _blocks(value: Tensor, z: Tensor) -> Tensor | None:
    """Second derivatives (..., C, C) of a loss in the outputs (..., C) of each example; None if it mixes examples.

    That it does not is seen from the second and the third derivative along a random vector.
    """
    slopes = gradients(value, (z,), create_graph=True)

    def product(v: Tensor) -> Tensor:
        return gradients(slopes, (z,), (v,), create_graph=True)[0]

    columns = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    blocks = torch.stack([product(column.expand_as(z)) for column in columns], dim=-1)
    probe = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(z)
    off = product(probe) - torch.einsum("...ij,...j->...i", blocks, probe)
    rounding = 100 * z.shape[-1] * torch.finfo(z.dtype).eps
    steep = torch.maximum(blocks.detach().abs().max(), slopes[0].detach().abs().max())
    if bool(off.abs().max() > rounding * steep * probe.abs().max()):
        return None
    # a mixing that vanishes here, as in a head of zeros, may still change with the outputs, and the gradient with it
    along = probe.flip(0)
    moved, whole = (gradients((each * along).sum(), (z,), create_graph=True)[0] for each in (off, product(probe)))
    least = rounding * (whole.abs().max() + steep) * along.abs().max()
    return None if bool(moved.abs().max() > least) else blocks


class _Uses(TorchFunctionMode):
    """Within this context, ``met`` collects the calls of torch functions that take the given parameters."""

    def __init__(self, coordinates: Sequence[Tensor]) -> None:
        super().__init__()
        self._ids = {id(c) for c in coordinates}
        self.met: list[tuple[Any, Any, Any, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # what is asked of a parameter, such as its shape, is no use of it
        if isinstance(result, Tensor) and any(id(x) in self._ids for x in tree_leaves((args, kwargs))):
            self.met.append((func, args, kwargs, result))
        return result
