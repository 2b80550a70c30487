"""Spectra of disjoint parts of the data: what tells a difference between layers from chance."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyhessian_spectra.analysis.gauss_newton import Part
from pyhessian_spectra.analysis.operators import estimated
from pyhessian_spectra.analysis.similarity import WHOLE, merged
from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.curvature.blocks import block_operator
from pyhessian_spectra.curvature.partition import Group
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra import LinearOperator, Meter, Settings, Spectrum
from pyhessian_spectra.spectra.cost import is_built, is_dense
from pyhessian_spectra.spectra.dense import build


def require_parts(risk: EmpiricalRisk, wanted: int | None) -> None:
    """Raise InputError if the data cannot be divided into so many parts."""
    if wanted and risk.sample.processes:
        raise InputError("data_parts is for one process; leave it out, or run on one")
    if wanted and wanted > risk.num_batches:
        raise InputError(f"data_parts = {wanted} needs as many batches, got {risk.num_batches}; make batches smaller")


@dataclass(frozen=True)
class Parts:
    """Takes the spectra of the whole matrix and of each layer from one part of the data after another."""

    risk: EmpiricalRisk
    settings: Settings
    groups: Sequence[Group]
    matrix: Callable[[EmpiricalRisk], LinearOperator]
    count: int
    own: Part | None
    atol: float

    def spectra(self, number: int, meter: Callable[[LinearOperator], Meter], seed: int) -> Mapping[str, Spectrum]:
        """The spectra of one part, each with probes of its own."""
        risk = self.risk.replace(data=_Chosen(self.risk.data, self._batches[number :: self.count, 0]))
        whole = self.matrix(risk)
        if is_built(self.settings, risk.n):
            entries, _, off = build(meter(whole))
            blocks = {WHOLE: entries.matrix, **{g.label: entries.matrix[g.indices][:, g.indices] for g in self.groups}}
            return {label: _exact(block, off.norm) for label, block in blocks.items()}
        found = {WHOLE: self._estimated(meter(whole), seed, 0.0)}
        for index, group in enumerate(self.groups, start=1):
            known = self._from_rows(group.label, number)
            if known is None:
                known = self._estimated(meter(block_operator(self.matrix, risk, group)), seed + index, self.atol)
            found[group.label] = known
        return {label: merged(spectrum) for label, spectrum in found.items()}

    def _estimated(self, op: Meter, seed: int, atol: float) -> Spectrum:
        settings = self.settings.replace(trace_probes=2, resolve=0)
        if is_dense(settings, op.n):
            entries, _, off = build(op)
            return _exact(entries.matrix, off.norm)
        return estimated(op, settings, None, seed, atol=atol).spectrum

    def _from_rows(self, label: str, number: int) -> Spectrum | None:
        """The spectrum of a layer whose block is the Gauss-Newton part's, from the rows of this part's examples."""
        if self.own is None or label not in self.own.layers:
            return None
        gram, sizes = self.own.gram, self._batches[:, 1]
        chosen = np.repeat(np.arange(len(sizes)) % self.count == number, sizes)
        share = 1.0 if gram.weights is None else float(gram.weights[chosen].sum())
        return gram.groups[label].among(chosen[gram.examples], share).spectrum()

    @functools.cached_property
    def _batches(self) -> NDArray[np.intp]:
        """The place in the data, and the number of examples, of each batch that has any weight."""
        return np.array([(batch.index, batch.num_examples) for _, batch in self.risk.sample.read()])


class _Chosen:
    """The batches at some places of the data."""

    def __init__(self, data: Iterable[Any], places: NDArray[np.intp]) -> None:
        self._data, self._places = data, set(places.tolist())

    def __iter__(self) -> Iterator[Any]:
        return (batch for place, batch in enumerate(self._data) if place in self._places)


def _exact(entries: torch.Tensor, off: float) -> Spectrum:
    values = torch.linalg.eigvalsh(entries).numpy()
    return merged(Spectrum.from_eigenvalues(values, rounding=off))
