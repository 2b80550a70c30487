"""analyze: the one recipe from a risk to a SpectralAnalysis."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyhessian_spectra.analysis.operators import built, diagonalise, estimated
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator, Linearised, Partition
from pyhessian_spectra.curvature.blocks import block_operator, chosen_layers, repeatable_gradient
from pyhessian_spectra.curvature.partition import Group, GroupSpec
from pyhessian_spectra.errors import InputError, Interrupted
from pyhessian_spectra.notes import Note
from pyhessian_spectra.runs.journal import Journal, open_journal
from pyhessian_spectra.runs.watch import Ledger, Progress, watched
from pyhessian_spectra.spectra import LinearOperator, MatrixOperator, Meter, Settings
from pyhessian_spectra.spectra.basis import readable
from pyhessian_spectra.spectra.cost import forecast_products, is_dense
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
        Folder in which products are kept as they are taken. Called again after an interruption, with the same
        arguments, ``analyze`` takes what is there from it and goes on, to the same numbers; called again when it has
        finished, it returns the analysis. What was kept of another checkpoint, other data or other settings is not
        used, and a note says so.
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
        raise InputError(
            f"analyze takes an EmpiricalRisk, got {type(risk).__name__}; pass EmpiricalRisk(model, loss_fn, data)"
        )
    settings = (settings or Settings()).replace(**fields)
    risk = risk.replace(memory_budget=settings.memory_budget)
    groups = chosen_layers(risk.layout, layers)
    drawn = int(torch.randint(2**62, (), generator=generator or fresh_generator()))
    processes = risk.sample.processes
    seed = processes.from_first(drawn)
    start = time.perf_counter()
    seconds_per_gradient = repeatable_gradient(risk)
    op = matrix(risk)
    sizes = [risk.n, *map(len, groups)]
    forecasts = forecast_products(settings, sizes)
    kept = open_journal(
        journal,
        risk,
        [settings, _LAYER_ATOL, [(group.label, group.indices) for group in groups], op.kind],
        seed=seed,
        drawn=generator is None,
        size=sum(n * products for n, products in zip(sizes, forecasts, strict=True)) * risk.dtype.itemsize,
    )
    earlier = processes.from_first(_finished(kept) if processes.rank == 0 else None)
    if earlier is not None:
        return replace(earlier, problem={**earlier.problem, **(problem or {})})
    run = _Run(risk, settings, groups, matrix, kept, Ledger(progress, forecasts))
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
        **(problem or {}),
    }

    def result() -> SpectralAnalysis:
        timing = {
            "seconds": time.perf_counter() - start + kept.seconds,
            "num_products": run.ledger.products,
            "seconds_per_product": run.ledger.seconds_per_product,
            "seconds_per_gradient": seconds_per_gradient,
        }
        notes = (*run.notes, *kept.remarks(run.ledger.products))
        return SpectralAnalysis(facts, run.full, run.layers, timing, notes)

    try:
        run.analyse(op, kept.seed)
    except KeyboardInterrupt:
        if run.full is None or not groups:
            raise
        told = f"{len(run.layers)} of {len(groups)} layers were finished"
        run.notes.append(Note("interrupted", f"Interrupted: {told}."))
        raise Interrupted(told, result()) from None
    analysis = result()
    kept.finish(analysis.save)
    return analysis


class _Run:
    """The whole matrix, then its layers: what has been found of them so far."""

    def __init__(
        self,
        risk: EmpiricalRisk,
        settings: Settings,
        groups: Sequence[Group],
        matrix: Callable[[EmpiricalRisk], LinearOperator],
        journal: Journal,
        ledger: Ledger,
    ) -> None:
        self._risk, self._settings, self._groups = risk, settings, groups
        self._matrix, self._journal, self.ledger = matrix, journal, ledger
        self.full: BlockAnalysis = None  # type: ignore[assignment]  # until it is found
        self.layers: dict[str, BlockAnalysis] = {}
        self.notes: list[Note] = []

    def analyse(self, op: LinearOperator, seed: int) -> None:
        """Fill ``full`` and ``layers``."""
        settings, modules = self._settings, Partition.by_module(self._risk.layout)
        whole = watched(op, "the whole matrix", self.ledger, self._journal)
        if self._risk.n <= settings.exact_limit:
            matrix, self.full = built(whole, settings, modules, seed)
            self.ledger.close_block("the whole matrix", 0)
            self.layers = {group.label: self._cut_out(matrix, group, modules) for group in self._groups}
            return
        self.full = self._own(whole, "the whole network", modules, seed, 0)
        self._note_linearisation("the whole network")
        for index, group in enumerate(self._groups, start=1):
            what = f"layer {group.label}"
            part = watched(block_operator(self._matrix, self._risk, group), what, self.ledger, self._journal)
            own = Partition.by_module(self._risk.layout.restrict(group.names)) if group.whole else None
            self.layers[group.label] = self._own(part, what, own, seed + index, index)

    def _own(self, op: Meter, what: str, partition: Partition | None, seed: int, index: int) -> BlockAnalysis:
        """What the products of one operator say."""
        settings = self._settings
        if is_dense(settings, op.n):
            block = built(op, settings, partition, seed)[1]
        else:
            block = estimated(op, settings, partition, seed, atol=_LAYER_ATOL if index else 0.0)
        if block.unconverged:
            total = len(block.largest) + len(block.smallest)
            text = (
                f"{block.unconverged} of {total} eigenpairs of {what} did not reach the tolerance within "
                f"{settings.max_steps} Lanczos steps and as many of restarts; raise max_steps, or ask for fewer."
            )
            self.notes.append(Note("unconverged", text))
        self.ledger.close_block(what, index)
        return block

    def _cut_out(self, matrix: MatrixOperator, group: Group, modules: Partition) -> BlockAnalysis:
        """A diagonal block of a matrix that is there; the products of the whole tell the data's error of its trace."""
        entries = matrix.to_dense()[group.indices][:, group.indices]
        block = diagonalise(MatrixOperator(entries), self._settings, self._risk.dtype)
        same = modules.groups.get(group.label)
        if same is None or not torch.equal(same.indices, group.indices):
            return block
        error = self.full.group_traces[group.label].data_stderr
        return replace(block, trace=replace(block.trace, data_stderr=error))

    def _note_linearisation(self, what: str) -> None:
        facts = self.ledger.facts.get(what, {})
        if "linearised" in facts:
            size = f", {readable(facts['bytes'])}" if facts["bytes"] else ""
            text = f"The linearisation at the parameters was {Linearised[facts['linearised']].value}{size}."
            self.notes.append(Note("linearisation", text))


def _finished(journal: Journal) -> SpectralAnalysis | None:
    """What an earlier run has finished, with a note that says so."""
    if journal.finished is None:
        return None
    try:
        analysis = SpectralAnalysis.load(journal.finished)
    except InputError:
        journal.forget_finished()
        return None
    notes = [note for note in analysis.notes if note.kind != "resumed"]
    return replace(analysis, notes=(*notes, Note("resumed", "Resumed: the analysis was finished by an earlier run.")))
