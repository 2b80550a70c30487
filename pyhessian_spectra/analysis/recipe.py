"""Recipe: what is done with one matrix, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.analysis.sampling import eigenvalue_errors, has_batches, section_traces, trace_error
from pyhessian_spectra.curvature import ParameterLayout
from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra import Eigenpairs, LinearOperator, Spectrum, TraceEstimate
from pyhessian_spectra.spectra.basis import free_bytes
from pyhessian_spectra.spectra.dense import PROBES, DenseMatrix, Folding, edges_bytes
from pyhessian_spectra.spectra.forms import Forms, FormsRecorder, residuals_of
from pyhessian_spectra.spectra.krylov import krylov_pass

# Products for the sampling error of the trace, where the trace itself is exact.
DATA_PROBES = 30


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
    # no number depends on it, so that an analysis may go on with another one: it is not part of what identifies it
    memory_budget: int | None = field(default=None, repr=False)

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
        """Bytes for the dense matrix and its eigenvalues; or for the edges and the vectors being worked on.

        On the dense path ``8 n^2`` are kept for the layers, the largest of which may need as much as the whole. On the
        other, the linearisation and the Krylov basis, see :meth:`basis`, come on top.
        """
        if self.builds(size):
            return 8 * size**2 + edges_bytes(size, self.k)
        return size * dtype.itemsize * (6 * self.k + 12)

    def basis(self, size: int, dtype: torch.dtype) -> tuple[int, int, int]:
        """Bytes of the Krylov basis: at least, as expected, and at most; none where the dense matrix is built."""
        if self.builds(size):
            return 0, 0, 0
        least = max(self.steps, 2 * self.k)
        most = max(self.max_steps, least, 3 * self.k + 10)
        fewest, expected, most = (min(size, m) for m in (least, max(least, self._first_steps()), most))
        return fewest * size * dtype.itemsize, expected * size * dtype.itemsize, most * size * dtype.itemsize

    def _first_steps(self) -> int:
        # the tenth eigenvalue at both edges of a trained ResNet20 took 90 steps to a residual of 1e-4
        return min(max(self.steps, 9 * self.k), max(self.max_steps, self.steps))

    def _products_to_build(self, size: int) -> int:
        return size + PROBES + 2 * min(self.k, size) + DATA_PROBES

    def _products_of_a_pass(self) -> int:
        return self._first_steps() + self.probes * self.steps + 2 * self.k + self.trace_probes

    def run(self, op: LinearOperator, layout: ParameterLayout, seed: int) -> BlockAnalysis:
        """One layer, or the whole where it is too large for the dense path."""
        if self.is_dense(op.shape[0]):
            return self.exact(op, layout, seed)[1]
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
            sections=_sections(layout),
            memory_budget=self.memory_budget,
            generator=torch.Generator().manual_seed(seed),
        )
        first_stage = found.trace.num_samples or None
        traces = section_traces(found.forms, _sections_by_layer(layout), first_stage=first_stage)
        block = BlockAnalysis(
            op.shape[0],
            found.spectrum,
            found.largest,
            found.smallest,
            found.trace,
            found.frobenius,
            op.num_matvecs,
            traces,
        )
        return with_data_errors(block, found.forms)

    def exact(self, op: LinearOperator, layout: ParameterLayout, seed: int) -> tuple[DenseMatrix, BlockAnalysis]:
        """The matrix, float64 on the CPU, and its analysis; residuals by fresh products with the operator."""
        folding = Folding.of(op)
        needed, free = self.memory(folding.size, op.dtype), free_bytes(torch.device("cpu"))
        if needed > free:
            raise OutOfMemoryError(
                f"the dense path needs {needed / 2**30:.1f} GiB for n = {op.shape[0]} and {free / 2**30:.1f} GiB are "
                "free; lower exact_limit, and num_eigenvalues below n / 2, so that the matrix-free path is taken"
            )
        dense = DenseMatrix.of(op, folding)
        recorder = FormsRecorder(op, _sections(layout))
        block, vectors = self._diagonalised(dense, recorder, op.dtype)
        forms = _with_probes(recorder, vectors, seed)
        groups = _sections_by_layer(layout)
        exact = [float(part.sum()) for part in dense.diagonal().split(_sections(layout))]
        sampled = section_traces(forms, groups)
        traces = {
            name: TraceEstimate(
                sum(exact[i] for i in group), 0.0, 0, data_stderr=sampled[name].data_stderr if sampled else None
            )
            for name, group in groups.items()
        }
        return dense, with_data_errors(replace(block, layer_traces=traces, products=op.num_matvecs), forms)

    def diagonalise(self, dense: DenseMatrix, dtype: torch.dtype) -> BlockAnalysis:
        """All eigenvalues and both edges of a block of a matrix that was built from products in ``dtype``."""
        return self._diagonalised(dense, FormsRecorder(dense), dtype)[0]

    def _diagonalised(
        self, dense: DenseMatrix, recorder: FormsRecorder, dtype: torch.dtype
    ) -> tuple[BlockAnalysis, Tensor]:
        """The analysis, with residuals by recorded products with the vectors at the edges, and these, ascending."""
        op, n = recorder.op, dense.shape[0]
        k = min(self.k, n)
        eps = torch.finfo(op.dtype).eps
        eigenvalues, lowest, highest = dense.edges(k, tol=max(1e-14, eps))
        both = np.hstack([lowest, highest[:, max(0, 2 * k - n) :]])  # which overlap in a small matrix
        values = np.concatenate([eigenvalues[:k], eigenvalues[max(k, n - k) :]])
        vectors = torch.from_numpy(both).to(op.device, op.dtype)
        rounding = 100 * eps * np.abs(eigenvalues).max()
        residuals = residuals_of(values, vectors, recorder.products(vectors))
        lower, upper = values - residuals - rounding / 10, values + residuals + rounding / 10
        pairs = Eigenpairs(values, residuals, residuals <= rounding, both, op.num_matvecs, lower, upper)
        block = BlockAnalysis(
            n,
            replace(Spectrum.from_eigenvalues(eigenvalues), metadata={"dtype": str(dtype).removeprefix("torch.")}),
            pairs.take(slice(len(values) - k, None)),
            pairs.take(slice(0, k)),
            TraceEstimate(dense.trace(), 0.0, 0),
            TraceEstimate(dense.frobenius(), 0.0, 0),
            op.num_matvecs,
        )
        return block, vectors


def with_data_errors(block: BlockAnalysis, forms: Forms) -> BlockAnalysis:
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
            recorder.draw(vectors, generator)
    return recorder.forms(all_of_them)


def _sections(layout: ParameterLayout) -> list[int]:
    return [shape.numel() for shape in layout.shapes.values()]


def _sections_by_layer(layout: ParameterLayout) -> dict[str, list[int]]:
    """Positions, among the parameters, of those of each layer."""
    position = {name: index for index, name in enumerate(layout.names)}
    return {layer or "(root)": [position[name] for name in names] for layer, names in layout.layers().items()}
