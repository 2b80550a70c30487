"""analyze: the one recipe from a risk to a SpectralAnalysis."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyhessian_spectra.analysis.journal import open_journal
from pyhessian_spectra.analysis.recipe import Recipe
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.analysis.watched import Ledger, Progress, Watched
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator
from pyhessian_spectra.curvature.operators import RiskOperator
from pyhessian_spectra.errors import InputError, Interrupted
from pyhessian_spectra.spectra.lanczos import fresh_generator

# A layer's lower edge is a cluster at zero, on which most products would be spent for digits of nothing: residuals of
# this size, relative to the norm, are good enough there.
_LAYER_ATOL = 1e-4


def analyze(
    risk: EmpiricalRisk,
    *,
    num_eigenvalues: int = 10,
    num_probes: int = 2,
    num_steps: int = 40,
    exact_limit: int = 3000,
    layers: bool | Sequence[str] = True,
    tol: float = 1e-4,
    max_steps: int = 300,
    rtol: float = 0.02,
    trace_probes: int = 30,
    memory_budget: int | None = None,
    matrix: Callable[..., RiskOperator] = HessianOperator,
    problem: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    journal: str | os.PathLike[str] | None = None,
) -> SpectralAnalysis:
    """Analyse the Hessian of a risk: edges, density, trace and Frobenius norm, of the whole and of each layer.

    Up to ``exact_limit`` parameters the matrix is built and diagonalised in float64, and the layers are its diagonal
    blocks. Beyond it one Krylov pass gives everything: a Lanczos process runs until both edges have
    converged; stochastic Lanczos quadrature on their complement gives the density, its first two moments the trace and
    the Frobenius norm, and its Ritz values a bound on what may have been missed.

    Parameters
    ----------
    risk : EmpiricalRisk
    num_eigenvalues : int
        Eigenpairs ``k`` at each edge, fewer where the matrix is too small.
    num_probes, num_steps : int
        Of the quadrature, where it is used; at least 2 probes.
    exact_limit : int
        Largest ``n`` for the dense path, which takes ``n`` products at most and ``24 n^2`` bytes.
    layers : bool or sequence of str
        True for each module that owns a weight of two or more dimensions, with its bias; names or globs of modules for
        others; False for none.
    tol : float
        Residual asked of the edges, relative to each eigenvalue; what the products' rounding allows where that is more.
        In layers also 1e-4 of the norm, since their lower edge is a cluster at zero.
    max_steps : int
        Most Lanczos steps of one process. Eigenpairs that have not converged by then are given, marked.
    rtol, trace_probes : float, int
        As many samples of the trace are taken as the spread of the first ten says that its 95 % interval needs to have
        a half-width of ``rtol`` of its value, and at most ``trace_probes``; the result says which.
    memory_budget : int, optional
        Bytes that kept linearisations may take, and as many that the Lanczos vectors may, which go to disk beyond it;
        default half of what is free, each.
    matrix : callable
        ``risk -> operator``; ``GGNOperator``, ``ResidualOperator`` and ``EmpiricalFisherOperator`` analyse those.
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
    recipe = Recipe(
        num_eigenvalues,
        num_probes,
        num_steps,
        exact_limit,
        tol,
        max_steps,
        rtol,
        trace_probes,
        memory_budget=memory_budget,
    )
    for_layers = replace(recipe, atol=_LAYER_ATOL)
    names = chosen_layers(risk, layers)
    seed = int(torch.randint(2**62, (), generator=generator or fresh_generator()))
    start = time.perf_counter()
    seconds_per_gradient = repeatable_gradient(risk)
    sizes = [risk.n, *(risk.restrict(p).n for p in names.values())]
    forecasts = recipe.forecast(sizes)
    ledger = Ledger(progress, forecasts)
    kept = open_journal(
        journal,
        risk,
        [recipe, for_layers, names, matrix.__name__],
        seed=seed,
        drawn=generator is None,
        size=sum(n * products for n, products in zip(sizes, forecasts, strict=True)) * risk.dtype.itemsize,
    )
    if kept.finished is not None:
        return replace(kept.finished, problem={**kept.finished.problem, **(problem or {})})
    seed = kept.seed
    notes: list[str] = []

    def finish(layers: Mapping[str, BlockAnalysis]) -> SpectralAnalysis:
        timing = {
            "seconds": time.perf_counter() - start + kept.seconds,
            "products": ledger.products,
            "seconds_per_product": ledger.seconds_per_product,
            "seconds_per_gradient": seconds_per_gradient,
        }
        known = {
            "n": risk.n,
            "N": risk.num_examples,
            "batches": risk.survey.num_batches,
            "mode": risk.mode,
            "dtype": str(risk.dtype).removeprefix("torch."),
        }
        known |= {"device": str(risk.device), "matrix": matrix.__name__.removesuffix("Operator"), "tolerance": tol}
        return SpectralAnalysis(
            {**known, **(problem or {})}, full, layers, timing, (*notes, *kept.remarks(ledger.products))
        )

    def block(what: str, part: EmpiricalRisk, index: int) -> BlockAnalysis:
        op = matrix(part, memory_budget=memory_budget)
        watched = Watched(op, what, ledger, kept)
        result = (for_layers if index else recipe).run(watched, part.layout, seed + index)
        if result.unconverged:
            total = len(result.largest) + len(result.smallest)
            notes.append(
                f"{result.unconverged} of {total} eigenpairs of {what} did not reach the tolerance within {max_steps} "
                "Lanczos steps and as many of restarts; raise max_steps, or ask for fewer."
            )
        if index == 0:
            notes.append(f"The linearisation at the parameters was {watched.linearisation}.")
        ledger.close_block(what, index)
        return result

    if risk.n <= exact_limit:
        op = matrix(risk, memory_budget=memory_budget)
        dense, full = recipe.exact(Watched(op, "the whole matrix", ledger, kept), risk.layout, seed)
        ledger.close_block("the whole matrix", 0)
        indices = {name: risk.layout.indices(parameters) for name, parameters in names.items()}
        blocks = {name: recipe.diagonalise(dense.block(i), risk.dtype) for name, i in indices.items()}
        # the products of the whole matrix tell the sampling error of a layer's trace, where all of the layer was chosen
        for name in set(full.layer_traces) & {name for name, p in names.items() if p in risk.layout.layers().values()}:
            trace = replace(blocks[name].trace, data_stderr=full.layer_traces[name].data_stderr)
            blocks[name] = replace(blocks[name], trace=trace)
        return kept.finish(finish(blocks))
    full = block("the whole network", risk, 0)
    finished: dict[str, BlockAnalysis] = {}
    try:
        for index, (name, parameters) in enumerate(names.items(), start=1):
            finished[name] = block(f"layer {name}", risk.restrict(parameters), index)
    except KeyboardInterrupt:
        notes.append(f"Interrupted: {len(finished)} of {len(names)} layers were finished.")
        raise Interrupted(f"{len(finished)} of {len(names)} layers were finished", finish(finished)) from None
    return kept.finish(finish(finished))


def chosen_layers(risk: EmpiricalRisk, layers: bool | Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parameter names by layer: all that own a matrix, or those asked for."""
    groups = risk.layout.layers()
    if layers is False:
        return {}
    if layers is True:
        chosen = {name: group for name, group in groups.items() if any(len(risk.layout.shapes[p]) > 1 for p in group)}
    else:
        selected = set(risk.restrict(layers).layout.names)
        chosen = {name: kept for name, group in groups.items() if (kept := tuple(p for p in group if p in selected))}
    return {name or "(root)": group for name, group in chosen.items()}


def repeatable_gradient(risk: EmpiricalRisk) -> float:
    """Seconds for one gradient, after checking that two of them agree."""
    first = risk.gradient()
    start = time.perf_counter()
    second = risk.gradient()
    norm = float(torch.linalg.vector_norm(first))  # waits for the device
    seconds = time.perf_counter() - start
    change = float(torch.linalg.vector_norm(first - second))
    if change > torch.finfo(risk.dtype).eps ** 0.5 * norm:
        raise InputError(
            f"two gradients at the same parameters differ by {change / norm:.1%}: the data or the model draw at random "
            "and the Hessian would change with every product; switch off augmentation and functional dropout, or load "
            "the batches into a list first"
        )
    return seconds
