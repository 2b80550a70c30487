"""analyze: the one recipe from a risk to a SpectralAnalysis."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pyhessian_spectra.analysis.gauss_newton import Part, gauss_newton_part
from pyhessian_spectra.analysis.gradient import gradient_shares
from pyhessian_spectra.analysis.operators import built, diagonalised, estimated
from pyhessian_spectra.analysis.parts import Parts, require_parts
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.analysis.sampling import data_notes
from pyhessian_spectra.analysis.similarity import WHOLE
from pyhessian_spectra.analysis.structure import Structure, coupling_of, localised
from pyhessian_spectra.curvature import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    Linearised,
    Partition,
    ResidualOperator,
    RiskOperator,
)
from pyhessian_spectra.curvature.blocks import block_operator, chosen_layers, repeatable_gradient
from pyhessian_spectra.curvature.gram_cost import worth_taking
from pyhessian_spectra.curvature.partition import Group, GroupSpec
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import InputError, Interrupted, SpectraError, UnverifiedError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.runs.journal import digests, open_journal
from pyhessian_spectra.runs.watch import Progress, Watch
from pyhessian_spectra.spectra import LinearOperator, MatrixOperator, Settings, Spectrum
from pyhessian_spectra.spectra.basis import readable
from pyhessian_spectra.spectra.cost import (
    forecast_products,
    is_dense,
    number_of_parts,
    products_of_a_part,
    products_of_coupling,
)
from pyhessian_spectra.spectra.krylov import FIRST_STAGE
from pyhessian_spectra.spectra.space import fresh_generator

# A layer's lower edge is a cluster at zero, where more digits would take most of the products: residuals of this size,
# relative to the norm, are good enough there.
_LAYER_ATOL = 1e-4


def analyze(
    risk: EmpiricalRisk,
    settings: Settings | None = None,
    *,
    layers: bool | GroupSpec = True,
    matrix: Callable[[EmpiricalRisk], LinearOperator] = HessianOperator,
    problem: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    journal: str | os.PathLike[str] | None = None,
    **fields: Any,
) -> SpectralAnalysis:
    """Analyse a curvature matrix of a risk: all that :func:`analyze_operator` gives, of the whole and of each layer.

    Where the whole matrix is built, the layers are its diagonal blocks; beyond that each takes products of its own.

    Parameters
    ----------
    risk : EmpiricalRisk
    settings : Settings, optional
    layers : bool, Partition, str, int, sequence of str or mapping
        True for each module that owns a weight of two or more dimensions, with its bias; False for none. A list of
        names or globs takes the modules that own what they match; for others see :meth:`Partition.of`.
    matrix : callable
        ``risk -> operator``: ``GGNOperator``, ``ResidualOperator``, ``EmpiricalFisherOperator``, or a function such as
        ``lambda risk: HessianOperator(risk) + GGNOperator(risk)``. It is called again with the risk of each layer.
    problem : mapping, optional
        JSON scalars to record beside what is known of the risk itself, such as the checkpoint's name.
    generator : torch.Generator, optional
        Source of all randomness; None draws a fresh random seed.
    progress : callable, optional
        Called as ``progress(what, products_done, products_expected)`` after each product.
    journal : path-like, optional
        Folder in which products are kept as they are taken. Called again with the same arguments, ``analyze`` goes on
        from there to the same numbers, or returns the analysis if it had finished. What was kept of another checkpoint,
        other data or other settings is not used, and a note says so.
    **fields
        Fields of ``settings`` to replace, such as ``num_eigenvalues=5``.

    Returns
    -------
    SpectralAnalysis

    Raises
    ------
    InputError
        A wrong argument, or data or a model that change between two evaluations.
    Interrupted
        Ctrl-C after the whole matrix was analysed: ``partial`` holds the analysis with the layers finished by then.
    """
    if not isinstance(risk, EmpiricalRisk):
        kind = type(risk).__name__
        raise InputError(f"analyze takes an EmpiricalRisk, got {kind}; pass EmpiricalRisk(model, loss_fn, data)")
    settings = (settings or Settings()).replace(**fields)
    risk = risk.replace(memory_budget=settings.memory_budget).held()
    groups = chosen_layers(risk.layout, layers)
    if WHOLE in (group.label for group in groups):
        raise InputError(
            f"a layer is called {WHOLE!r}, which stands for the whole matrix; give it another label, such as "
            f"layers={{'layer {WHOLE}': {WHOLE!r}, ...}}"
        )
    drawn = torch.randint(2**62, (), generator=generator or fresh_generator())
    seed = risk.sample.processes.from_first(int(drawn))
    start = time.perf_counter()
    seconds_per_gradient = repeatable_gradient(risk)
    op = matrix(risk)
    sizes = [risk.n, *map(len, groups)]
    require_parts(risk, settings.data_parts)
    parts = 0 if risk.sample.processes else number_of_parts(settings, sizes, risk.num_batches)
    forecasts = forecast_products(settings, sizes)
    identity = [settings, _LAYER_ATOL, [(group.label, group.indices) for group in groups], op.kind]
    further = [products_of_coupling(settings, sizes), *[products_of_a_part(settings, sizes)] * parts]
    size = sum(n * products for n, products in zip(sizes, forecasts, strict=True)) * risk.dtype.itemsize
    size += sum(further) * risk.n * risk.dtype.itemsize
    folder = None if journal is None else Path(journal)
    kept = open_journal(folder, risk, identity, seed=seed, drawn=generator is None, size=size)
    earlier = kept.result(SpectralAnalysis.load)
    if earlier is not None:
        resumed = Note("resumed", "Resumed: the analysis was finished by an earlier run.")
        notes = [note for note in earlier.notes if note.kind != "resumed"]
        return replace(earlier, problem={**earlier.problem, **(problem or {})}, notes=(*notes, resumed))
    with_gram = worth_taking(op, risk, settings, groups, forecasts) is not None
    split = with_gram and isinstance(op, HessianOperator)
    verified, doubts = _verified(op + GGNOperator(risk) + ResidualOperator(risk) if split else op, settings)
    watch = Watch(kept, progress, [*forecasts, *further])
    run = _Run(risk, settings, groups, matrix, watch, parts)
    facts = {
        "n": risk.n,
        "N": risk.num_examples,
        "num_batches": risk.num_batches,
        "mode": risk.mode,
        "reduction": risk.reduction,
        "dtype": str(risk.dtype).removeprefix("torch."),
        "device": str(risk.device),
        "matrix": op.kind,
        "tol": settings.tol,
        "verified": verified,
        **{f"{what}_digest": text[:16] for what, text in digests(risk).items()},
        **(problem or {}),
    }

    def result() -> SpectralAnalysis:
        timing = {
            "seconds": time.perf_counter() - start + kept.seconds,
            "num_products": watch.products,
            "seconds_per_product": watch.seconds_per_product,
            "seconds_per_gradient": seconds_per_gradient,
        }
        notes = [*doubts, *data_notes(risk), *run.notes, *kept.notes]
        if kept.replayed:
            share = f"{kept.replayed} of its {watch.products} products"
            notes.append(Note("resumed", f"Resumed: {share} are of an earlier run, which was interrupted."))
        part = None if run.part is None else run.part.found
        return SpectralAnalysis(facts, run.full, run.layers, timing, tuple(notes), part, run.structure, run.parts)

    try:
        if with_gram and isinstance(op, RiskOperator):
            run.take_part(op, kept.seed)
        run.analyse(op, kept.seed)
        run.relate(op, kept.seed)
        risk.loss()  # for the last time, should the model or the data have changed
    except KeyboardInterrupt:
        if run.full is None or not groups:
            raise
        told = f"{len(run.layers)} of {len(groups)} layers were finished"
        run.notes.append(Note("interrupted", f"Interrupted: {told}."))
        raise Interrupted(told, result()) from None
    analysis = result()
    kept.finish(analysis.save)
    return analysis


def _verified(op: LinearOperator, settings: Settings) -> tuple[str, list[Note]]:
    """What :func:`verify` found; where that would be refused and is accepted, a note of it."""
    try:
        return verify(op), []
    except UnverifiedError as error:
        if not settings.accept_unverified:
            told = f"{error} (accept_unverified=True, or --accept-unverified, goes on with a note)"
            raise UnverifiedError(told) from None
        return "no", [Note("verification", f"Numbers may be wrong, since {error}.")]


@dataclass
class _Run:
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
        gradient = gradient_shares(self.risk, self.full)
        self.structure = Structure(None, localised(self.full, groups), gradient)
        what, index = "the coupling of layers", len(self.groups) + 1
        whole = self.matrix_built or self.watch.meter(op, what)
        gram = None if self.part is None or not isinstance(op, GGNOperator) else self.part.gram
        coupling = coupling_of(whole, self.full, self.settings, groups, seed + index, gram)
        self.structure = replace(self.structure, coupling=coupling)
        self.watch.close_block(what, index)
        taken = Parts(self.risk, self.settings, self.groups, self.matrix, self.num_parts, self.part, _LAYER_ATOL)
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
            block = estimated(meter, settings, partition, seed, atol=_LAYER_ATOL if index else 0.0)
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
        error = self.full.group_traces[group.label].data_stderr
        return replace(block, trace=replace(block.trace, data_stderr=error))
