"""One Krylov pass: both edges, the density and the traces from the same products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.basis import deviation
from pyhessian_spectra.spectra.bounds import FAILURE, certified_intervals, unseen_bounds
from pyhessian_spectra.spectra.edges import find_edges, threshold
from pyhessian_spectra.spectra.eigen import ROUNDING, add_missing_copies
from pyhessian_spectra.spectra.forms import Forms, FormsRecorder, ProbedFirst, residuals_of
from pyhessian_spectra.spectra.lanczos import Tridiagonal, lanczos, random_vector
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, Spectrum, TraceEstimate
from pyhessian_spectra.spectra.slq import stack_rows
from pyhessian_spectra.spectra.trace import mean_of, samples_for, square_root

# A missed eigenvalue is looked for where it exceeds the rounding of a residual by this factor: the lower edge of a
# semidefinite block is nearer to zero than that, and its order is not worth products.
_MISSED = 10

# Whether the lower and the upper edge are wanted.
_EDGES = {"BE": (1, 1), "LA": (0, 1), "SA": (1, 0)}

# Samples whose spread decides how many are taken in all: fewer estimate it too poorly.
_FIRST_STAGE = 10


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
    forms : Forms
        Of the eigenvectors, in ascending order, and of all probes.
    """

    largest: Eigenpairs
    smallest: Eigenpairs
    spectrum: Spectrum
    trace: TraceEstimate
    frobenius: TraceEstimate
    forms: Forms


