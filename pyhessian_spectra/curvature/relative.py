"""Hessians in coordinates that weights are measured in, which rescaling a network without changing it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import InputError

# Maps one parameter tensor to what its entries are measured in, a tensor that is broadcast to the parameter's shape.
Scale = Callable[[Tensor], Tensor]


def each_weight(parameter: Tensor) -> Tensor:
    """Each weight is measured in itself, as adaptive sharpness does (Kwon, Kim, Park and Choi 2021)."""
    return parameter


def filter_norms(parameter: Tensor) -> Tensor:
    """Weights are measured in the norm of their filter: an index of the first axis, which is a row of a matrix, or
    the kernels of one output channel of a convolution (of one input channel of a transposed one).

    Vectors, such as biases and the scales of normalisations, are held fixed by a scale of zero: Li, Xu, Taylor, Studer
    and Goldstein 2018, whose random directions have no components there.
    """
    if parameter.dim() < 2:
        return torch.zeros_like(parameter)
    return torch.linalg.vector_norm(parameter, dim=tuple(range(1, parameter.dim())), keepdim=True)


def tensor_norms(parameter: Tensor) -> Tensor:
    """Weights are measured in the norm of the parameter tensor that they belong to."""
    return torch.linalg.vector_norm(parameter)


class _ScaledGraph(autodiff.GradientGraph):
    """The gradient of a scalar with its graph, for second derivatives in ``e`` at 0 of ``theta + D e``."""

    def __init__(
        self, layout: ParameterLayout, value: Tensor, coordinates: Sequence[Tensor], scales: Sequence[Tensor]
    ) -> None:
        super().__init__(layout, value, coordinates)
        self._scales = scales

    def block(self, layout: ParameterLayout) -> _ScaledGraph:
        part, own = super().block(layout), dict(zip(self._layout.names, self._scales, strict=True))
        part._scales = [own[name] for name in layout.names]
        return part

    def derivative(self, v: Tensor, **how: bool) -> Tensor:
        """``D H D v``; it has a graph only if one is to be created."""
        scales = autodiff.joined(self._scales)
        product = scales * super().derivative(scales * v, **how)
        return product if how.get("create_graph") else product.detach()


class _LogGraph(_ScaledGraph):
    """The same of ``theta exp(e)``, which bends: with the slopes along it."""

    def derivative(self, v: Tensor, **how: bool) -> Tensor:
        """``D H D v + D g v``."""
        slopes = autodiff.joined(self._scales) * autodiff.joined(self._gradient)
        return super().derivative(v, **how) + (slopes if how.get("create_graph") else slopes.detach()) * v


class RelativeHessianOperator(RiskOperator):
    """``D H D``, the Hessian in relative coordinates: of ``e -> L(theta + D e)`` at ``e = 0``, with diagonal ``D``.

    ``D`` holds what the parameters are measured in, at the operator's point; ``e`` has no units, so the eigenvalues are
    in units of the loss. They are the same at ``theta`` and at any rescaling of it that is the same function and that
    ``D`` follows: of units of a rectifier network for :func:`each_weight`, of whole layers for :func:`filter_norms` and
    :func:`tensor_norms` (Dinh, Pascanu, Bengio and Bengio 2017 on why the Hessian's are not).

    Parameters
    ----------
    risk : EmpiricalRisk
    scale : callable
        Maps a parameter to what its entries are measured in, a tensor that is broadcast to its shape:
        :func:`each_weight`, :func:`filter_norms`, :func:`tensor_norms`, or a function whose name the matrix then bears.
    point, memory_budget, columns
        As for :class:`RiskOperator`.

    Raises
    ------
    InputError
        ``scale`` is no function with a name; with products, where it returns what does not fit a parameter.

    Examples
    --------
    >>> from pyhessian_spectra import EmpiricalRisk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> torch.nn.init.constant_(model.weight, 0.5).shape
    torch.Size([1, 1])
    >>> data = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> RelativeHessianOperator(EmpiricalRisk(model, torch.nn.MSELoss(), data)) @ torch.ones(1)
    tensor([2.5000])
    """

    units = "loss"
    _graph: type[_ScaledGraph] = _ScaledGraph

    def __init__(self, risk: EmpiricalRisk, *, scale: Scale = each_weight, **how: Any) -> None:
        super().__init__(risk, **how)
        name = getattr(scale, "__name__", "")
        if not callable(scale) or not name.isidentifier():
            raise InputError(
                f"scale must be a function with a name, which the matrix then bears, got {scale!r}; pass each_weight, "
                "filter_norms, tensor_norms, or a function of one parameter that is defined with def"
            )
        self.scale, self.kind = scale, f"Hessian relative to {name.replace('_', ' ')}"

    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        objective, point = self.risk.objective, self.point

        def call() -> _ScaledGraph:
            return self._graph(point.layout, objective.evaluate(batch)[1], point.coordinates, self._by_parameter(point))

        graph = objective.run(point, batch, call)
        return autodiff.Linearisation(
            objective, point, batch, graph.derivative, lambda layout: graph.block(layout).derivative
        )

    def _by_parameter(self, point: Point) -> tuple[Tensor, ...]:
        """The diagonal of ``D`` in the shapes of the parameters; with a graph, if ``scale`` keeps one."""
        found = []
        for name, parameter in zip(point.layout.names, point.coordinates, strict=True):
            try:
                own = self.scale(parameter)
            except Exception as error:
                raise InputError(f"scale failed for {name}: {type(error).__name__}: {error}") from error
            try:
                if own.dtype != parameter.dtype or not torch.isfinite(own).all():
                    raise TypeError
                found.append(own.expand(parameter.shape))
            except (AttributeError, RuntimeError, TypeError):
                got = f"{tuple(own.shape)} of {own.dtype}" if isinstance(own, Tensor) else type(own).__name__
                raise InputError(
                    f"scale must return finite values of {parameter.dtype} that broadcast to {tuple(parameter.shape)} "
                    f"for {name}, got {got}; compute them from the parameter, as filter_norms does"
                ) from None
        return tuple(found)

    def scales(self, point: Point | None = None) -> Tensor:
        """The diagonal of ``D`` (n,) at ``point``, by default at the operator's own."""
        point = point or self.point
        return point.layout.flatten(self._by_parameter(point)).detach()

    def slopes(self, point: Point, gradient: Tensor) -> Tensor:
        """The gradient in ``e`` (n,) at a point that ``e`` leads to, from that in the parameters there."""
        return self.scales() * gradient


class LogHessianOperator(RelativeHessianOperator):
    """``diag(w) H diag(w) + diag(w g)``, the Hessian in the logarithms of weights: of ``e -> L(w exp(e))`` at 0.

    It is :class:`RelativeHessianOperator` of :func:`each_weight` and, with the gradient ``g``, what the bend of the
    coordinates adds; the two are the same where the gradient is zero. Rescaling units of a rectifier network shifts
    logarithms, so it changes nothing. Parameters are as for :class:`RiskOperator`.
    """

    _graph = _LogGraph

    def __init__(self, risk: EmpiricalRisk, **how: Any) -> None:
        super().__init__(risk, scale=each_weight, **how)
        self.kind = "Hessian in logarithms of weights"

    def slopes(self, point: Point, gradient: Tensor) -> Tensor:
        """``w g`` (n,) with the weights of that point."""
        return point.flat() * gradient
