"""Traces while training: the same random probes at each step, so that changes are known better than values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.sampling import with_trace_influences
from pyhessian_spectra.analysis.table import PROBES
from pyhessian_spectra.curvature import Partition
from pyhessian_spectra.curvature.partition import GroupSpec
from pyhessian_spectra.spectra.forms import Forms, FormsRecorder
from pyhessian_spectra.spectra.results import Floats, TraceEstimate
from pyhessian_spectra.spectra.rounding import Off, Rounding
from pyhessian_spectra.spectra.trace import mean_of
from pyhessian_spectra.tracking.checks import require_count
from pyhessian_spectra.tracking.moment import Moment
from pyhessian_spectra.tracking.track import Measured


class Traces:
    """The trace of the Hessian and of its layers' blocks, from the same products: ``trace``, and its ``change``.

    Where the tracker certifies, ``first`` random sign vectors give the values. In between, ``num_probes`` of these, the
    same ones each time, give the changes since then, whose error is far smaller, since what a vector says of the matrix
    hardly changes with it (Hutchinson's estimator with common random numbers). A value's error is the sum of both.

    Parameters
    ----------
    num_probes : int
        At least 2: products between certificates.
    first : int
        At least as many: products of a certificate.
    groups : str, int, sequence or Partition
        Layers whose traces are wanted, as for :meth:`Partition.of`.
    seed : int
        Of the random signs.

    Raises
    ------
    InputError
        A number is out of its range.
    """

    needs_previous = False

    def __init__(self, num_probes: int = 3, *, first: int = 20, groups: GroupSpec = "module", seed: int = 0) -> None:
        require_count("num_probes", num_probes, 2)
        require_count("first", first, num_probes)
        require_count("seed", seed, 0)
        self._num_probes, self._first, self._groups, self._seed = num_probes, first, groups, seed
        self._anchor: Floats | None = None  # what each probe said of each group when values were found last, (r, g)
        self._rounding: Floats = np.zeros(0)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same numbers."""
        anchor = None if self._anchor is None else torch.from_numpy(self._anchor.copy())
        return {"anchor": anchor, "rounding": torch.from_numpy(self._rounding.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._anchor = None if state["anchor"] is None else state["anchor"].numpy()
        self._rounding = state["rounding"].numpy()

    def measure(self, moment: Moment) -> list[Measured]:
        """The traces now: of the whole, and of each layer."""
        partition = Partition.of(moment.risk.layout, self._groups)
        sections, members = partition.sections()
        groups: dict[str, Sequence[int]] = {"": range(len(sections)), **members}
        fresh = moment.certify or self._anchor is None
        forms, off = self._forms(moment, sections, self._first if fresh else self._num_probes, certify=fresh)
        samples = _samples(forms, groups.values())
        if fresh:
            shares = [sum(sections[i] for i in group) / moment.risk.n for group in groups.values()]
            # of a block, by its part of the norm: |tr E_gg| <= sqrt(n_g) ||E||_F
            self._anchor, self._rounding = samples, off.norm * np.sqrt(np.array(shares) * moment.risk.n)
            self._rounding[0] = off.trace
        assert self._anchor is not None
        rows = []
        for i, (label, group) in enumerate(groups.items()):
            level = mean_of(self._anchor[:, i], 0, "probes")
            value, reach = level.value, level.reach
            if not fresh:
                moved = mean_of(samples[:, i] - self._anchor[: len(samples), i], 0, "paired probes")
                value, reach = value + moved.value, reach + moved.reach
                change = Measured(
                    "change of trace", moved.value, moved.reach + 2 * float(self._rounding[i]), PROBES, label
                )
                rows.append(change)
            data = with_trace_influences(TraceEstimate(value, reach, 0), forms, list(group)).data_stderr
            rows.append(Measured("trace", value, reach + float(self._rounding[i]), PROBES, label, data))
        return rows

    def _forms(self, moment: Moment, sections: list[int], count: int, *, certify: bool) -> tuple[Forms, Off]:
        """The probes' forms by sections and, when it certifies, bounds on the rounding of the trace and of the norm."""
        op, generator = moment.hessian, torch.Generator().manual_seed(self._seed)
        seen: list[tuple[Tensor, Tensor]] = []
        recorder = FormsRecorder(op, sections)
        for _ in range(count):
            z = op.space.rademacher(generator) / op.n**0.5
            seen = [*seen[-1:], (z, recorder.probe(z))]  # two, taken again in float64
        off = Off(0.0, 0.0)
        if certify:
            off = Rounding(op).seen([(z * op.n**0.5, product * op.n**0.5) for z, product in seen])
        return recorder.forms(np.zeros(0, dtype=bool)), off


def _samples(forms: Forms, groups: Any) -> Floats:
    """What each probe says of the trace of each group (r, g)."""
    by_section = np.einsum("b,brs->rs", forms.weights, forms.trace_samples)
    return np.stack([by_section[:, list(group)].sum(axis=1) for group in groups], axis=1)
