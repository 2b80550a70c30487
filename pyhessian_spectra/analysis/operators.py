"""analyze_operator: edges, density, traces and their certificates of any operator."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.analysis.sampling import (
    eigenvalue_influences,
    has_batches,
    norm_error,
    section_traces,
    with_trace_influences,
)
from pyhessian_spectra.curvature import Partition
from pyhessian_spectra.errors import InputError, NonFiniteError, OutOfMemoryError
from pyhessian_spectra.spectra import Eigenpairs, MatrixOperator, Meter, Settings, Spectrum, TraceEstimate
from pyhessian_spectra.spectra.basis import free_bytes, readable
from pyhessian_spectra.spectra.bounds import residuals_of
from pyhessian_spectra.spectra.cost import DATA_PROBES, bytes_needed, is_built
from pyhessian_spectra.spectra.dense import build, eigenvalues_and_edges
from pyhessian_spectra.spectra.forms import Forms, FormsRecorder
from pyhessian_spectra.spectra.krylov import krylov_pass
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.space import fresh_generator

# Relative to the sum of magnitudes, a float64 sum of up to 2^32 terms in pairs is off by less.
_SUMMED = 32 * torch.finfo(torch.float64).eps


def analyze_operator(
    op: LinearOperator,
    settings: Settings | None = None,
    *,
    partition: Partition | None = None,
    generator: torch.Generator | None = None,
    **fields: Any,
) -> BlockAnalysis:
    """Edges, density, trace and Frobenius norm of any symmetric operator, each with what is certified of it.

    Up to ``settings.exact_limit`` the matrix is built and diagonalised in float64. Beyond it one Krylov pass gives
    everything: a Lanczos process runs until both edges have converged; stochastic Lanczos quadrature on their
    complement gives the density, its first two moments the trace and the Frobenius norm, and its Ritz values a bound on
    what may have been missed.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    settings : Settings, optional
    partition : Partition, optional
        Groups of coordinates whose traces are wanted too; they take no further product.
    generator : torch.Generator, optional
        Source of all randomness; None draws a fresh random seed.
    **fields
        Fields of ``settings`` to replace, such as ``num_eigenvalues=5``.

    Raises
    ------
    InputError
        A setting is out of its range, or two products show that the operator is not symmetric.

    Returns
    -------
    BlockAnalysis
        Errors of the data are known where the operator is a curvature matrix of a risk of several batches.

    Examples
    --------
    >>> from pyhessian_spectra import MatrixOperator
    >>> found = analyze_operator(MatrixOperator(torch.diag(torch.arange(5.0))), num_eigenvalues=2)
    >>> found.largest.eigenvalues, found.trace.value
    (array([3., 4.]), 10.0)
    """
    require_operator(op)
    _require_symmetric(op)
    settings = (settings or Settings()).replace(**fields)
    seed = int(torch.randint(2**62, (), generator=generator or fresh_generator()))
    if is_built(settings, op.n):
        return built(Meter.of(op), settings, partition, seed)[1]
    return estimated(Meter.of(op), settings, partition, seed)


def _require_symmetric(op: LinearOperator) -> None:
    """Raise InputError if two products show that the operator is far from symmetric, as no certificate would."""
    generator, space = torch.Generator().manual_seed(0), op.space
    u, v = space.randn(generator), space.randn(generator)
    au, av = op @ u, op @ v
    if not math.isfinite(space.norm(au)):
        raise NonFiniteError("a product with the operator is NaN or infinite")
    apart, size = abs(space.inner(u, av) - space.inner(v, au)), space.norm(au) * space.norm(v)
    if not apart <= space.eps**0.5 * size:
        raise InputError(
            f"the operator is not symmetric: u.Av and v.Au differ by {apart / (size or 1.0):.1e} of their size; take "
            "(A + A^T) / 2, or see pyhessian_spectra.testing.check_operator"
        )


def estimated(op: Meter, settings: Settings, parts: Partition | None, seed: int, *, atol: float = 0.0) -> BlockAnalysis:
    """Analyse an operator by one Krylov pass; see :func:`krylov_pass` for ``atol``."""
    sections, groups = ([op.space.local_n], {}) if parts is None else parts.sections()
    before, generator = op.num_products, torch.Generator().manual_seed(seed)
    found = krylov_pass(op, settings, atol=atol, sections=sections, generator=generator)
    edges, totals, spent = (found.largest, found.smallest), (found.trace, found.frobenius), op.num_products - before
    worst = op.n**0.5 * found.frobenius.rounding  # |tr E_gg| is at most sqrt(n_g) ||E||_F
    traces = section_traces(found.forms, groups, first_stage=found.trace.num_samples or None, rounding=worst)
    block = BlockAnalysis(op.n, found.spectrum, *edges, *totals, spent, traces)
    return _with_data_errors(block, found.forms)


def built(op: Meter, settings: Settings, parts: Partition | None, seed: int) -> tuple[MatrixOperator, BlockAnalysis]:
    """Build the matrix, in float64 on the CPU, and analyse it; residuals are from fresh products with the operator."""
    needed, free = bytes_needed(settings, op.n, op.dtype), free_bytes(torch.device("cpu"))
    if needed > free:
        told = f"the dense path needs {readable(needed)} for n = {op.n} and {readable(free)} are free"
        remedy = "lower exact_limit, and num_eigenvalues below n / 2, so that the matrix-free path is taken"
        raise OutOfMemoryError(f"{told}; {remedy}")
    before = op.num_products
    sections, groups = ([op.space.local_n], {}) if parts is None else parts.sections()
    matrix, used, off = build(op)
    recorder = FormsRecorder(used, sections)
    block, vectors = diagonalised(matrix, settings, off.norm, recorder)
    deflated = np.ones(vectors.shape[1], dtype=bool)
    if vectors.shape[1] < op.n and has_batches(recorder.forms(deflated)):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(DATA_PROBES):
            u = used.space.sphere(generator, against=vectors)
            recorder.probe(u, (matrix @ u.to(matrix.device, matrix.dtype)).to(u))
    forms = recorder.forms(deflated)
    diagonal = matrix.matrix.diagonal().split(sections)
    traces = {name: _exact_trace(torch.cat([diagonal[i] for i in group]), off.norm) for name, group in groups.items()}
    traces = {name: with_trace_influences(total, forms, groups[name]) for name, total in traces.items()}
    block = replace(block, group_traces=traces, num_products=op.num_products - before)
    return matrix, _with_data_errors(block, forms)


def diagonalised(
    matrix: MatrixOperator, settings: Settings, off: float, recorder: FormsRecorder | None = None
) -> tuple[BlockAnalysis, Tensor]:
    """Analyse a matrix, given a bound on the norm of its error; also return the eigenvectors (n, p) at its edges."""
    recorder = recorder or FormsRecorder(matrix)  # takes the products that the residuals are from
    op, n, entries = recorder.op, matrix.n, matrix.matrix
    k = min(settings.num_eigenvalues, n)
    eigenvalues, lowest, highest = eigenvalues_and_edges(entries, k)
    both = np.hstack([lowest, highest[:, max(0, 2 * k - n) :]])  # which overlap in a small matrix
    values = np.concatenate([eigenvalues[:k], eigenvalues[max(k, n - k) :]])
    vectors = torch.from_numpy(both).to(op.device, op.dtype)
    rounding = 100 * op.space.eps * np.abs(eigenvalues).max()
    residuals = residuals_of(op, values, vectors, recorder.products(vectors))
    reach = residuals + rounding / 10 + off
    bounds = {"lower": values - reach, "upper": values + reach, "rounding": off}
    pairs = Eigenpairs(values, residuals, residuals <= rounding, both, len(values), **bounds)
    edges = (pairs.take(slice(len(values) - k, None)), pairs.take(slice(0, k)))
    norm = float(torch.linalg.matrix_norm(entries))
    totals = _exact_trace(entries.diagonal(), off), TraceEstimate(norm, 0.0, 0, rounding=off + _SUMMED * norm)
    dtype = str(op.dtype).removeprefix("torch.")
    spectrum = Spectrum.from_eigenvalues(eigenvalues, dtype=dtype, rounding=off + rounding / 10)
    return BlockAnalysis(n, spectrum, *edges, *totals, 0), vectors


def _exact_trace(diagonal: Tensor, off: float) -> TraceEstimate:
    """The sum of a diagonal (p,), of a matrix whose error has at most the norm ``off``."""
    rounding = len(diagonal) ** 0.5 * off + _SUMMED * float(diagonal.abs().sum())
    return TraceEstimate(float(diagonal.sum()), 0.0, 0, rounding=rounding)


def _with_data_errors(block: BlockAnalysis, forms: Forms) -> BlockAnalysis:
    """Add the sampling errors that the products with eigenvectors and probes tell."""
    moved = eigenvalue_influences(forms)
    if moved is None:
        return block

    def known(pairs: Eigenpairs, own: slice) -> Eigenpairs:
        return replace(pairs, data_stderr=np.linalg.norm(moved[:, own], axis=0), data_influences=moved[:, own])

    largest = known(block.largest, slice(moved.shape[1] - len(block.largest), None))
    smallest = known(block.smallest, slice(0, len(block.smallest)))
    frobenius = replace(block.frobenius, data_stderr=norm_error(forms, block.frobenius.value))
    trace = with_trace_influences(block.trace, forms)
    return replace(block, largest=largest, smallest=smallest, trace=trace, frobenius=frobenius)
