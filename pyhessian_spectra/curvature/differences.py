"""What differences at several steps say of a claim."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Comparison:
    """A claim against what differences say at several steps.

    It is refuted where it agrees at no step, and differences at three steps, small ones or large ones, agree with one
    another ten times better than with the claim.
    """

    what: str
    rtol: float
    placed: bool = True  # whether a module may be where the fault lies
    misses: list[Tensor] = field(default_factory=list)
    best: float = math.inf  # relative
    agrees: bool = False

    def add(self, claim: Tensor, found: Tensor, size: float, noise: float = 0.0) -> None:
        """Compare at one more step; ``size`` is what a claim is relative to, ``noise`` what rounding may amount to."""
        miss = float((found - claim).norm())
        self.misses.append(found - claim)
        nothing = miss <= noise and not claim.any()  # as of a loss that is linear in pieces
        self.best = min(self.best, 0.0 if nothing else miss / size if size else miss)
        self.agrees = self.agrees or miss <= self.rtol * size + noise

    @property
    def refuted(self) -> bool:
        """Whether differences at three steps agree with one another much better than with the claim."""
        best = min(float(miss.norm()) for miss in self.misses)
        sets = [self.misses[:3]] + ([[self.misses[1], *self.misses[4:]]] if len(self.misses) > 5 else [])
        pairs = ([float((a - b).norm()) for a, b in itertools.combinations(some, 2)] for some in sets)
        return not self.agrees and any(best > 10 * max(spread, default=0.0) for spread in pairs)


def seen(comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """What was seen to be right of gradients, compared first, and of products, second; and what was not seen."""
    pairs = list(zip(("gradients", "products"), comparisons, strict=False))
    right = ", ".join(f"{name} to {each.best:.0e}" for name, each in pairs if each.best <= each.rtol)
    unseen = " and ".join(name for name, each in pairs if each.best > each.rtol)
    return right and f"{right.replace(' to', ' right to', 1)}, relative", unseen
