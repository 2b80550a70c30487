"""analyze: the one recipe from a risk to a SpectralAnalysis."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyhessian_spectra.analysis.parts import require_parts
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.run import LAYER_ATOL, Run
from pyhessian_spectra.analysis.sampling import data_notes
from pyhessian_spectra.analysis.similarity import WHOLE
from pyhessian_spectra.curvature import EmpiricalRisk, GGNOperator, HessianOperator, ResidualOperator, RiskOperator
from pyhessian_spectra.curvature.blocks import chosen_layers, repeatable_gradient
from pyhessian_spectra.curvature.gram_cost import worth_taking
from pyhessian_spectra.curvature.partition import GroupSpec
from pyhessian_spectra.curvature.risk_operator import leaves_of
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import InputError, Interrupted, UnverifiedError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.runs.journal import digests, open_journal
from pyhessian_spectra.runs.watch import Progress, Watch
from pyhessian_spectra.spectra import LinearOperator, Settings
from pyhessian_spectra.spectra.cost import forecast_products, number_of_parts, products_of_a_part, products_of_coupling
from pyhessian_spectra.spectra.operator import require_operator
from pyhessian_spectra.spectra.space import fresh_generator


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
        ``risk -> operator``: ``GGNOperator``, ``ResidualOperator``, ``EmpiricalFisherOperator``,
        ``RelativeHessianOperator``, ``LogHessianOperator``, or a function such as
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
    op = _operator(matrix, risk)
    sizes = [risk.n, *map(len, groups)]
    require_parts(risk, settings.data_parts)
    parts = 0 if risk.sample.processes else number_of_parts(settings, sizes, risk.num_batches)
    forecasts = forecast_products(settings, sizes)
    identity = [settings, LAYER_ATOL, [(group.label, group.indices) for group in groups], op.kind]
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
    run = Run(risk, settings, groups, matrix, watch, parts)
    facts = {
        "n": risk.n,
        "N": risk.num_examples,
        "num_batches": risk.num_batches,
        "mode": risk.mode,
        "reduction": risk.reduction,
        "dtype": str(risk.dtype).removeprefix("torch."),
        "device": str(risk.device),
        "matrix": op.kind,
        "units": next((leaf.units for leaf in leaves_of(op)), RiskOperator.units),
        "tol": settings.tol,
        "weight_norm": float(torch.linalg.vector_norm(risk.point().flat().double())),
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


def _operator(matrix: Any, risk: EmpiricalRisk) -> LinearOperator:
    """The matrix of the risk; raises InputError if there is none."""
    if isinstance(matrix, LinearOperator) or not callable(matrix):
        raise InputError(
            f"matrix must be a function from a risk to an operator, such as HessianOperator, got {matrix!r}"
        )
    op = matrix(risk)
    require_operator(op)
    return op


def _verified(op: LinearOperator, settings: Settings) -> tuple[str, list[Note]]:
    """What :func:`verify` found, and notes of what it could not see, or of what would be refused and is accepted."""
    try:
        verdict = verify(op)
        return verdict.found or "nothing", [Note("verification", doubt) for doubt in verdict.doubts]
    except UnverifiedError as error:
        if not settings.accept_unverified:
            told = f"{error} (accept_unverified=True, or --accept-unverified, goes on with a note)"
            raise UnverifiedError(told) from None
        return "no", [Note("verification", f"Numbers may be wrong, since {error}.")]
