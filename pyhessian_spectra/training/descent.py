"""Gradient descent on a point, or on many stacked points at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class GradientDescent:
    """Gradient descent with momentum, ``v <- momentum v + g``, ``theta <- theta - step v``, in place.

    Parameters
    ----------
    gradient : callable
        Maps ``theta`` to its gradient, of the same shape; may be stochastic.
    theta : Tensor, shape (n,) or (members, n)
        Starting point, one row per member; it is copied.
    step : float
    momentum : float

    Attributes
    ----------
    theta : Tensor
    gradient : Tensor
        The gradient that :meth:`evaluate` computed last; zeros before the first call.
    """

    def __init__(
        self, gradient: Callable[[Tensor], Tensor], theta: Tensor, *, step: float, momentum: float = 0.0
    ) -> None:
        self._gradient, self._step, self._momentum = gradient, step, momentum
        self.theta, self.gradient = theta.clone(), torch.zeros_like(theta)
        self._velocity = torch.zeros_like(theta) if momentum else None

    def evaluate(self) -> Tensor:
        """Compute, store and return the gradient at ``theta``."""
        self.gradient = self._gradient(self.theta)
        return self.gradient

    def step(self) -> None:
        """Move along the gradient that was evaluated last."""
        direction = self.gradient
        if self._velocity is not None:
            direction = self._velocity.mul_(self._momentum).add_(direction)
        self.theta.sub_(direction, alpha=self._step)

    def seat(self, places: Tensor, members: Tensor) -> None:
        """Replace the members at ``places`` (k,) by ``members`` (k, n), with zero gradient and velocity."""
        self.theta[places], self.gradient[places] = members, 0
        if self._velocity is not None:
            self._velocity[places] = 0

    def keep(self, members: Tensor) -> None:
        """Keep only some members, given by a boolean mask or by indices."""
        self.theta, self.gradient = self.theta[members], self.gradient[members]
        if self._velocity is not None:
            self._velocity = self._velocity[members]
