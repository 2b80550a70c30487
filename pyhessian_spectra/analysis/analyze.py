"""analyze: the one recipe from a risk to a SpectralAnalysis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator
from pyhessian_spectra.curvature.operators import RiskOperator, free_bytes
from pyhessian_spectra.errors import InputError, Interrupted, OutOfMemoryError
from pyhessian_spectra.spectra import LinearOperator, MatrixOperator, Spectrum, TraceEstimate, eigh
from pyhessian_spectra.spectra.eigen import fresh_residuals
from pyhessian_spectra.spectra.krylov import krylov_pass
from pyhessian_spectra.spectra.lanczos import fresh_generator

# A layer's lower edge is a cluster at zero, on which most products would be spent for digits of nothing: residuals of
# this size, relative to the norm, are good enough there.
_LAYER_ATOL = 1e-4

Progress = Callable[[str, int, int], None]


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
        Largest ``n`` for the dense path, which takes ``n`` products and ``24 n^2`` bytes.
    layers : bool or sequence of str
        True for each module that owns a weight of two or more dimensions, with its bias; names or globs of modules for
        others; False for none.
    tol : float
        Residual asked of the edges, relative to each eigenvalue; what the products' rounding allows where that is more.
        In layers also 1e-4 of the norm, since their lower edge is a cluster at zero.
    max_steps : int
        Most Lanczos steps of one process. Eigenpairs that have not converged by then are given, marked.
    rtol, trace_probes : float, int
        Samples of the trace are added until the half-width of its 95 % interval is ``rtol`` of its value, or until
        there are ``trace_probes`` of them; the result says which.
    memory_budget : int, optional
        Bytes that kept linearisations may take; default half of what is free.
    matrix : callable
        ``risk -> operator``; ``GGNOperator``, ``ResidualOperator`` and ``EmpiricalFisherOperator`` analyse those.
    problem : mapping, optional
        JSON scalars to record beside what is known of the risk itself, such as the checkpoint's name.
    generator : torch.Generator, optional
        Source of all randomness; None draws a fresh random seed.
    progress : callable, optional
        Called as ``progress(what, products_done, products_expected)`` after each product.

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
    recipe = Recipe(num_eigenvalues, num_probes, num_steps, exact_limit, tol, max_steps, rtol, trace_probes)
    for_layers = replace(recipe, atol=_LAYER_ATOL)
    names = chosen_layers(risk, layers)
    seed = int(torch.randint(2**62, (), generator=generator or fresh_generator()))
    start = time.perf_counter()
    seconds_per_gradient = repeatable_gradient(risk)
    ledger = _Ledger(progress, recipe.forecast([risk.n, *(risk.restrict(p).n for p in names.values())]))
    notes: list[str] = []

    def finish(layers: Mapping[str, BlockAnalysis]) -> SpectralAnalysis:
        timing = {
            "seconds": time.perf_counter() - start,
            "products": ledger.products,
            "seconds_per_product": ledger.seconds / max(1, ledger.products),
            "seconds_per_gradient": seconds_per_gradient,
        }
        known = {
            "n": risk.n,
            "N": risk.num_examples,
            "mode": risk.mode,
            "dtype": str(risk.dtype).removeprefix("torch."),
        }
        known |= {"device": str(risk.device), "matrix": matrix.__name__.removesuffix("Operator"), "tolerance": tol}
        return SpectralAnalysis({**known, **(problem or {})}, full, layers, timing, tuple(notes))

    def block(what: str, part: EmpiricalRisk, index: int) -> BlockAnalysis:
        op = matrix(part, memory_budget=memory_budget)
        watched = _Watched(op, what, ledger)
        result = (for_layers if index else recipe).run(watched, seed + index)
        if result.unconverged:
            total = len(result.largest) + len(result.smallest)
            notes.append(
                f"{result.unconverged} of {total} eigenpairs of {what} did not reach the tolerance within {max_steps} "
                "Lanczos steps; raise max_steps, or ask for fewer."
            )
        if index == 0:
            notes.append(f"The linearisation at the parameters was {op.linearisation}.")
        ledger.close_block(what, index)
        return result

    if risk.n <= exact_limit:
        op = matrix(risk, memory_budget=memory_budget)
        dense, full = recipe.exact(_Watched(op, "the whole matrix", ledger))
        indices = {name: risk.layout.indices(parameters) for name, parameters in names.items()}
        return finish({name: recipe.exact(MatrixOperator(dense[i][:, i]))[1] for name, i in indices.items()})
    full = block("the whole network", risk, 0)
    finished: dict[str, BlockAnalysis] = {}
    try:
        for index, (name, parameters) in enumerate(names.items(), start=1):
            finished[name] = block(f"layer {name}", risk.restrict(parameters), index)
    except KeyboardInterrupt:
        notes.append(f"Interrupted: {len(finished)} of {len(names)} layers were finished.")
        raise Interrupted(f"{len(finished)} of {len(names)} layers were finished", finish(finished)) from None
    return finish(finished)


@dataclass(frozen=True)
class Recipe:
    """The settings of ``analyze``, and what is done with one operator under them."""

    k: int = 10
    probes: int = 2
    steps: int = 40
    exact_limit: int = 3000
    tol: float = 1e-4
    max_steps: int = 300
    rtol: float = 0.02
    trace_probes: int = 30
    atol: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"num_eigenvalues must be at least 1, got {self.k}")
        if self.probes < 2:
            raise InputError(f"num_probes must be at least 2, for error bars to exist; got {self.probes}")
        if self.steps < 1:
            raise InputError(f"num_steps must be at least 1, got {self.steps}")
        if not self.tol >= 0:
            raise InputError(f"tol must not be negative, got {self.tol}")

    def is_dense(self, size: int) -> bool:
        """Whether a layer is cheaper to build than to estimate, or every eigenvalue of it is asked for."""
        return size <= max(2 * self.k, min(self.exact_limit, self._products_of_a_pass()))

    def builds(self, size: int) -> bool:
        """Whether the whole matrix is built where it has this size."""
        return size <= self.exact_limit or self.is_dense(size)

    def forecast(self, sizes: Sequence[int]) -> list[int]:
        """Products expected for the whole matrix and for each layer, whose sizes these are."""
        whole, *layers = sizes
        if whole <= self.exact_limit:
            return [self._products_to_build(whole), *(0 for _ in layers)]
        return [self._products_to_build(n) if self.is_dense(n) else self._products_of_a_pass() for n in sizes]

    def memory(self, size: int, dtype: torch.dtype) -> int:
        """Bytes for the dense matrix, its copy and its eigenvectors, or for the Krylov basis and the edges."""
        if self.builds(size):
            return 24 * size**2
        return size * dtype.itemsize * (self._first_steps() + 6 * self.k)

    def _first_steps(self) -> int:
        # the tenth eigenvalue at both edges of a trained ResNet20 took 90 steps to a residual of 1e-4
        return min(max(self.steps, 9 * self.k), max(self.max_steps, self.steps))

    def _products_to_build(self, size: int) -> int:
        return size + 2 * min(self.k, size)

    def _products_of_a_pass(self) -> int:
        return self._first_steps() + self.probes * self.steps + 2 * self.k + self.trace_probes

    def run(self, op: LinearOperator, seed: int) -> BlockAnalysis:
        """One layer, or the whole where it is too large for the dense path."""
        if self.is_dense(op.shape[0]):
            return self.exact(op)[1]
        found = krylov_pass(
            op,
            k=self.k,
            num_probes=self.probes,
            num_steps=self.steps,
            tol=self.tol,
            atol=self.atol,
            max_steps=self.max_steps,
            rtol=self.rtol,
            trace_probes=self.trace_probes,
            generator=torch.Generator().manual_seed(seed),
        )
        return BlockAnalysis(
            op.shape[0], found.spectrum, found.largest, found.smallest, found.trace, found.frobenius, op.num_matvecs
        )

    def exact(self, op: LinearOperator) -> tuple[Tensor, BlockAnalysis]:
        """The matrix, float64 on the CPU, and its analysis; residuals by fresh products with the operator."""
        n = op.shape[0]
        needed, free = 24 * n * n, free_bytes(torch.device("cpu"))
        if needed > free:
            raise OutOfMemoryError(
                f"the dense path needs {needed / 2**30:.1f} GiB for n = {n} and {free / 2**30:.1f} GiB are free; lower "
                "exact_limit, and num_eigenvalues below n / 2, so that the matrix-free path is taken"
            )
        dense = op.to_dense().double().cpu()
        dense = (dense + dense.T) / 2
        pairs = eigh(MatrixOperator(dense))
        assert pairs.eigenvectors is not None  # eigh gives them
        k = min(self.k, n)
        edges = []
        for part in (slice(n - k, n), slice(0, k)):
            some = pairs.take(part)
            residuals = fresh_residuals(op, some.eigenvalues, pairs.eigenvectors[:, part])
            rounding = 100 * torch.finfo(op.dtype).eps * np.abs(pairs.eigenvalues).max()
            lower, upper = some.eigenvalues - residuals - rounding / 10, some.eigenvalues + residuals + rounding / 10
            edges.append(replace(some, residuals=residuals, converged=residuals <= rounding, lower=lower, upper=upper))
        spectrum = Spectrum.from_eigenvalues(pairs.eigenvalues)
        trace = TraceEstimate(float(dense.diagonal().sum()), 0.0, 0)
        frobenius = TraceEstimate(float(torch.linalg.matrix_norm(dense)), 0.0, 0)
        return dense, BlockAnalysis(n, spectrum, edges[0], edges[1], trace, frobenius, op.num_matvecs)


class _Ledger:
    """Products and time spent so far, and how many products are still to come."""

    def __init__(self, progress: Progress | None, forecasts: list[int]) -> None:
        self.progress, self.forecasts, self.closed = progress, forecasts, 0
        self.products, self.seconds = 0, 0.0

    def count(self, what: str, products: int, seconds: float) -> None:
        self.products, self.seconds = self.products + products, self.seconds + seconds
        self._tell(what)

    def close_block(self, what: str, index: int) -> None:
        """A block is finished: what it took replaces what was expected of it."""
        self.closed, self.forecasts[index] = self.products, 0
        self._tell(what)

    def _tell(self, what: str) -> None:
        if self.progress:
            self.progress(what, self.products, max(self.products, self.closed + sum(self.forecasts)))


class _Watched(LinearOperator):
    """An operator whose products are timed and reported as they are taken."""

    def __init__(self, op: LinearOperator, what: str, ledger: _Ledger) -> None:
        super().__init__(op.shape[0], dtype=op.dtype, device=op.device)
        self._op, self._what, self._ledger = op, what, ledger

    def _product(self, v: Tensor) -> Tensor:
        start = time.perf_counter()
        product = self._op @ v
        columns = 1 if v.dim() == 1 else v.shape[1]
        self._ledger.count(self._what, columns, time.perf_counter() - start)
        return product

    _matvec = _matmat = _product


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
