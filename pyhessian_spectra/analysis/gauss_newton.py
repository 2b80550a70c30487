"""The Gauss-Newton part of an analysis: exact spectra from the Gram matrix, and where they are the Hessian's own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.analysis.carriers import carriers
from pyhessian_spectra.analysis.classes import class_structure
from pyhessian_spectra.analysis.data_curve import data_curve
from pyhessian_spectra.analysis.result import NUM_THUMBNAILS, BlockAnalysis, GaussNewton
from pyhessian_spectra.curvature import (
    EmpiricalRisk,
    GGNGram,
    GGNOperator,
    Partition,
    ResidualOperator,
    RiskOperator,
    ggn_gram,
)
from pyhessian_spectra.curvature.partition import Group
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra import Eigenpairs, LinearOperator, Meter, Settings, Spectrum, TraceEstimate, lanczos
from pyhessian_spectra.spectra.bounds import unseen_bounds
from pyhessian_spectra.spectra.gram import GramMatrix
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.rounding import Rounding

# Lanczos steps for the extreme eigenvalues of H - G, which are shifts of others: with more, the ends hardly move.
_STEPS = 24

# Pixels along an image's side at least.
_SMALLEST = 4

# Ranks of the curve over the number of examples, and rows up to which class structure is computed.
_RANKS, _CLASSES = 5, 3_000

# A block of H - G is zero to rounding if, relative to the norm of G's, it is bounded by so many units of rounding. The
# bound is so many times the longest of so many products with random vectors; a block along a single vector exceeds it
# in one case of 2,000.
_ZERO, _MORE, _VECTORS = 100, 10.0, 3


@dataclass(frozen=True)
class Part:
    """What a Gram matrix says: of ``G``, of the layers that are its own, and of the trace if that is."""

    found: GaussNewton
    layers: Mapping[str, BlockAnalysis]
    trace: TraceEstimate | None
    gram: GGNGram


def gauss_newton_part(
    op: RiskOperator, settings: Settings, groups: Sequence[Group], meter: Callable[[LinearOperator], Meter], seed: int
) -> Part:
    """Take the Gram matrix, and products with ``H - G`` if ``op`` is the Hessian.

    Each diagonal block of ``H - G`` is multiplied with a normal random vector. Where the outputs are piecewise linear
    in a layer, that is exactly zero (Botev, Ritter and Barber 2017; the block's curvature is then that of the loss
    alone), as it is of no other block. What is merely small is seen with more vectors, and bounded from them.
    """
    risk, modules = op.risk, Partition.by_module(op.risk.layout)
    chosen = Partition(risk.layout, {g.label: g.indices for g in groups}) if groups else Partition.by_layer(risk.layout)
    gram = ggn_gram(risk, partition=chosen, point=op.point, memory_budget=settings.memory_budget)
    block = functools.partial(block_of, settings=settings, examples=gram.examples, weights=gram.weights)
    whole = block(gram, traces={label: block(part).trace for label, part in gram.groups.items()})
    found = _with_examples(GaussNewton(whole, len(gram.matrix)), risk, gram, seed)
    if isinstance(op, GGNOperator):
        blocks = {g.label: block(gram.groups[g.label]) for g in groups}
        k = len(whole.largest)
        if k <= gram.rank():
            pairs = replace(
                gram.eigenpairs(k),
                data_stderr=whole.largest.data_stderr,
                data_influences=whole.largest.data_influences,
            )
            found = replace(found, block=replace(whole, largest=pairs, num_products=k))
        return Part(replace(found, own=tuple(blocks)), blocks, None, gram)
    residual, generator = meter(ResidualOperator(risk, point=op.point)), torch.Generator().manual_seed(seed)
    least = _ZERO * op.space.eps

    def apart(group: Group, norm: float) -> tuple[float, bool]:
        """The norm of the group's block of ``H - G``, and whether it is zero to rounding beside ``norm``."""
        seen: list[float] = []
        for _ in range(_VECTORS):
            v = group.embed(group.take(op.space.randn(generator)), op.n)
            seen.append(float(group.take(residual @ v).double().norm()))
            if not seen[0] or _MORE * max(seen) > least * norm:
                return seen[0], not seen[0]
        return _MORE * max(seen), True

    by_module = {module.label: apart(module, whole.frobenius.value) for module in modules}
    by_group = {}
    for group in chosen:
        same = modules.groups.get(group.label)
        known = same is not None and torch.equal(same.indices, group.indices) and not by_module[group.label][0]
        by_group[group.label] = (0.0, True) if known else apart(group, gram.groups[group.label].frobenius().value)
    own = {g.label: block(gram.groups[g.label], apart=by_group[g.label][0]) for g in groups if by_group[g.label][1]}
    trace = None
    if modules.complete and all(is_zero for _, is_zero in by_module.values()):
        off = sum(len(modules[label]) ** 0.5 * size for label, (size, _) in by_module.items())
        trace = replace(whole.trace, rounding=whole.trace.rounding + off)
    sizes = {label: size for label, (size, _) in by_group.items()}
    return Part(replace(found, apart=sizes, own=tuple(own), residual=_range(residual, generator)), own, trace, gram)


