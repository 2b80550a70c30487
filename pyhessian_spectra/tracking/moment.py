"""One moment of a training run: what quantities are measured from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from pyhessian_spectra.analysis.stability import Stability
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.spectra import Eigenpairs, Meter
from pyhessian_spectra.tracking.track import Measured


@dataclass
class Moment:
    """The model after a step, with what several quantities share.

    Parameters
    ----------
    risk : EmpiricalRisk
        The loss on the probe data.
    batches : sequence of EmpiricalRisk
        The loss on each batch of them.
    stability : Stability or None
        The optimiser's edge of stability.
    lr : float or None
    previous : Tensor, shape (n,), or None
        The parameters before the last step, if a quantity asked for them.
    certify : bool
        Whether to look for everything from the beginning, and bound what may have been missed.
    hurried : bool
        Whether there is a budget, so that what takes long waits for a certificate.
    top : Eigenpairs or None
        The largest eigenvalues of the Hessian and their vectors, once they were measured.
    """

    risk: EmpiricalRisk
    batches: Sequence[EmpiricalRisk]
    stability: Stability | None
    lr: float | None
    previous: Tensor | None
    certify: bool
    hurried: bool
    top: Eigenpairs | None = None
    products: int = field(default=0, init=False)

    @cached_property
    def point(self) -> Point:
        """The live parameters."""
        return self.risk.live()

    @cached_property
    def hessian(self) -> Meter:
        """The Hessian of the probe data at the live parameters."""
        return Meter(HessianOperator(self.risk, point=self.point))

    def loss_at(self, flat: Tensor) -> float:
        """The loss of the probe data at other parameters (n,)."""
        return self.risk.loss(Point.of(self.risk.layout, flat))


class Quantity(Protocol):
    """What a tracker measures: a class with these, and ``state_dict`` and ``load_state_dict`` if it remembers."""

    #: Whether the parameters before the last step are needed.
    needs_previous: bool

    def measure(self, moment: Moment) -> list[Measured]:
        """The numbers of this moment."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class Stateless:
    """A quantity that remembers nothing."""

    needs_previous = False

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""
