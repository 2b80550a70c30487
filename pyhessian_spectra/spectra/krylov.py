"""One Krylov pass: both edges, the density and the traces from the same products."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.spectra.bounds import FAILURE, certified_intervals, unseen_bounds
from pyhessian_spectra.spectra.eigen import ROUNDING, add_missing_copies, edges_of, fresh_residuals
from pyhessian_spectra.spectra.lanczos import LanczosProcess, Tridiagonal, random_vector
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, Spectrum, TraceEstimate
from pyhessian_spectra.spectra.slq import stack_rows
from pyhessian_spectra.spectra.trace import mean_of, square_root


@dataclass(frozen=True)
class KrylovPass:
    """What one pass over an operator has found.

    Parameters
    ----------
    largest, smallest : Eigenpairs
        ``k`` at each edge, ascending, with certified intervals.
    spectrum : Spectrum
        Converged edges as atoms of weight ``1 / n``, quadrature on their complement.
    trace, frobenius : TraceEstimate
        From the quadrature's first two moments.
    """

    largest: Eigenpairs
    smallest: Eigenpairs
    spectrum: Spectrum
    trace: TraceEstimate
    frobenius: TraceEstimate


def krylov_pass(
    op: LinearOperator,
    *,
    k: int,
    num_probes: int,
    num_steps: int,
    tol: float,
    max_steps: int,
    generator: torch.Generator,
) -> KrylovPass:
    """Find both edges, the density, the trace and the Frobenius norm of an operator in one pass.

    The first probe's Lanczos process is extended until ``k`` Ritz pairs at each edge have residuals below ``tol``
    relative to their value (or the rounding of the products). They become atoms; each further probe gives the
    quadrature of the complement, a sample of both moments, a check that no copy of an edge eigenvalue was missed, and a
    bound on what the complement may still hold.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    k : int
        Pairs at each edge; capped at ``n // 2``.
    num_probes : int
        At least 2, the first one included.
    num_steps : int
        Lanczos steps of each probe; the first takes more where the edges need them.
    tol : float
        Relative residual asked of the edges.
    max_steps : int
        Most steps of the first process. Pairs that have not converged by then are given as they are, and say so.
    generator : torch.Generator
        Source of the probes.
    """
    n, before = op.shape[0], op.num_matvecs
    k, eps = min(k, n // 2), float(torch.finfo(op.dtype).eps)
    process = LanczosProcess(op, random_vector(n, generator))
    process.extend(max(num_steps, 2 * k))
    while not (
        process.exhausted or _edges_converged(op, process.tridiagonal(), k, tol) or process.num_steps >= max_steps
    ):
        process.extend(min(max(5, process.num_steps // 8), max_steps - process.num_steps))
    first = process.tridiagonal()
    theta, coefficients = first.eigh()
    scale = float(np.abs(theta).max())
    chosen = edges_of(theta, min(2 * k, len(theta)), "BE")
    good = first.ritz_residuals[chosen] <= _threshold(op, theta[chosen], tol, scale)
    values, vectors = theta[chosen], first.combine(coefficients[:, chosen])
    atoms = vectors[:, torch.from_numpy(good).to(op.device)]
    del process

    completed = len(values) < 2 * k  # the process ran out of distinct eigenvalues: the rest are copies
    if completed:
        values, vectors, atoms, good = _completed(op, values, vectors, k, scale, generator)
    tridiagonals: list[Tridiagonal] = []
    while len(tridiagonals) < num_probes - 1 and atoms.shape[1] < n:
        probe = LanczosProcess(op, random_vector(n, generator), against=atoms)
        probe.extend(num_steps)
        tridiagonal = probe.tridiagonal()
        if not completed and good.all() and _holds_copy(tridiagonal, values, k, ROUNDING * eps * scale):
            completed = True
            values, vectors, atoms, good = _completed(op, values, vectors, k, scale, generator)
            tridiagonals = []  # these probes saw the copies in their complement; begin again without them
            continue
        tridiagonals.append(tridiagonal)

    pairs = _certified(op, values, vectors, good, tridiagonals, tol, scale)
    atom_values = values[good]
    rest = [(t.eigh()[0], t.eigh()[1][0] ** 2) for t in tridiagonals]
    if len(atom_values) < len(theta) and not completed:
        rest.insert(0, _complement_row(first, atom_values))
    facts = {
        "steps": len(theta),
        "steps_per_probe": num_steps,
        "orthogonality": max(t.orthogonality for t in (first, *tridiagonals)),
        "num_matvecs": op.num_matvecs - before,
    }
    spectrum = stack_rows(atom_values, rest, n, facts)
    samples = [n * (spectrum.weights * spectrum.nodes**power).sum(axis=1) for power in (1, 2)]
    trace, second = (mean_of(sample, op.num_matvecs - before, "quadrature") for sample in samples)
    high = np.arange(len(values)) >= len(values) // 2
    return KrylovPass(pairs.take(high), pairs.take(~high), spectrum, trace, square_root(second))


def _threshold(op: LinearOperator, values: Floats, tol: float, scale: float) -> Floats:
    """Largest residual at which a pair counts as converged."""
    return np.maximum(tol * np.abs(values), ROUNDING * float(torch.finfo(op.dtype).eps) * scale)


def _edges_converged(op: LinearOperator, tridiagonal: Tridiagonal, k: int, tol: float) -> bool:
    theta = tridiagonal.eigh()[0]
    if len(theta) <= 2 * k:
        return False
    chosen = edges_of(theta, 2 * k, "BE")
    scale = float(np.abs(theta).max())
    return bool((tridiagonal.ritz_residuals[chosen] <= _threshold(op, theta[chosen], tol, scale)).all())


def _holds_copy(tridiagonal: Tridiagonal, values: Floats, k: int, margin: float) -> bool:
    """Whether the complement holds an eigenvalue that belongs among the edges."""
    theta = tridiagonal.eigh()[0]
    return bool(theta[-1] > values[len(values) - k] + margin or theta[0] < values[len(values) // 2 - 1] - margin)


def _completed(
    op: LinearOperator, values: Floats, vectors: Tensor, k: int, scale: float, generator: torch.Generator
) -> tuple[Floats, Tensor, Tensor, np.ndarray]:
    """The edges with the copies a single Krylov space cannot see; all of them converged."""
    centre, budget = (values[0] + values[-1]) / 2, op.num_matvecs + 100 * k + 1000
    tol = float(torch.finfo(op.dtype).eps) * scale
    values, found = add_missing_copies(
        op, values, vectors.double().cpu().numpy(), 2 * k, "BE", centre, tol, budget, generator
    )
    vectors = torch.from_numpy(found).to(op.device, op.dtype)
    return values, vectors, vectors, np.ones(len(values), dtype=bool)


def _complement_row(first: Tridiagonal, atoms: Floats) -> tuple[Floats, Floats]:
    """The first probe's quadrature on the complement of its converged Ritz vectors: nodes and weights that sum to 1."""
    theta, coefficients = first.eigh()
    rest = ~np.isin(theta, atoms)
    weights = coefficients[0, rest] ** 2
    return theta[rest], weights / weights.sum()


def _certified(
    op: LinearOperator,
    values: Floats,
    vectors: Tensor,
    good: np.ndarray,
    tridiagonals: list[Tridiagonal],
    tol: float,
    scale: float,
) -> Eigenpairs:
    """Fresh residuals, and intervals from them where nothing can have been missed."""
    numpy_vectors = vectors.cpu().numpy()
    residuals = fresh_residuals(op, values, numpy_vectors)
    converged = good & (residuals <= _threshold(op, values, tol, scale))
    pairs = Eigenpairs(values, residuals, converged, numpy_vectors)
    rounding = 30 * float(torch.finfo(op.dtype).eps) * scale  # of the products, and so of the values themselves
    bounds = residuals + rounding
    if not (good.all() and tridiagonals):
        return replace(pairs, lower=values - bounds, upper=values + bounds)
    each = [unseen_bounds(t, op.shape[0], failure=FAILURE / len(tridiagonals)) for t in tridiagonals]
    slack = float(np.linalg.norm(bounds))  # the coupling to the complement, by Weyl
    others = max(low for low, _ in each) - slack, min(high for _, high in each) + slack
    lower, upper = certified_intervals(values, bounds, others)
    return replace(pairs, lower=lower - rounding, upper=upper + rounding, others=others)
