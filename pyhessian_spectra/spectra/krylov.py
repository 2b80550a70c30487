"""The Krylov pass: both edges, the spectral density and the traces from shared products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.spectra.arpack import find_edges_by_arpack
from pyhessian_spectra.spectra.bounds import FAILURE, certify
from pyhessian_spectra.spectra.copies import add_missing_copies, holds_better
from pyhessian_spectra.spectra.edges import ROUNDING, Edges, find_edges, require_which
from pyhessian_spectra.spectra.forms import Forms, FormsRecorder
from pyhessian_spectra.spectra.lanczos import LanczosProcess, Tridiagonal
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.quadrature import largest_probe_error
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, TraceEstimate
from pyhessian_spectra.spectra.rounding import Rounding
from pyhessian_spectra.spectra.settings import Settings
from pyhessian_spectra.spectra.spectrum import Spectrum
from pyhessian_spectra.spectra.trace import mean_of, samples_for, square_root

# A Ritz value in the complement counts as a missed eigenvalue if it lies beyond an edge by this many times the rounding
# of a residual. The lower edge of a semidefinite block is nearer to zero than that, and sorting it is not worth
# products.
_MISSED = 10

# Samples of the first stage, whose spread determines the total number: fewer would estimate it too poorly.
FIRST_STAGE = 10


@dataclass(frozen=True)
class KrylovPass:
    """Results of one pass; ``forms`` are those of the eigenvectors, in ascending order, and of all probes."""

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

    One Lanczos process is extended until the wanted Ritz pairs have converged; these become atoms of the spectrum. Each
    random probe then runs Lanczos in their complement, which gives the quadrature of the remaining spectrum, a sample
    of each trace, a check for missed copies of edge eigenvalues, and a bound on all other eigenvalues. The start vector
    of the first process gives no sample: within a cluster of eigenvalues the Ritz vectors depend on it, so its
    component in the complement is biased.

    ``which`` is ``"BE"``, or ``"LA"`` or ``"SA"`` for one edge alone, which takes fewer products. A residual of
    ``atol`` times the norm suffices for any pair. At most ``max_products`` are spent on the edges, by default ``2
    max_steps``. ``sections`` are the lengths of the sections of coordinates that ``forms`` separates.
    """
    n, before = op.n, op.num_products
    require_which(which)
    k = min(settings.num_eigenvalues, n // 2) * (2 if which == "BE" else 1)
    find: Callable[..., Edges] = find_edges if settings.eigensolver == "lanczos" else find_edges_by_arpack
    edges = find(
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
    orthogonality, whole = edges.orthogonality, edges.quadrature
    facts = {"steps": edges.steps, "restarts": edges.restarts, "basis": edges.place}
    del edges  # so that its vectors are freed when `complete` replaces them
    atoms = vectors if good.all() else vectors[:, torch.from_numpy(good).to(op.device)]

    def complete(margin: float) -> tuple[Floats, Tensor, Tensor, np.ndarray]:
        """The edge pairs with all copies of multiple eigenvalues, which one Krylov space cannot contain."""
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

    least = ROUNDING * op.space.eps * scale
    margin = max(10 * atol * scale, _MISSED * least)
    completed = len(values) < k  # the process ran out of distinct eigenvalues: the rest are copies
    if completed:
        values, vectors, atoms, good = complete(least)
    probes: list[Tridiagonal] = []
    rounding = Rounding(op)
    kept: list[LanczosProcess] = []
    recorder = FormsRecorder(op, sections)

    def begin() -> LanczosProcess:
        """A probe in the complement of the atoms, of as many steps as those before it."""
        process = LanczosProcess(op, op.space.randn(generator), against=atoms, memory_budget=settings.memory_budget)
        process.extend(1, first=recorder.probe)
        process.extend((kept[0].num_steps if kept else settings.num_steps) - 1)
        return process

    def finished(process: LanczosProcess) -> Tridiagonal:
        """The probe's coefficients, without its vectors, of which ``rounding`` has what it needs."""
        rounding.add_process(process.tridiagonal())
        return replace(process.tridiagonal(), vectors=None, residual=None)

    while len(probes) + len(kept) < settings.num_probes and atoms.shape[1] < n:
        process = begin()
        probe = process.tridiagonal()
        orthogonality = max(orthogonality, probe.orthogonality)
        if not completed and good.all() and holds_better(probe, values, k, which, margin):
            completed = True
            values, vectors, atoms, good = complete(margin)
            # the probes so far ran with the copies still in their complement: start again
            probes, kept, recorder, rounding = [], [], FormsRecorder(op, sections), Rounding(op)
        elif settings.resolve:
            kept.append(process)
        else:  # the Lanczos vectors are no longer needed
            probes.append(finished(process))

    if kept:
        _resolve(op, kept, n - atoms.shape[1], settings, begin)
        probes = [finished(process) for process in kept]
        del kept
    products = recorder.products(vectors)
    pairs = certify(
        op, values, vectors, products, probes, good, tol=settings.tol, atol=atol, scale=scale, rounding=rounding
    )
    facts |= {
        "steps_per_probe": max((len(probe.alphas) for probe in probes), default=0),
        "orthogonality": max(orthogonality, op.space.deviation(vectors)),
        "num_products": op.num_products - before,
    }
    rows = [(probe.eigh()[0], probe.eigh()[1][0] ** 2) for probe in probes]
    dtype = str(op.dtype).removeprefix("torch.")
    known = {"rounding": 2 * pairs.rounding, "residual": float(np.linalg.norm(pairs.residuals[good]))}
    spectrum = Spectrum.from_quadrature(values[good], rows, n, dtype=dtype, **known, whole=whole, facts=facts)
    trace, second = _moments(op, recorder, spectrum, values[good], atoms, settings, generator)
    all_off = rounding.everywhere()
    trace, frobenius = replace(trace, rounding=all_off.trace), replace(square_root(second), rounding=all_off.norm)
    below = {"BE": len(values) // 2, "LA": 0, "SA": len(values)}[which]
    smallest, largest = pairs.take(slice(0, below)), pairs.take(slice(below, None))  # slices copy no eigenvectors
    return KrylovPass(largest, smallest, spectrum, trace, frobenius, recorder.forms(good))


def _resolve(
    op: Meter, probes: list[LanczosProcess], size: int, settings: Settings, begin: Callable[[], LanczosProcess]
) -> None:
    """Spend ``settings.resolve`` products on longer probes or on more of them, whichever narrows the bounds more.

    Steps narrow what the quadratures leave open, probes how far their average may be off.
    """
    end = op.num_products + settings.resolve
    while (left := end - op.num_products) > 0:
        rows = [(t.eigh()[0], t.eigh()[1][0] ** 2) for t in (process.tridiagonal() for process in probes)]
        seen = Spectrum.from_quadrature(np.empty(0), rows, size, dtype="", facts={})
        sampling = largest_probe_error(len(probes), size, level=1 - FAILURE)
        open_steps = [process for process in probes if not process.exhausted]
        if (not open_steps or seen.cdf_error(level=1 - FAILURE) < 2 * sampling) and left >= probes[0].num_steps:
            probes.append(begin())
            continue
        steps = min(settings.num_steps, left // max(1, len(open_steps)))
        if not steps or not open_steps:
            return
        for process in open_steps:
            process.extend(steps)


def _moments(
    op: Meter,
    recorder: FormsRecorder,
    spectrum: Spectrum,
    atom_values: Floats,
    atoms: Tensor,
    settings: Settings,
    generator: torch.Generator,
) -> tuple[TraceEstimate, TraceEstimate]:
    """The trace and the sum of squared eigenvalues: exact for the atoms, sampled for the remaining spectrum."""
    n, before, space = op.n, op.num_products, op.space
    if len(atom_values) == n:
        return TraceEstimate(float(atom_values.sum()), 0.0, 0), TraceEstimate(float((atom_values**2).sum()), 0.0, 0)
    # each row of the quadrature is a sample; another one costs one product, another row would cost num_steps
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
    sample(min(most, FIRST_STAGE))
    wanted = samples_for(np.array(firsts), settings.rtol)
    sample(min(most, wanted))
    reason = (
        f"relative error {settings.rtol:g} reached"
        if wanted <= most
        else f"stopped at {most} probes, before a relative error of {settings.rtol:g}"
    )
    spent, method = op.num_products - before, f"Krylov pass, {reason}"
    trace, second = (mean_of(np.array(some), spent, method, first_stage=FIRST_STAGE) for some in (firsts, seconds))
    return trace, second
