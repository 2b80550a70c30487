"""When to measure: so often, within a share of the time, and certified now and then."""

from __future__ import annotations

import time
from typing import Any

# Until the first one, a certificate is taken to cost so many times what following does: at the edge of stability it
# took 44 products, and following 5.2. The first measurement begins from random vectors, and verifies the operator: on a
# narrow ResNet20 it took 1.1 to 2.8 times as long as those after it.
_DEARER, _FIRST = 8.0, 2.0

# So many measurements are followed while a certificate waits.
_PATIENCE = 5


class Pace:
    """Decides at which steps to measure, and where to certify.

    With a budget a measurement waits until it fits, by what the last one took, and a certificate as well; for that some
    measurements are left out.
    """

    def __init__(self, every: int, budget: float | None, certify_every: int) -> None:
        self._every, self.budget, self._certify_every = every, budget, certify_every
        self._followed = certify_every - 1  # measurements since the last certificate: one is wanted at once
        # seconds that the next measurement is to take, and that all took, where followed and where certified
        self._costs, self._spent = [0.0, 0.0], [0.0, 0.0]
        self._first = True
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def may(self, step: int) -> bool:
        """Whether this step is one at which it may be measured."""
        return step % self._every == 0

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether to measure at this step, and whether to certify."""
        if not self.may(step):
            return False, False
        waiting = self._followed - (self._certify_every - 1)  # measurements since a certificate is wanted
        if self.budget is None:
            return True, waiting >= 0
        if self._first:
            return True, False
        room = self.budget * self.elapsed - sum(self._spent)
        followed, certified = self._costs
        if waiting >= 0 and (certified or _DEARER * followed) <= room:
            return True, True
        return followed <= room and waiting < _PATIENCE, False

    def spend(self, seconds: float, *, certify: bool) -> None:
        """Note what a measurement took."""
        self._costs[certify] = seconds / (_FIRST if self._first and not certify else 1)
        self._spent[certify] += seconds
        self._followed, self._first = 0 if certify else self._followed + 1, False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on at the same pace."""
        kept = {"followed": self._followed, "spent": list(self._spent), "costs": list(self._costs)}
        return {**kept, "first": self._first, "elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._followed, self._first = state["followed"], state["first"]
        self._spent, self._costs = list(state["spent"]), list(state["costs"])
        self._began = time.perf_counter() - state["elapsed"]
