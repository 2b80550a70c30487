"""Run: an analysis of a risk under way, the whole matrix first, then its layers, then how these lie to one another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from pyhessian_spectra.analysis.gauss_newton import Part, gauss_newton_part
from pyhessian_spectra.analysis.gradient import gradient_shares
from pyhessian_spectra.analysis.operators import built, diagonalised, estimated
from pyhessian_spectra.analysis.parts import Parts
from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.analysis.structure import Structure, coupling_of, localised
from pyhessian_spectra.curvature import EmpiricalRisk, GGNOperator, HessianOperator, Linearised, Partition, RiskOperator
from pyhessian_spectra.curvature.blocks import block_operator
from pyhessian_spectra.curvature.partition import Group
from pyhessian_spectra.errors import SpectraError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.runs.watch import Watch
from pyhessian_spectra.spectra import LinearOperator, MatrixOperator, Settings, Spectrum
from pyhessian_spectra.spectra.basis import readable
from pyhessian_spectra.spectra.cost import is_dense
from pyhessian_spectra.spectra.krylov import FIRST_STAGE

# A layer's lower edge is a cluster at zero, where more digits would take most of the products: residuals of this size,
# relative to the norm, are good enough there.
LAYER_ATOL = 1e-4


@dataclass
class Run:
    """An analysis under way, and what it has found so far: first of the whole matrix, then of each layer."""

    risk: EmpiricalRisk
    settings: Settings
    groups: Sequence[Group]
    matrix: Callable[[EmpiricalRisk], LinearOperator]
    watch: Watch
    num_parts: int
    full: BlockAnalysis = None  # type: ignore[assignment]  # until it is found
    layers: dict[str, BlockAnalysis] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    part: Part | None = None
    matrix_built: MatrixOperator | None = None
    structure: Structure = field(default_factory=Structure)
    parts: tuple[Mapping[str, Spectrum], ...] = ()

    def take_part(self, op: RiskOperator, seed: int) -> None:
        """Take the Gauss-Newton part, exactly."""
        what = "the Gauss-Newton part"
        self.watch.tell(what)
        try:
            self.part = gauss_newton_part(op, self.settings, self.groups, lambda op: self.watch.meter(op, what), seed)
        except SpectraError as error:
            if self.settings.gauss_newton == "always":
                raise
            self.notes.append(Note("verification", f"The Gauss-Newton part was not taken, since {error}."))
            return
        top = self.part.found.block.largest
        if top.rounding > self.settings.tol * abs(float(top.eigenvalues[-1])):
            share = f"{top.rounding / abs(float(top.eigenvalues[-1])):.1%}"
            text = (
                f"Rounding may move eigenvalues of the Gauss-Newton part by {share} of the largest, as where a unit is"
            )
            remedy = "" if op.dtype == torch.float64 else "; with dtype float64 they are nearer"
            self.notes.append(Note("rounding", f"{text} next to its kink, and intervals allow for it{remedy}."))
        if isinstance(op, HessianOperator):
            self.watch.facts = {}

    def analyse(self, op: LinearOperator, seed: int) -> None:
        """Fill ``full`` and ``layers``."""
        what, modules = "the whole matrix", Partition.by_module(self.risk.layout)
        if self.risk.n <= self.settings.exact_limit:
            self.matrix_built, self.full = built(self.watch.meter(op, what), self.settings, modules, seed)
            self.watch.close_block(what, 0)
            self.layers = {g.label: self._cut_out(self.matrix_built, g, modules) for g in self.groups}
            return
        known = {} if self.part is None else self.part.layers
        if self.part is not None and isinstance(op, GGNOperator):
            self.full, self.layers = self.part.found.block, dict(known)
            return
        self.full = self._own(op, what, modules, seed, 0)
        if self.part is not None and self.part.trace is not None:
            self.full = replace(self.full, trace=self.part.trace)
        for index, group in enumerate(self.groups, start=1):
            if group.label in known:
                self.layers[group.label] = known[group.label]
                self.watch.close_block(f"layer {group.label}", index)
                continue
            part = block_operator(self.matrix, self.risk, group)
            own = Partition.by_module(self.risk.layout.restrict(group.names)) if group.whole else None
            self.layers[group.label] = self._own(part, f"layer {group.label}", own, seed + index, index)

    def relate(self, op: LinearOperator, seed: int) -> None:
        """Fill ``structure`` and ``parts``: how layers lie to one another, and their spectra from parts of the data."""
        groups = Partition(self.risk.layout, {g.label: g.indices for g in self.groups})
        gradient = gradient_shares(self.risk, self.full, op=op)
        self.structure = Structure(None, localised(self.full, groups), gradient)
        what, index = "the coupling of layers", len(self.groups) + 1
        whole = self.matrix_built or self.watch.meter(op, what)
        gram = None if self.part is None or not isinstance(op, GGNOperator) else self.part.gram
        coupling = coupling_of(whole, self.full, self.settings, groups, seed + index, gram)
        self.structure = replace(self.structure, coupling=coupling)
        self.watch.close_block(what, index)
        taken = Parts(self.risk, self.settings, self.groups, self.matrix, self.num_parts, self.part, LAYER_ATOL)
        for number in range(self.num_parts):
            what, index = f"part {number + 1} of the data", index + 1
            spectra = taken.spectra(number, functools.partial(self.watch.meter, what=what), seed + 1000 * (number + 1))
            self.parts = (*self.parts, spectra)
            self.watch.close_block(what, index)

    def _own(self, op: LinearOperator, what: str, partition: Partition | None, seed: int, index: int) -> BlockAnalysis:
        """Analyse one operator by products of its own, and note what a reader must know of them."""
        settings = self.settings.replace(resolve=0) if index else self.settings
        if index == 0 and self.part is not None and self.part.trace is not None:  # more samples of it tell nothing new
            settings = settings.replace(trace_probes=min(settings.trace_probes, FIRST_STAGE))
        meter = self.watch.meter(op, what)
        if is_dense(settings, op.n):
            block = built(meter, settings, partition, seed)[1]
        else:
            block = estimated(meter, settings, partition, seed, atol=LAYER_ATOL if index else 0.0)
        if block.unconverged:
            pairs = f"{block.unconverged} of {len(block.largest) + len(block.smallest)} eigenpairs of {what}"
            limit = f"within {settings.max_steps} Lanczos steps and as many of restarts"
            text = f"{pairs} did not reach the tolerance {limit}; raise max_steps, or ask for fewer."
            self.notes.append(Note("unconverged", text))
        off, size = block.largest.rounding, max(abs(block.largest.eigenvalues[-1]), abs(block.smallest.eigenvalues[0]))
        if off > settings.tol * size:
            text = f"Products with {what} are off by up to {off / size:.1%} of its norm, and intervals allow for it"
            remedy = "" if op.dtype == torch.float64 else "; with dtype float64 they are narrower"
            self.notes.append(Note("rounding", f"{text}{remedy}."))
        facts = self.watch.facts
        if index == 0 and "linearised" in facts:
            size = f", {readable(facts['bytes'])}" if facts["bytes"] else ""
            text = f"The linearisation at the parameters was {Linearised[facts['linearised']].value}{size}."
            self.notes.append(Note("linearisation", text))
        self.watch.close_block(what, index)
        return block

    def _cut_out(self, matrix: MatrixOperator, group: Group, modules: Partition) -> BlockAnalysis:
        """Analyse a diagonal block of the built matrix; the whole's products tell the sampling error of its trace."""
        entries = matrix.matrix[group.indices][:, group.indices]
        # the error of a block is part of that of the whole
        block, _ = diagonalised(MatrixOperator(entries), self.settings, self.full.largest.rounding)
        same = modules.groups.get(group.label)
        if same is None or not torch.equal(same.indices, group.indices):
            return block
        known = self.full.group_traces[group.label]
        trace = replace(block.trace, data_stderr=known.data_stderr, data_influences=known.data_influences)
        return replace(block, trace=trace)
