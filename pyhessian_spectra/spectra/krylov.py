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

# Fewer samples estimate their own spread too poorly to stop on it.
_FEWEST_SAMPLES = 8


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
    rtol: float = 0.02,
    trace_probes: int = 30,
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
    rtol : float
        Half-width of the trace's 95 % interval, relative to its value, at which further probes are not worth a product.
    trace_probes : int
        Most samples of the trace, those of the probes above included; at least 2.
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
    orthogonality, first = first.orthogonality, replace(first, blocks=())
    tridiagonals: list[Tridiagonal] = []
    # what has not converged depends on the first probe, whose own complement would then be biased: another replaces it
    first_serves = bool(good.all()) and not completed
    while len(tridiagonals) < num_probes - first_serves and atoms.shape[1] < n:
        probe = LanczosProcess(op, random_vector(n, generator), against=atoms)
        probe.extend(num_steps)
        tridiagonal = probe.tridiagonal()
        orthogonality = max(orthogonality, tridiagonal.orthogonality)
        tridiagonal = replace(tridiagonal, blocks=())  # the basis has served
        if not completed and good.all() and _holds_copy(tridiagonal, values, k, ROUNDING * eps * scale):
            completed, first_serves = True, False
            values, vectors, atoms, good = _completed(op, values, vectors, k, scale, generator)
            tridiagonals = []  # these probes saw the copies in their complement; begin again without them
            continue
        tridiagonals.append(tridiagonal)

    pairs = _certified(op, values, vectors, good, tridiagonals, tol, scale)
    atom_values = values[good]
    rest = [(t.eigh()[0], t.eigh()[1][0] ** 2) for t in tridiagonals]
    if first_serves and len(atom_values) < len(theta):
        rest.insert(0, _complement_row(first, atom_values))
    facts = {
        "steps": len(theta),
        "steps_per_probe": num_steps,
        "orthogonality": orthogonality,
        "num_matvecs": op.num_matvecs - before,
    }
    spectrum = stack_rows(atom_values, rest, n, facts)
    trace, second = _moments(op, spectrum, atom_values, atoms, rtol, trace_probes, generator)
    high = np.arange(len(values)) >= len(values) // 2
    return KrylovPass(pairs.take(high), pairs.take(~high), spectrum, trace, square_root(second))


def _moments(
    op: LinearOperator,
    spectrum: Spectrum,
    atom_values: Floats,
    atoms: Tensor,
    rtol: float,
    trace_probes: int,
    generator: torch.Generator,
) -> tuple[TraceEstimate, TraceEstimate]:
    """The trace and the sum of squared eigenvalues: of the atoms exactly, of the rest by sampling.

    The quadrature's rows are samples already. A further one costs one product with a probe in the complement, which is
    cheaper than a row as long as the trace is what is wanted.
    """
    n, before = spectrum.size, op.num_matvecs
    if len(atom_values) == n:
        return tuple(TraceEstimate(float((atom_values**power).sum()), 0.0, 0) for power in (1, 2))  # type: ignore[return-value]
    firsts, seconds = (list(n * (spectrum.weights * spectrum.nodes**power).sum(axis=1)) for power in (1, 2))
    exact, rest = [(atom_values**power).sum() for power in (1, 2)], n - len(atom_values)
    reason = f"stopped at {trace_probes} probes"
    while len(firsts) < max(2, trace_probes):
        u = random_vector(n, generator).to(op.device, op.dtype)
        u = u - atoms @ (atoms.T @ u)
        u = u / torch.linalg.vector_norm(u)
        w = op @ u
        inside = w - atoms @ (atoms.T @ w)
        firsts.append(exact[0] + rest * float(u.double() @ w.double()))
        seconds.append(exact[1] + rest * float(inside.double().square().sum()))
        estimate = mean_of(np.array(firsts), 0, "")
        if len(firsts) >= _FEWEST_SAMPLES and estimate.interval()[1] - estimate.value <= rtol * abs(estimate.value):
            reason = f"relative error {rtol:g} reached"
            break
    spent = op.num_matvecs - before
    trace, second = (mean_of(np.array(samples), spent, f"Krylov pass, {reason}") for samples in (firsts, seconds))
    return trace, second


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
    budget = op.num_matvecs + 100 * k + 1000
    tol = float(torch.finfo(op.dtype).eps) * scale
    values, found = add_missing_copies(op, values, vectors.double().cpu().numpy(), 2 * k, "BE", tol, budget, generator)
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
