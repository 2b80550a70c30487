"""analyze: the one recipe from a risk to a SpectralAnalysis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator
from pyhessian_spectra.curvature.operators import RiskOperator, free_bytes
from pyhessian_spectra.errors import ConvergenceError, InputError, Interrupted, OutOfMemoryError
from pyhessian_spectra.spectra import (
    Eigenpairs,
    LinearOperator,
    MatrixOperator,
    Spectrum,
    TraceEstimate,
    eigh,
    eigsh,
    slq,
)
from pyhessian_spectra.spectra.eigen import fresh_residuals
from pyhessian_spectra.spectra.lanczos import fresh_generator
from pyhessian_spectra.spectra.trace import mean_of, square_root

Progress = Callable[[str, int, int], None]


def analyze(
    risk: EmpiricalRisk,
    *,
    num_eigenvalues: int = 10,
    num_probes: int = 5,
    num_steps: int = 60,
    exact_limit: int = 3000,
    layers: bool | Sequence[str] = True,
    tol: float = 0.0,
    max_products: int | None = None,
    memory_budget: int | None = None,
    matrix: Callable[..., RiskOperator] = HessianOperator,
    problem: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> SpectralAnalysis:
    """Analyse the Hessian of a risk: edges, density, trace and Frobenius norm, of the whole and of each layer.

    Up to ``exact_limit`` parameters the matrix is built and diagonalised in float64, and the layers are its diagonal
    blocks. Beyond it ``eigsh`` finds both edges; stochastic Lanczos quadrature on their complement gives the density,
    and its first two moments the trace and the Frobenius norm, at no further product.

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
    tol, max_products : see ``eigsh``
    memory_budget : int, optional
        Bytes that kept linearisations may take; default half of what is free.
    matrix : callable
        ``risk -> operator``; ``GGNOperator`` and ``EmpiricalFisherOperator`` analyse those instead.
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
    recipe = Recipe(num_eigenvalues, num_probes, num_steps, exact_limit, tol, max_products)
    names = chosen_layers(risk, layers)
    seed = int(torch.randint(2**62, (), generator=generator or fresh_generator()))
    start = time.perf_counter()
    seconds_per_gradient = repeatable_gradient(risk)
    ledger = _Ledger(
        progress, [recipe.forecast(size) for size in (risk.n, *(risk.restrict(p).n for p in names.values()))]
    )
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
        known |= {"device": str(risk.device), "matrix": matrix.__name__.removesuffix("Operator")}
        return SpectralAnalysis({**known, **(problem or {})}, full, layers, timing, tuple(notes))

    def block(what: str, part: EmpiricalRisk, index: int) -> BlockAnalysis:
        op = matrix(part, memory_budget=memory_budget)
        watched = _Watched(op, what, ledger)
        result = recipe.run(watched, seed + index, what, notes)
        if index == 0:
            notes.append(f"The linearisation at the parameters was {op.linearisation}.")
        ledger.close_block(index)
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
    probes: int = 5
    steps: int = 60
    exact_limit: int = 3000
    tol: float = 0.0
    max_products: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"num_eigenvalues must be at least 1, got {self.k}")
        if self.probes < 2:
            raise InputError(f"num_probes must be at least 2, for error bars to exist; got {self.probes}")

    def memory(self, size: int, dtype: torch.dtype) -> int:
        """Bytes for the dense matrix and its eigenvectors, or for ARPACK's and the quadrature's bases."""
        if size <= self.exact_limit:
            return 24 * size**2
        return size * (8 * (4 * self.k + 1 + 2 * self.k) + dtype.itemsize * (self.steps + 2 * self.k))

    def is_dense(self, size: int) -> bool:
        """Whether a block is cheaper to build than to estimate."""
        return size <= min(self.exact_limit, self._estimated_products())

    def forecast(self, size: int) -> int:
        """Products expected for a block of this size."""
        return size + 2 * self.k if self.is_dense(size) else self._estimated_products()

    def _estimated_products(self) -> int:
        # ARPACK with 2 k pairs was seen to take about 10 products a pair on trained networks
        return 10 * 2 * self.k + self.probes * self.steps

    def run(self, op: LinearOperator, seed: int, what: str, notes: list[str]) -> BlockAnalysis:
        if self.is_dense(op.shape[0]):
            return self.exact(op)[1]
        return self.estimate(op, seed, what, notes)

    def exact(self, op: LinearOperator) -> tuple[Tensor, BlockAnalysis]:
        """The matrix, float64 on the CPU, and its analysis; residuals by fresh products with the operator."""
        n = op.shape[0]
        needed, free = 24 * n * n, free_bytes(torch.device("cpu"))
        if needed > free:
            raise OutOfMemoryError(
                f"the dense path needs {needed / 2**30:.1f} GiB for n = {n} and {free / 2**30:.1f} GiB are free; lower "
                "exact_limit so that the matrix-free path is taken"
            )
        dense = op.to_dense().double().cpu()
        dense = (dense + dense.T) / 2
        pairs = eigh(MatrixOperator(dense))
        k = min(self.k, n)
        edges = []
        for part in (slice(n - k, n), slice(0, k)):
            some = pairs.take(part)
            assert some.eigenvectors is not None  # eigh gives them
            residuals = fresh_residuals(op, some.eigenvalues, some.eigenvectors)
            bound = 100 * torch.finfo(op.dtype).eps * np.abs(pairs.eigenvalues).max()
            edges.append(Eigenpairs(some.eigenvalues, residuals, residuals <= bound, some.eigenvectors))
        spectrum = Spectrum.from_eigenvalues(pairs.eigenvalues)
        trace = TraceEstimate(float(dense.diagonal().sum()), 0.0, 0)
        frobenius = TraceEstimate(float(torch.linalg.matrix_norm(dense)), 0.0, 0)
        return dense, BlockAnalysis(n, spectrum, edges[0], edges[1], trace, frobenius, op.num_matvecs)

    def estimate(self, op: LinearOperator, seed: int, what: str, notes: list[str]) -> BlockAnalysis:
        """Both edges by ``eigsh``, the rest by quadrature on their complement."""
        n = op.shape[0]
        generator = torch.Generator().manual_seed(seed)
        k = min(2 * self.k, n - 1)
        try:
            pairs = eigsh(op, k, which="BE", tol=self.tol, max_products=self.max_products, generator=generator)
        except ConvergenceError as error:
            pairs = error.partial
            notes.append(f"Not converged for {what}: {error}.")
        spectrum = slq(op, num_probes=self.probes, num_steps=self.steps, deflate=pairs, generator=generator)
        samples = [n * (spectrum.weights * spectrum.nodes**power).sum(axis=1) for power in (1, 2)]
        spent = spectrum.metadata["num_matvecs"]
        trace = mean_of(samples[0], spent, "deflated quadrature")
        frobenius = square_root(mean_of(samples[1], spent, "deflated quadrature"))
        high = pairs.eigenvalues > np.mean(spectrum.support)
        if len(pairs) == k:  # all were found: the lower half of them is the lower edge
            high = np.arange(k) >= k // 2
        return BlockAnalysis(n, spectrum, pairs.take(high), pairs.take(~high), trace, frobenius, op.num_matvecs)


class _Ledger:
    """Products and time spent so far, and how many products are still to come."""

    def __init__(self, progress: Progress | None, forecasts: list[int]) -> None:
        self.progress, self.forecasts, self.closed = progress, forecasts, 0
        self.products, self.seconds = 0, 0.0

    def count(self, what: str, products: int, seconds: float) -> None:
        self.products, self.seconds = self.products + products, self.seconds + seconds
        if self.progress:
            self.progress(what, self.products, max(self.products, self.closed + sum(self.forecasts)))

    def close_block(self, index: int) -> None:
        """A block is finished: what it took replaces what was expected of it."""
        self.closed, self.forecasts[index] = self.products, 0


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
