"""analyze_operator: edges, density, traces and their certificates of any operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.analysis.sampling import eigenvalue_errors, has_batches, section_traces, trace_error
from pyhessian_spectra.curvature import Partition
from pyhessian_spectra.errors import OutOfMemoryError
from pyhessian_spectra.spectra import (
    Eigenpairs,
    LinearOperator,
    MatrixOperator,
    Meter,
    Settings,
    Spectrum,
    TraceEstimate,
)
from pyhessian_spectra.spectra.basis import free_bytes, readable
from pyhessian_spectra.spectra.bounds import residuals_of
from pyhessian_spectra.spectra.cost import DATA_PROBES, bytes_needed, is_built
from pyhessian_spectra.spectra.dense import build, eigenvalues_and_edges
from pyhessian_spectra.spectra.forms import Forms, FormsRecorder
from pyhessian_spectra.spectra.krylov import krylov_pass
from pyhessian_spectra.spectra.operator import require_operator
from pyhessian_spectra.spectra.space import fresh_generator


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
    settings = (settings or Settings()).replace(**fields)
    seed = int(torch.randint(2**62, (), generator=generator or fresh_generator()))
    if is_built(settings, op.n):
        return built(Meter.of(op), settings, partition, seed)[1]
    return estimated(Meter.of(op), settings, partition, seed)


def estimated(
    op: Meter, settings: Settings, partition: Partition | None, seed: int, *, atol: float = 0.0
) -> BlockAnalysis:
    """By one Krylov pass; ``atol`` as there."""
    sections, groups = _sections(op, partition)
    before = op.num_products
    generator = torch.Generator().manual_seed(seed)
    found = krylov_pass(op, settings, atol=atol, sections=sections, generator=generator)
    block = BlockAnalysis(
        op.n,
        found.spectrum,
        found.largest,
        found.smallest,
        found.trace,
        found.frobenius,
        op.num_products - before,
        section_traces(found.forms, groups, first_stage=found.trace.num_samples or None),
    )
    return _with_data_errors(block, found.forms)


def built(
    op: Meter, settings: Settings, partition: Partition | None, seed: int
) -> tuple[MatrixOperator, BlockAnalysis]:
    """The matrix, float64 on the CPU, and its analysis; residuals by fresh products with the operator."""
    needed, free = bytes_needed(settings, op.n, op.dtype), free_bytes(torch.device("cpu"))
    if needed > free:
        raise OutOfMemoryError(
            f"the dense path needs {readable(needed)} for n = {op.n} and {readable(free)} are free; lower exact_limit, "
            "and num_eigenvalues below n / 2, so that the matrix-free path is taken"
        )
    before, (sections, groups) = op.num_products, _sections(op, partition)
    matrix, recorder = build(op), FormsRecorder(op, sections)
    block, vectors = _diagonalised(matrix, recorder, settings, op.dtype)
    forms = _with_probes(recorder, vectors, seed)
    sampled = section_traces(forms, groups)
    exact = [float(part.sum()) for part in matrix.to_dense().diagonal().split(sections)]
    traces = {
        name: TraceEstimate(
            sum(exact[i] for i in group), 0.0, 0, data_stderr=sampled[name].data_stderr if sampled else None
        )
        for name, group in groups.items()
    }
    products = op.num_products - before
    return matrix, _with_data_errors(replace(block, group_traces=traces, num_products=products), forms)


def diagonalise(matrix: MatrixOperator, settings: Settings, dtype: torch.dtype) -> BlockAnalysis:
    """The analysis of a block, in float64, of a matrix that was built from products in ``dtype``."""
    return _diagonalised(matrix, FormsRecorder(matrix), settings, dtype)[0]


def _diagonalised(
    matrix: MatrixOperator, recorder: FormsRecorder, settings: Settings, dtype: torch.dtype
) -> tuple[BlockAnalysis, Tensor]:
    """The analysis, with residuals by recorded products with the vectors at the edges, and these, ascending."""
    op, n = recorder.op, matrix.n
    k, entries = min(settings.num_eigenvalues, n), matrix.to_dense().numpy()
    eigenvalues, lowest, highest = eigenvalues_and_edges(entries, k)
    both = np.hstack([lowest, highest[:, max(0, 2 * k - n) :]])  # which overlap in a small matrix
    values = np.concatenate([eigenvalues[:k], eigenvalues[max(k, n - k) :]])
    vectors = torch.from_numpy(both).to(op.device, op.dtype)
    rounding = 100 * op.space.eps * np.abs(eigenvalues).max()
    residuals = residuals_of(op, values, vectors, recorder.products(vectors))
    lower, upper = values - residuals - rounding / 10, values + residuals + rounding / 10
    pairs = Eigenpairs(values, residuals, residuals <= rounding, both, len(values), lower, upper)
    block = BlockAnalysis(
        n,
        Spectrum.from_eigenvalues(eigenvalues, dtype=str(dtype).removeprefix("torch.")),
        pairs.take(slice(len(values) - k, None)),
        pairs.take(slice(0, k)),
        TraceEstimate(float(np.trace(entries)), 0.0, 0),
        TraceEstimate(float(np.linalg.norm(entries)), 0.0, 0),
        0,
    )
    return block, vectors


def _with_data_errors(block: BlockAnalysis, forms: Forms) -> BlockAnalysis:
    """A block with what its eigenvectors and probes say of the error of the data."""
    errors = eigenvalue_errors(forms)
    if errors is None:
        return block
    return replace(
        block,
        largest=replace(block.largest, data_stderr=errors[len(errors) - len(block.largest) :]),
        smallest=replace(block.smallest, data_stderr=errors[: len(block.smallest)]),
        trace=replace(block.trace, data_stderr=trace_error(forms)),
    )


def _with_probes(recorder: FormsRecorder, vectors: Tensor, seed: int) -> Forms:
    """The forms of orthonormal vectors, and of probes in their complement where there are batches to be told apart."""
    all_of_them = np.ones(vectors.shape[1], dtype=bool)
    if has_batches(recorder.forms(all_of_them)):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(DATA_PROBES if vectors.shape[1] < len(vectors) else 0):
            recorder.probe(recorder.op.space.sphere(generator, against=vectors))
    return recorder.forms(all_of_them)


def _sections(op: LinearOperator, partition: Partition | None) -> tuple[Sequence[int], Mapping[str, Sequence[int]]]:
    return ([op.space.local_n], {}) if partition is None else partition.sections()
