"""The curvature up to which an optimiser is stable: its edge of stability, and the matrix that it belongs to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature import ParameterLayout
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import CongruenceOperator, DiagonalOperator, LinearOperator


def edge_of_stability(
    lr: float, *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> float:
    """The eigenvalue of the loss' Hessian above which gradient descent diverges on a quadratic function.

    ``2 / lr``; with heavy-ball momentum ``(2 + 2 momentum) / ((1 - dampening) lr)``, with Nesterov's ``(2 + 2
    momentum) / ((1 + 2 momentum) lr)`` (Cohen et al. 2021, equation 1 and appendix B), less ``weight_decay``.

    >>> edge_of_stability(0.1)
    20.0
    """
    gain = 1 + 2 * momentum if nesterov else 1 - dampening
    return (2 + 2 * momentum) / (gain * lr) - weight_decay


@dataclass(frozen=True, repr=False)
class Stability(Shown):
    """An optimiser's edge of stability at its present state.

    Parameters
    ----------
    threshold : float
        The largest stable eigenvalue, of :meth:`operator`.
    formula : str
        How it follows from the settings.
    scale : Tensor, shape (n,), float64, or None
        The diagonal of ``P^-1/2``, where the optimiser preconditions gradients by ``P^-1``.
    decay : Tensor, shape (n,), float64, or None
        What weight decay adds to the diagonal of the Hessian, where that is not the same for all coordinates.
    """

    threshold: float
    formula: str
    scale: Tensor | None = None
    decay: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether that matrix is the Hessian itself."""
        return self.scale is None and self.decay is None

    def operator(self, op: LinearOperator) -> LinearOperator:
        """The matrix whose largest eigenvalue is compared: ``P^-1/2 (H + decay) P^-1/2``, of the Hessian ``op``."""
        if self.decay is not None:
            op = op + DiagonalOperator(self.decay.to(op.device), dtype=op.dtype)
        return op if self.scale is None else CongruenceOperator(op, self.scale)


def stability_of(
    optimizer: torch.optim.Optimizer, layout: ParameterLayout, params: Sequence[Tensor]
) -> Stability | None:
    """The edge of stability of an optimiser of ``torch.optim``, from its settings and its state.

    For ``SGD`` see :func:`edge_of_stability`. ``Adam``, ``AdamW`` and ``RMSprop`` precondition gradients by a diagonal
    ``P`` that hardly changes within a few steps (Cohen et al. 2022): then ``P^-1/2 H P^-1/2`` is compared with ``(2 + 2
    beta_1) / ((1 - beta_1) lr)``, which is ``38 / lr`` at ``beta_1 = 0.9``. Where groups have different ``lr``, these
    are part of ``P``.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    layout : ParameterLayout
    params : sequence of Tensor
        The coordinates, in the order of the layout.

    Returns
    -------
    Stability or None
        None where it is not known: another optimiser (also a subclass, or one with hooks), no step so far where the
        state matters, ``maximize``, ``lr`` of 0, other parameters than those that are optimised, groups with different
        momentum, or with AdamW different decay, or different ``lr`` beside decay.
    """
    known = _RULES.get(type(optimizer))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks  # which may change a step
    moved = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if known is None or hooked or moved != {id(p) for p in params}:
        return None
    rule, denominator = known
    own = [groups[id(p)] for p in params]
    rates, decays = [float(group["lr"]) for group in own], [float(group["weight_decay"]) for group in own]
    rules = {rule(group) for group in own}
    if len(rules) > 1 or any(group.get("maximize") for group in own):
        return None
    if not all(rate > 0 and math.isfinite(rate) for rate in rates):
        return None
    denominators = [denominator(optimizer.state.get(p, {}), group) for p, group in zip(params, own, strict=True)]
    found = [each for each in denominators if each is not None]
    if len(found) < len(params):
        return None
    (told,) = rules
    threshold, alike = told.gain / rates[0], len(set(decays)) == 1
    if told.shrinkage is not None:  # the weights shrink beside the step
        if not alike or (any(decays) and len(set(rates)) > 1):
            return None
        threshold, decays = threshold - told.shrinkage * decays[0], [0.0] * len(params)
    if len(set(rates)) == 1 and all(isinstance(each, float) for each in found):
        if alike:
            return Stability(threshold - decays[0], told.formula)
        return Stability(threshold, told.formula, decay=_spread(layout, params, decays))
    scale = _spread(layout, params, [(rate / rates[0] / d) ** 0.5 for rate, d in zip(rates, found, strict=True)])
    return Stability(threshold, told.formula, scale, _spread(layout, params, decays) if any(decays) else None)


@dataclass(frozen=True)
class _Rule:
    """``gain``: the threshold times ``lr``; ``shrinkage``: what decay of weights beside the gradient takes off it."""

    gain: float
    formula: str
    shrinkage: float | None = None


_Denominator = Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor | float | None]


def _momentum(group: Mapping[str, Any]) -> _Rule:
    momentum, dampening = group["momentum"], group.get("dampening", 0.0) if group["momentum"] else 0.0
    nesterov = bool(group.get("nesterov"))
    gain = edge_of_stability(1.0, momentum=momentum, dampening=dampening, nesterov=nesterov)
    if not momentum:
        return _Rule(gain, "2 / lr")
    below = "(1 + 2 momentum) lr" if nesterov else "(1 - dampening) lr" if dampening else "lr"
    return _Rule(gain, f"(2 + 2 momentum) / {below}" if below == "lr" else f"(2 + 2 momentum) / ({below})")


def _adam(group: Mapping[str, Any], *, shrinks: bool = False) -> _Rule:
    beta = float(group["betas"][0])
    gain = (2 + 2 * beta) / (1 - beta)
    shrinks = shrinks or bool(group.get("decoupled_weight_decay"))
    return _Rule(gain, f"{gain:.3g} / lr, preconditioned", (1 + beta) / (1 - beta) if shrinks else None)


def _one(state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    return 1.0


def _of_adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """``(1 - beta_1^t) (sqrt(v / (1 - beta_2^t)) + eps)`` (Cohen et al. 2022, equation 2)."""
    if "exp_avg_sq" not in state:
        return None
    step = float(state["step"])
    first, second = (1 - beta**step for beta in group["betas"])
    squares = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
    return first * ((squares / second).sqrt() + group["eps"])


def _of_rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    if "square_avg" not in state:
        return None
    centre = state["grad_avg"].double() ** 2 if group["centered"] else 0.0
    return (state["square_avg"].double() - centre).sqrt() + group["eps"]


# By the type itself, since a subclass may take other steps.
_RULES: dict[type, tuple[Callable[[Mapping[str, Any]], _Rule], _Denominator]] = {
    torch.optim.SGD: (_momentum, _one),
    torch.optim.Adam: (_adam, _of_adam),
    torch.optim.AdamW: (functools.partial(_adam, shrinks=True), _of_adam),
    torch.optim.RMSprop: (_momentum, _of_rmsprop),
}


def _spread(layout: ParameterLayout, params: Sequence[Tensor], values: Sequence[Tensor | float]) -> Tensor:
    """One vector (n,), float64, of a tensor, or one number, for each parameter."""
    pairs = zip(params, values, strict=True)
    return layout.flatten([torch.zeros_like(p.detach(), dtype=torch.float64) + value for p, value in pairs])
