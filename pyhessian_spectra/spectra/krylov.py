"""One Krylov pass: both edges, the density and the traces from the same products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.spectra.bounds import certify
from pyhessian_spectra.spectra.copies import add_missing_copies, holds_better
from pyhessian_spectra.spectra.edges import ROUNDING, find_edges, require_which
from pyhessian_spectra.spectra.forms import Forms, FormsRecorder
from pyhessian_spectra.spectra.lanczos import LanczosProcess, Tridiagonal
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, TraceEstimate
from pyhessian_spectra.spectra.settings import Settings
from pyhessian_spectra.spectra.spectrum import Spectrum
from pyhessian_spectra.spectra.trace import mean_of, samples_for, square_root

# A missed eigenvalue is looked for where it exceeds the rounding of a residual by this factor: the lower edge of a
# semidefinite block is nearer to zero than that, and its order is not worth products.
_MISSED = 10

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
    op: Meter,
    settings: Settings,
    *,
    which: str = "BE",
    atol: float = 0.0,
    max_products: int | None = None,
    sections: Sequence[int] | None = None,
    generator: torch.Generator,
) -> KrylovPass:
    """Find both edges, the density, the trace and the Frobenius norm of an operator in one pass.

    One Lanczos process is extended until the Ritz pairs wanted at each edge have converged. They become atoms; each
    probe then gives the quadrature of their complement, a sample of both moments, a check that no copy of an edge
    eigenvalue was missed, and a bound on what the complement may still hold. The start vector of the process gives no
    sample: in a cluster of eigenvalues the Ritz vectors follow it, and what it leaves to the complement is biased.

    Parameters
    ----------
    op : Meter, shape (n, n)
    settings : Settings
        ``num_eigenvalues`` at each edge are capped at ``n // 2``.
    which : {"BE", "LA", "SA"}
        Both edges, or only the largest or the smallest eigenvalues, which takes fewer products.
    atol : float
        Residual, relative to the norm, that is good enough for any pair, however small its value.
    max_products : int, optional
        Most products spent on the edges, by default ``2 max_steps``.
    sections : sequence of int, optional
        Lengths of the sections of the coordinates that ``forms`` tells apart.
    generator : torch.Generator
        Source of the probes.
    """
    n, before = op.n, op.num_products
    require_which(which)
    k = min(settings.num_eigenvalues, n // 2) * (2 if which == "BE" else 1)
    edges = find_edges(
        op,
        op.space.randn(generator),
        k,
        which,
        tol=settings.tol,
        atol=atol,
        min_steps=settings.num_steps,
        max_steps=settings.max_steps,
        max_products=max_products or 2 * settings.max_steps,
        memory_budget=settings.memory_budget,
    )
    values, vectors, good, scale = edges.values, edges.vectors, edges.good, edges.scale
    orthogonality = edges.orthogonality
    facts = {"steps": edges.steps, "restarts": edges.restarts, "basis": edges.place}
    del edges  # its vectors are dropped where they are completed
    atoms = vectors if good.all() else vectors[:, torch.from_numpy(good).to(op.device)]

    def complete(margin: float) -> tuple[Floats, Tensor, Tensor, np.ndarray]:
        """The edges with the copies that one Krylov space cannot see."""
        found, with_copies, _ = add_missing_copies(
            op,
            values,
            vectors,
            k,
            which,
            residual=margin / ROUNDING,
            margin=margin,
            max_products=50 * k + 1000,
            generator=generator,
        )
        return found, with_copies, with_copies, np.ones(len(found), dtype=bool)

    rounding = ROUNDING * op.space.eps * scale
    margin = max(10 * atol * scale, _MISSED * rounding)
    completed = len(values) < k  # the process ran out of distinct eigenvalues: the rest are copies
    if completed:
        values, vectors, atoms, good = complete(rounding)
    probes: list[Tridiagonal] = []
    recorder = FormsRecorder(op, sections)
    while len(probes) < settings.num_probes and atoms.shape[1] < n:
        process = LanczosProcess(op, op.space.randn(generator), against=atoms, memory_budget=settings.memory_budget)
        process.extend(1, first=recorder.probe)
        process.extend(settings.num_steps - 1)
        probe = process.tridiagonal()
        orthogonality = max(orthogonality, probe.orthogonality)
        if not completed and good.all() and holds_better(probe, values, k, which, margin):
            completed = True
            values, vectors, atoms, good = complete(margin)
            # these probes saw the copies in their complement: begin again without them
            probes, recorder = [], FormsRecorder(op, sections)
            continue
        probes.append(replace(probe, vectors=None))  # the basis has served

    products = recorder.products(vectors)
    pairs = certify(op, values, vectors, products, probes, good, tol=settings.tol, atol=atol, scale=scale)
    facts |= {
        "steps_per_probe": settings.num_steps,
        "orthogonality": max(orthogonality, op.space.deviation(vectors)),
        "num_products": op.num_products - before,
    }
    rows = [(probe.eigh()[0], probe.eigh()[1][0] ** 2) for probe in probes]
    dtype = str(op.dtype).removeprefix("torch.")
    spectrum = Spectrum.from_quadrature(values[good], rows, n, dtype=dtype, facts=facts)
    trace, second = _moments(op, recorder, spectrum, values[good], atoms, settings, generator)
    below = {"BE": len(values) // 2, "LA": 0, "SA": len(values)}[which]
    smallest, largest = pairs.take(slice(0, below)), pairs.take(slice(below, None))  # views of the eigenvectors
    return KrylovPass(largest, smallest, spectrum, trace, square_root(second), recorder.forms(good))


def _moments(
    op: Meter,
    recorder: FormsRecorder,
    spectrum: Spectrum,
    atom_values: Floats,
    atoms: Tensor,
    settings: Settings,
    generator: torch.Generator,
) -> tuple[TraceEstimate, TraceEstimate]:
    """The trace and the sum of squared eigenvalues: of the atoms exactly, of the rest by sampling.

    The quadrature's rows are samples already. A further one costs one product with a probe in the complement, which is
    cheaper than a row as long as the trace is what is wanted.
    """
    n, before, space = op.n, op.num_products, op.space
    if len(atom_values) == n:
        return tuple(TraceEstimate(float((atom_values**power).sum()), 0.0, 0) for power in (1, 2))  # type: ignore[return-value]
    firsts, seconds = (list(n * (spectrum.weights * spectrum.nodes**power).sum(axis=1)) for power in (1, 2))
    exact, rest = [(atom_values**power).sum() for power in (1, 2)], n - len(atom_values)

    def sample(count: int) -> None:
        while len(firsts) < count:
            u = space.sphere(generator, against=atoms)
            w = recorder.probe(u)
            inside = w - atoms @ space.gram(atoms.T, w[:, None])[:, 0].to(w)
            firsts.append(exact[0] + rest * space.inner(u, w))
            seconds.append(exact[1] + rest * space.norm(inside) ** 2)

    most = settings.trace_probes
    sample(min(most, _FIRST_STAGE))
    wanted = samples_for(np.array(firsts), settings.rtol)
    sample(min(most, wanted))
    reason = (
        f"relative error {settings.rtol:g} reached"
        if wanted <= most
        else f"stopped at {most} probes, before a relative error of {settings.rtol:g}"
    )
    spent, method = op.num_products - before, f"Krylov pass, {reason}"
    trace, second = (mean_of(np.array(some), spent, method, first_stage=_FIRST_STAGE) for some in (firsts, seconds))
    return trace, second
