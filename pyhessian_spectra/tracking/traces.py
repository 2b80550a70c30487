"""Traces while training: the same random probes at each step, so that changes are known better than values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

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
from pyhessian_spectra.spectra.sketch import CountSketch
from pyhessian_spectra.spectra.space import forked
from pyhessian_spectra.spectra.trace import spread_error
from pyhessian_spectra.tracking.checks import require_count
from pyhessian_spectra.tracking.moment import Moment
from pyhessian_spectra.tracking.track import Measured

# Numbers in the sketch of a section. With 64 its length is kept to a sixth.
_WIDTH = 64


class Traces:
    """The trace of the Hessian and of its layers' blocks, from the same products: ``trace``, and its ``change``.

    Where the tracker certifies, ``first`` random sign vectors give the values. In between, ``num_probes`` of these, the
    same ones each time, give the changes since then, whose errors are smaller the less has changed, since what a vector
    says of the matrix hardly changes with it (Hutchinson's estimator with common random numbers). A value's error is
    the sum of both; once most of it is that of the change, the next value is found from the beginning, unless the
    tracker has a budget. ``change of trace`` is since the record before.

    What the eigenvectors that :class:`Eigenvalues` measured before it say of the trace is taken exactly, and only the
    rest is sampled: the more are followed, the smaller are the errors (as in Hutch++, Meyer et al. 2021). Errors are
    from what the vectors say of single coordinates, which is kept as sketches. Of at most ``first`` parameters the
    matrix is taken whole.

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
        self._level: Floats = np.zeros((0, 3))  # of each group: value, reach and rounding when found from the beginning
        self._anchor: _Seen | None = None  # what was seen then
        self._last: _Seen | None = None  # and at the last record
        self._stale = False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same numbers."""
        seen = {"anchor": self._anchor, "last": self._last}
        kept = {name: None if each is None else each.state_dict() for name, each in seen.items()}
        return {**kept, "level": torch.from_numpy(self._level.copy()), "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._anchor, self._last = (
            None if state[name] is None else _Seen(*(each.numpy() for each in state[name]))
            for name in ("anchor", "last")
        )
        self._level, self._stale = state["level"].numpy(), state["stale"]

    def measure(self, moment: Moment) -> list[Measured]:
        """The traces now: of the whole, and of each layer."""
        partition = Partition.of(moment.risk.layout, self._groups)
        sections, members = partition.sections()
        groups: dict[str, Sequence[int]] = {"": range(len(sections)), **members}
        built = moment.hessian.n <= self._first  # as many products are the whole matrix
        thorough = built or moment.certify or (not moment.hurried and (self._anchor is None or self._stale))
        fresh = thorough or self._anchor is None
        seen, forms, off = self._probed(moment, sections, self._first if thorough else self._num_probes, built, fresh)
        if off is not None:
            sizes = np.array([sum(sections[i] for i in group) for group in groups.values()], dtype=np.float64)
            rounding = off.norm * np.sqrt(sizes)  # of a block, by its part of the norm: |tr E_gg| <= sqrt(n_g) ||E||_F
            rounding[0] = rounding[0] if built else off.trace
            found = [seen.trace(group) for group in groups.values()]
            self._level = np.array([[t.value, t.reach, r] for t, r in zip(found, rounding, strict=True)])
            self._anchor = seen.first(self._num_probes)
        assert self._anchor is not None
        rows, moved = [], seen - self._anchor
        for i, (label, group) in enumerate(groups.items()):
            value, reach, off_by = map(float, self._level[i])
            if not fresh:
                change = moved.trace(group)
                value, reach = value + change.value, reach + change.reach
                self._stale = self._stale if i else change.reach > reach / 2
            data = with_trace_influences(TraceEstimate(value, reach, 0), forms, list(group)).data_stderr
            rows.append(Measured("trace", value, reach + off_by, PROBES, label, data))
            if self._last is not None:
                change = (seen - self._last).trace(group)
                rows.append(Measured("change of trace", change.value, change.reach + 2 * off_by, PROBES, label))
        self._stale = bool(self._stale and not fresh)
        self._last = seen.first(self._num_probes)
        return rows

    def _probed(
        self, moment: Moment, sections: list[int], count: int, built: bool, fresh: bool
    ) -> tuple[_Seen, Forms, Off | None]:
        """What the probes see, their forms on each batch, and bounds on the rounding if values begin here."""
        op, space = moment.hessian, moment.hessian.space
        generator = forked(torch.Generator().manual_seed(self._seed))  # eigenvectors began from other numbers of seed 0
        recorder, known = FormsRecorder(op, sections), _Known(moment, sections)
        sketch = CountSketch(sections, _WIDTH, torch.Generator().manual_seed(self._seed), op.device)
        last: list[tuple[Tensor, Tensor]] = []
        seen, entries = [], []
        columns = op.n**0.5 * torch.eye(op.n, dtype=op.dtype, device=op.device) if built else None
        for i in range(op.n if built else count):
            z = space.rademacher(generator) if columns is None else columns[i]
            product = recorder.probe(z / op.n**0.5) * op.n**0.5
            image, exact = known.beyond(z)
            seen.append(exact)
            entries.append(sketch(z * (product - image)))
            last = [*last[-1:], (z, product)]  # two, taken again in float64
        forms = recorder.forms(np.zeros(0, dtype=bool))
        if built:  # their mean is one form, and it is exact
            forms, entries = replace(forms, probes=forms.probes.mean(axis=1, keepdims=True)), []
            seen = [np.mean(seen, axis=0)]
        found = np.einsum("b,brs->rs", forms.weights, forms.trace_samples) + np.array(seen)
        rounding = Rounding(op)
        off = None if not fresh else rounding.everywhere(2) if built else rounding.seen(last)
        return _Seen(found, np.array(entries).reshape(-1, len(sections), _WIDTH)), forms, off


class _Seen(NamedTuple):
    """What ``r`` random sign vectors ``z`` say of each section: forms ``z^T A z`` (r, s), sketched entries (r, s, k).

    The entries are those of ``z * A z``. Without any there is one form, and it is exact.
    """

    forms: Floats
    entries: Floats

    def __sub__(self, other: _Seen) -> _Seen:
        """What the same vectors say of the difference of two matrices."""
        rows = min(len(self.forms), len(other.forms))
        return _Seen(*(a[:rows] - b[:rows] for a, b in zip(self, other, strict=True)))

    def first(self, rows: int) -> _Seen:
        """What the first vectors say."""
        return _Seen(self.forms[:rows], self.entries[:rows])

    def state_dict(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(each.copy()) for each in self)

    def trace(self, group: Sequence[int]) -> TraceEstimate:
        """The trace of some sections' diagonal block."""
        value, entries = float(self.forms[:, list(group)].sum(axis=1).mean()), self.entries[:, list(group)]
        count = len(entries)
        if not count:
            return TraceEstimate(value, 0.0, 0)
        deviations = float(((entries - entries.mean(axis=0)) ** 2).sum())
        return TraceEstimate(value, spread_error(deviations, float((entries**2).sum()), count), 0, "signs", count)


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

    def beyond(self, z: Tensor) -> tuple[Tensor, Floats]:
        """``B z`` (n,), and ``tr B - z^T B z`` by sections (s,)."""
        if self._vectors is None:
            return torch.zeros_like(z), np.zeros(len(self._sections))
        along = self._values * self._space.gram(self._vectors.T, z[:, None])[:, 0]
        image = self._vectors @ along.to(self._vectors)
        return image, self._trace - self._space.section_inner(z, image, self._sections).cpu().numpy()