def _with_examples(found: GaussNewton, risk: EmpiricalRisk, gram: GGNGram, seed: int) -> GaussNewton:
    """Add what the Gram matrix says of examples and classes."""
    who = carriers(risk, gram) if gram.rank() else None
    curve = structure = None
    with contextlib.suppress(InputError):  # of a sum, or fewer than four examples
        generator = torch.Generator().manual_seed(seed)
        curve = data_curve(gram, generator=generator, k=min(_RANKS, max(1, gram.rank())))
    if found.rows <= _CLASSES:
        with contextlib.suppress(InputError):  # of a loss that is not softmax cross-entropy
            structure = class_structure(risk, gram)
    pictures = None if who is None else _thumbnails(risk, who.examples[:NUM_THUMBNAILS])
    return replace(found, curve=curve, carriers=who, classes=structure, thumbnails=pictures)


def _thumbnails(risk: EmpiricalRisk, examples: Sequence[int]) -> NDArray[np.uint8] | None:
    """The inputs (p, C, H, W) of some examples, if they are images; each from 0 to 255."""
    found: dict[int, Tensor] = {}
    first = 0
    for _, batch in risk.sample.read():
        x = batch.inputs
        if not (isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= _SMALLEST):
            return None
        found |= {i: x[i - first] for i in examples if first <= i < first + len(x)}
        first += batch.num_examples
    if len({x.shape for x in found.values()}) != 1:
        return None
    pictures = torch.stack([found[i] for i in examples]).detach().double().cpu().numpy()
    pictures -= pictures.min(axis=(1, 2, 3), keepdims=True)
    return np.round(255 * pictures / np.maximum(pictures.max(axis=(1, 2, 3), keepdims=True), 1e-300)).astype(np.uint8)


def _range(residual: Meter, generator: torch.Generator) -> tuple[float, float]:
    """An interval that holds all eigenvalues of ``H - G``, from one Lanczos process."""
    start = residual.space.randn(generator)
    if not float((residual @ start).norm()):
        return 0.0, 0.0
    process, rounding = lanczos(residual, start, _STEPS), Rounding(residual)
    rounding.add_process(process)
    return unseen_bounds(process, residual.n, rounding.bound())


def block_of(
    gram: GramMatrix,
    *,
    settings: Settings,
    examples: np.ndarray,
    weights: Floats | None,
    apart: float = 0.0,
    traces: Mapping[str, TraceEstimate] | None = None,
) -> BlockAnalysis:
    """The analysis of the matrix whose factor a Gram matrix is of, or of one that differs by ``apart`` in norm.

    Errors of the data are to first order in the examples' weights (Efron 1982: the infinitesimal jackknife).
    """
    k, off = min(settings.num_eigenvalues, gram.n), gram.rounding + apart
    num_examples = int(examples.max(initial=-1)) + 1 if weights is None else len(weights)
    values, vectors = gram.top(min(k, len(gram.eigenvalues())))
    nodes, trace, norm = gram.spectrum().nodes[0], gram.trace(), gram.frobenius()

    def moved(parts: Floats) -> Floats | None:
        """Influences (N, p) of the examples on sums over rows of ``parts`` (m, p)."""
        each = np.zeros((num_examples, parts.shape[1]))
        np.add.at(each, examples, parts)
        if num_examples < 2:
            return None
        shares = np.full(num_examples, 1 / num_examples) if weights is None else weights
        return (num_examples / (num_examples - 1)) ** 0.5 * (each - shares[:, None] * each.sum(axis=0))

    def total(estimate: TraceEstimate, parts: Floats, rounding: float) -> TraceEstimate:
        of_each = moved(parts[:, None])
        if of_each is None:
            return replace(estimate, rounding=rounding)
        error = float(np.linalg.norm(of_each))
        return replace(estimate, rounding=rounding, data_stderr=error, data_influences=of_each[:, 0])

    of_values = moved(vectors**2 * values)
    padded = None if of_values is None else np.hstack([np.zeros((num_examples, k - len(values))), of_values])
    squares = np.einsum("ij,ij->i", gram.matrix, gram.matrix) / (norm.value or 1.0)
    return BlockAnalysis(
        gram.n,
        Spectrum.from_eigenvalues(nodes, dtype=gram.dtype, rounding=off),
        _pairs(nodes[len(nodes) - k :], off, padded),
        _pairs(nodes[:k], off, None),
        total(trace, gram.matrix.diagonal(), trace.rounding + gram.n**0.5 * apart),
        total(norm, squares, off),
        0,
        traces or {},
    )


def _pairs(values: Floats, off: float, moved: Floats | None) -> Eigenpairs:
    """Eigenvalues that are known within ``off``, without vectors."""
    return Eigenpairs(
        values,
        np.full(len(values), off),
        np.ones(len(values), dtype=bool),
        lower=values - off,
        upper=values + off,
        data_stderr=None if moved is None else np.linalg.norm(moved, axis=0),
        rounding=off,
        data_influences=moved,
    )
