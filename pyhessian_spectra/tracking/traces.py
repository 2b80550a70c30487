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
from pyhessian_spectra.spectra.space import forked
from pyhessian_spectra.spectra.trace import mean_of
from pyhessian_spectra.tracking.checks import require_count
from pyhessian_spectra.tracking.moment import Moment
from pyhessian_spectra.tracking.track import Measured


class Traces:
    """The trace of the Hessian and of its layers' blocks, from the same products: ``trace``, and its ``change``.

    Where the tracker certifies, ``first`` random sign vectors give the values. In between, ``num_probes`` of these, the
    same ones each time, give the changes since then, whose errors are smaller the less has changed, since what a vector
    says of the matrix hardly changes with it (Hutchinson's estimator with common random numbers). A value's error is
    the sum of both; once most of it is that of the change, the next value is found from the beginning, unless the
    tracker has a budget. ``change of trace`` is since the record before.

    What the eigenvectors that :class:`Eigenvalues` measured before it say of the trace is taken exactly, and only the
    rest is sampled: the more are followed, the smaller are the errors (as in Hutch++, Meyer et al. 2021).

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

    def __init__(self, num_probes: int = 4, *, first: int = 20, groups: GroupSpec = "module", seed: int = 0) -> None:
        require_count("num_probes", num_probes, 2)
        require_count("first", first, num_probes)
        require_count("seed", seed, 0)
        self._num_probes, self._first, self._groups, self._seed = num_probes, first, groups, seed
        # what each probe said of each group (r, g): when values were found from the beginning, and at the last record
        self._anchor: Floats | None = None
        self._last: Floats | None = None
        self._rounding: Floats = np.zeros(0)
        self._stale = False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same numbers."""
        kept = {"anchor": self._anchor, "last": self._last, "rounding": self._rounding}
        tensors = {name: None if each is None else torch.from_numpy(each.copy()) for name, each in kept.items()}
        return {**tensors, "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._anchor, self._last = (None if state[name] is None else state[name].numpy() for name in ("anchor", "last"))
        self._rounding = state["rounding"].numpy()
        self._stale = state["stale"]

    def measure(self, moment: Moment) -> list[Measured]:
        """The traces now: of the whole, and of each layer."""
        partition = Partition.of(moment.risk.layout, self._groups)
        sections, members = partition.sections()
        groups: dict[str, Sequence[int]] = {"": range(len(sections)), **members}
        thorough = moment.certify or (not moment.hurried and (self._anchor is None or self._stale))
        fresh = thorough or self._anchor is None
        forms, exact, off = self._forms(moment, sections, self._first if thorough else self._num_probes, certify=fresh)
        by_section = np.einsum("b,brs->rs", forms.weights, forms.trace_samples) + exact
        samples = np.stack([by_section[:, list(group)].sum(axis=1) for group in groups.values()], axis=1)
        if off is not None:
            sizes = np.array([sum(sections[i] for i in group) for group in groups.values()], dtype=np.float64)
            # of a block, by its part of the norm: |tr E_gg| <= sqrt(n_g) ||E||_F
            self._anchor, self._rounding = samples, off.norm * np.sqrt(sizes)
            self._rounding[0] = off.trace
        rows = []
        for i, (label, group) in enumerate(groups.items()):
            value, reach, moved = self._value(samples[:, i], i, fresh=fresh)
            if not i:
                self._stale = moved > reach / 2
            data = with_trace_influences(TraceEstimate(value, reach, 0), forms, list(group)).data_stderr
            rounding = float(self._rounding[i])
            rows.append(Measured("trace", value, reach + rounding, PROBES, label, data))
            if self._last is not None:
                change = mean_of(samples[: self._num_probes, i] - self._last[:, i], 0, "paired probes")
                rows.append(Measured("change of trace", change.value, change.reach + 2 * rounding, PROBES, label))
        self._last = samples[: self._num_probes]
        return rows

    def _value(self, samples: Floats, i: int, *, fresh: bool) -> tuple[float, float, float]:
        """The trace of a group, the reach of its interval, and the part of that which is the change's."""
        assert self._anchor is not None
        level = mean_of(self._anchor[:, i], 0, "probes")
        if fresh:
            return level.value, level.reach, 0.0
        moved = mean_of(samples - self._anchor[: len(samples), i], 0, "paired probes")
        return level.value + moved.value, level.reach + moved.reach, moved.reach

    def _forms(
        self, moment: Moment, sections: list[int], count: int, *, certify: bool
    ) -> tuple[Forms, Floats, Off | None]:
        """The probes' forms by sections, what eigenvectors say beyond them (r, s), and bounds on the rounding."""
        op = moment.hessian
        generator = forked(torch.Generator().manual_seed(self._seed))  # eigenvectors began from other numbers of seed 0
        recorder, known = FormsRecorder(op, sections), _Known(moment, sections)
        seen: list[tuple[Tensor, Tensor]] = []
        exact = []
        for _ in range(count):
            z = op.space.rademacher(generator)
            product = recorder.probe(z / op.n**0.5) * op.n**0.5
            exact.append(known.beyond(z))
            seen = [*seen[-1:], (z, product)]  # two, taken again in float64
        off = Rounding(op).seen(seen) if certify else None
        return recorder.forms(np.zeros(0, dtype=bool)), np.array(exact), off


class _Known:
    """``B = V diag(lambda) V^T`` of the eigenpairs measured: its trace is exact, and taken off what is sampled."""

    def __init__(self, moment: Moment, sections: list[int]) -> None:
        self._space, self._sections = moment.hessian.space, sections
        self._vectors: Tensor | None = None
        if moment.top is not None and moment.top.eigenvectors is not None:
            like = moment.point.coordinates[0]
            self._vectors = torch.from_numpy(np.asarray(moment.top.eigenvectors)).to(like.device, like.dtype)
            self._values = torch.from_numpy(moment.top.eigenvalues).to(like.device)
            parts = [self._space.section_inner(v, v, sections) for v in self._vectors.unbind(1)]
            self._trace = (self._values @ torch.stack(parts)).cpu().numpy()

    def beyond(self, z: Tensor) -> Floats:
        """``tr B - z^T B z`` by sections (s,)."""
        if self._vectors is None:
            return np.zeros(len(self._sections))
        along = self._values * self._space.gram(self._vectors.T, z[:, None])[:, 0]
        image = self._vectors @ along.to(self._vectors)
        return self._trace - self._space.section_inner(z, image, self._sections).cpu().numpy()