def krylov_pass(
    op: LinearOperator,
    *,
    k: int,
    which: str = "BE",
    num_probes: int,
    num_steps: int,
    tol: float,
    atol: float = 0.0,
    max_steps: int,
    max_products: int | None = None,
    rtol: float = 0.02,
    trace_probes: int = 30,
    sections: Sequence[int] | None = None,
    memory_budget: int | None = None,
    generator: torch.Generator,
) -> KrylovPass:
    """Find both edges, the density, the trace and the Frobenius norm of an operator in one pass.

    One Lanczos process is extended until ``k`` Ritz pairs at each edge have residuals below ``tol`` relative to their
    value (or ``atol`` relative to the norm, or the rounding of the products). They become atoms; each probe then
    gives the quadrature of their complement, a sample of both moments, a check that no copy of an edge eigenvalue was
    missed, and a bound on what the complement may still hold. The start vector of the process gives no sample: in a
    cluster of eigenvalues the Ritz vectors follow it, and what it leaves to the complement is biased.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    k : int
        Pairs at each edge; capped at ``n // 2``.
    which : {"BE", "LA", "SA"}
        Both edges, or only the largest or the smallest eigenvalues, which takes fewer products.
    num_probes : int
        Probes of the quadrature, at least 1.
    num_steps : int
        Lanczos steps of each probe, and the fewest of the process that finds the edges.
    tol : float
        Residual asked of the edges, relative to each value.
    atol : float
        Residual, relative to the norm, that is good enough for any of them, however small its value.
    max_steps : int
        Most vectors of the first process; where they are not enough it is restarted, see :func:`find_edges`.
    max_products : int, optional
        Most products spent on the edges, by default ``2 max_steps``. Pairs that have not converged by then are given as
        they are, and say so.
    rtol : float
        Half-width asked of the trace's 95 % interval, relative to its value.
    trace_probes : int
        Most samples of the trace, those of the probes included; at least 2.
    sections : sequence of int, optional
        Lengths of the sections of the coordinates that ``forms`` tells apart.
    memory_budget : int, optional
        Bytes the Lanczos vectors may take in memory, by default half of what is free; the others go to a temporary
        file. The results are the same.
    generator : torch.Generator
        Source of the probes.
    """
    n, before = op.shape[0], op.num_matvecs
    if which not in _EDGES:
        raise InputError(f"which must be one of {', '.join(_EDGES)}, got {which!r}")
    k = min(k, n // 2)
    low, high = (k * wanted for wanted in _EDGES[which])
    edges = find_edges(
        op,
        random_vector(n, generator),
        low=low,
        high=high,
        tol=tol,
        atol=atol,
        min_steps=num_steps,
        max_steps=max_steps,
        max_products=2 * max_steps if max_products is None else max_products,
        memory_budget=memory_budget,
    )
    values, vectors, good, scale = edges.values, edges.vectors, edges.good, edges.scale
    orthogonality = edges.orthogonality
    facts = {"steps": edges.steps, "restarts": edges.restarts, "basis": edges.place}
    del edges  # its vectors are dropped where they are completed
    atoms = vectors if good.all() else vectors[:, torch.from_numpy(good).to(op.device)]

    rounding = ROUNDING * float(torch.finfo(op.dtype).eps) * scale
    margin = max(10 * atol * scale, _MISSED * rounding)
    completed = len(values) < low + high  # the process ran out of distinct eigenvalues: the rest are copies
    if completed:
        values, vectors, atoms, good = _completed(op, values, vectors, low + high, which, rounding, generator)
    tridiagonals: list[Tridiagonal] = []
    recorder = FormsRecorder(op, sections)
    while len(tridiagonals) < num_probes and atoms.shape[1] < n:
        start, first_recorded = random_vector(n, generator), ProbedFirst(op, recorder)
        tridiagonal = lanczos(first_recorded, start, num_steps, against=atoms, memory_budget=memory_budget)
        orthogonality = max(orthogonality, tridiagonal.orthogonality)
        tridiagonal = replace(tridiagonal, vectors=None)  # the basis has served
        if not completed and good.all() and _holds_copy(tridiagonal, values, low, high, margin):
            completed = True
            values, vectors, atoms, good = _completed(op, values, vectors, low + high, which, margin, generator)
            # these probes saw the copies in their complement: begin again without them
            tridiagonals, recorder = [], FormsRecorder(op, sections)
            continue
        tridiagonals.append(tridiagonal)

    pairs = _certified(op, recorder, values, vectors, good, tridiagonals, tol, atol, scale)
    atom_values = values[good]
    rest = [(t.eigh()[0], t.eigh()[1][0] ** 2) for t in tridiagonals]
    facts |= {
        "dtype": str(op.dtype).removeprefix("torch."),
        "steps_per_probe": num_steps,
        "orthogonality": max(orthogonality, deviation(vectors)),
        "num_matvecs": op.num_matvecs - before,
    }
    spectrum = stack_rows(atom_values, rest, n, facts)
    trace, second = _moments(op, recorder, spectrum, atom_values, atoms, rtol, trace_probes, generator)
    below = len(values) * low // (low + high) if low else 0
    smallest, largest = pairs.take(slice(0, below)), pairs.take(slice(below, None))  # views of the eigenvectors
    return KrylovPass(largest, smallest, spectrum, trace, square_root(second), recorder.forms(good))


def _moments(
    op: LinearOperator,
    recorder: FormsRecorder,
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

    def sample(count: int) -> None:
        while len(firsts) < count:
            u, w = recorder.draw(atoms, generator)
            inside = w - atoms @ (atoms.T @ w)
            firsts.append(exact[0] + rest * float(u.double() @ w.double()))
            seconds.append(exact[1] + rest * float(inside.double().square().sum()))

    most = max(2, trace_probes)
    sample(min(most, _FIRST_STAGE))
    wanted = samples_for(np.array(firsts), rtol)
    sample(min(most, wanted))
    reason = (
        f"relative error {rtol:g} reached"
        if wanted <= most
        else f"stopped at {most} probes, before a relative error of {rtol:g}"
    )
    spent, method = op.num_matvecs - before, f"Krylov pass, {reason}"
    trace, second = (mean_of(np.array(some), spent, method, first_stage=_FIRST_STAGE) for some in (firsts, seconds))
    return trace, second


def _holds_copy(tridiagonal: Tridiagonal, values: Floats, low: int, high: int, margin: float) -> bool:
    """Whether the complement holds an eigenvalue that belongs among the edges."""
    theta = tridiagonal.eigh()[0]
    above = high > 0 and theta[-1] > values[low] + margin
    return bool(above or (low > 0 and theta[0] < values[low - 1] - margin))


def _completed(
    op: LinearOperator,
    values: Floats,
    vectors: Tensor,
    k: int,
    which: str,
    margin: float,
    generator: torch.Generator,
) -> tuple[Floats, Tensor, Tensor, np.ndarray]:
    """The edges, ``k`` pairs in all, with the copies one Krylov space cannot see; all of them converged."""
    budget = op.num_matvecs + 50 * k + 1000
    values, found = add_missing_copies(
        op, values, vectors.double().cpu().numpy(), k, which, margin / ROUNDING, budget, generator
    )
    vectors = torch.from_numpy(found).to(op.device, op.dtype)
    return values, vectors, vectors, np.ones(len(values), dtype=bool)


def _certified(
    op: LinearOperator,
    recorder: FormsRecorder,
    values: Floats,
    vectors: Tensor,
    good: np.ndarray,
    tridiagonals: list[Tridiagonal],
    tol: float,
    atol: float,
    scale: float,
) -> Eigenpairs:
    """Fresh residuals, and intervals from them where nothing can have been missed."""
    residuals = residuals_of(values, vectors, recorder.products(vectors))
    converged = good & (residuals <= threshold(op, values, tol, atol, scale))
    pairs = Eigenpairs(values, residuals, converged, vectors.cpu().numpy())
    rounding = 30 * float(torch.finfo(op.dtype).eps) * scale  # of the products, and so of the values themselves
    bounds = residuals + rounding
    if not (good.all() and tridiagonals):
        return replace(pairs, lower=values - bounds, upper=values + bounds)
    each = [unseen_bounds(t, op.shape[0], failure=FAILURE / len(tridiagonals)) for t in tridiagonals]
    slack = float(np.linalg.norm(bounds))  # the coupling to the complement, by Weyl
    others = max(low for low, _ in each) - slack, min(high for _, high in each) + slack
    lower, upper = certified_intervals(values, bounds, others)
    return replace(pairs, lower=lower - rounding, upper=upper + rounding, others=others)
