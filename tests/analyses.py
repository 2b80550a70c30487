"""Synthetic analyses whose spectra are known, shaped like those of trained networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.notes import Note
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, TraceEstimate
from pyhessian_spectra.spectra.spectrum import Spectrum

OUTLIERS = np.geomspace(5.0, 100.0, 10)


def network_eigenvalues(rng: np.random.Generator, size: int, *, scale: float = 1.0, width: float = 1e-4) -> Floats:
    """A bulk around zero of standard deviation ``width``, ten outliers and a small negative edge."""
    edge = -np.geomspace(0.02, 0.3, 6)
    bulk = rng.normal(0.0, width, size - OUTLIERS.size - edge.size)
    return np.sort(np.concatenate([bulk, scale * OUTLIERS, scale * edge]))


def lanczos_quadrature(rng: np.random.Generator, eigenvalues: Floats, *, probes: int, steps: int) -> Spectrum:
    """Gauss quadrature of each probe's spectral measure, by Lanczos with full reorthogonalisation."""
    nodes, weights = np.empty((probes, steps)), np.empty((probes, steps))
    for probe in range(probes):
        basis = np.empty((steps, eigenvalues.size))
        vector = rng.standard_normal(eigenvalues.size)
        vector /= np.linalg.norm(vector)
        for step in range(steps):
            basis[step] = vector
            vector = eigenvalues * vector
            for _ in range(2):
                vector -= basis[: step + 1].T @ (basis[: step + 1] @ vector)
            vector /= np.linalg.norm(vector)
        nodes[probe], vectors = np.linalg.eigh(basis @ (eigenvalues[:, None] * basis.T))
        weights[probe] = vectors[0] ** 2
    weights /= weights.sum(axis=1, keepdims=True)
    return Spectrum(nodes, weights, eigenvalues.size, num_atoms=0, dtype="float32", facts={"steps": steps})


def pairs(
    values: Floats, *, relative: float, unconverged: int = 0, others: tuple[float, float] | None = None
) -> Eigenpairs:
    """Eigenvalues with residuals and intervals; the ``unconverged`` ones nearest to the bulk have large ones."""
    residuals = relative * np.abs(values)
    converged = np.ones(values.size, dtype=bool)
    nearest = np.argsort(np.abs(values))[:unconverged]
    residuals[nearest], converged[nearest] = 0.2 * np.abs(values[nearest]), False
    bounds = 1.5 * residuals  # of rounding, which only the certified interval includes
    return Eigenpairs(values, residuals, converged, lower=values - bounds, upper=values + bounds, others=others)


def block(eigenvalues: Floats, spectrum: Spectrum, *, k: int = 8, unconverged: int = 0) -> BlockAnalysis:
    """What an analysis of an operator with these eigenvalues returns."""
    exact = spectrum.exact
    relative, stderr = (1e-15, 0.0) if exact else (1e-5, 0.02)
    trace, frobenius = float(eigenvalues.sum()), float(np.linalg.norm(eigenvalues))
    method = "exact" if exact else "hutchinson"
    cost = 0 if exact else spectrum.num_probes
    rest = eigenvalues[k:-k]
    others = None if exact or unconverged else (float(rest[0] - 1e-3), float(rest[-1] + 1e-3))
    return BlockAnalysis(
        n=eigenvalues.size,
        spectrum=spectrum,
        largest=pairs(eigenvalues[-k:], relative=relative, unconverged=unconverged, others=others),
        smallest=pairs(eigenvalues[:k], relative=relative, unconverged=unconverged, others=others),
        trace=TraceEstimate(trace, stderr * abs(trace), cost, method, cost),
        frobenius=TraceEstimate(frobenius, stderr * frobenius, cost, method, cost),
        num_products=eigenvalues.size if exact else 400,
    )


def problem(checkpoint: str, n: int, **facts: Any) -> dict[str, Any]:
    """A description with every key that ``results.json`` requires."""
    required = {
        "checkpoint": checkpoint, "sha256": "0123456789abcdef" * 4, "model": "mlp", "data": "digits", "n": n,
        "N": 1500, "loss": "cross_entropy", "mode": "eval", "dtype": "float32", "device": "cpu", "seed": 0,
    }  # fmt: skip
    return {**required, **facts}


def timing(products: int) -> dict[str, float]:
    """Plausible timing."""
    return {
        "seconds": 0.02 * products, "num_products": products, "seconds_per_product": 0.02, "seconds_per_gradient": 0.009
    }  # fmt: skip


def exact_analysis(
    checkpoint: str = "runs/step-01000.pt", *, n: int = 2000, scale: float = 1.0, layers: bool = True, **facts: Any
) -> SpectralAnalysis:
    """An exact analysis: all eigenvalues known, everything converged."""
    rng = np.random.default_rng(n)
    sizes = {"fc1": n // 2, "fc2": n // 3, "fc3": n - n // 2 - n // 3}

    def exact(size: int, scale: float) -> BlockAnalysis:
        values = network_eigenvalues(rng, size, scale=scale, width=0.05)
        return block(values, Spectrum.from_eigenvalues(values))

    return SpectralAnalysis(
        problem=problem(checkpoint, n, **facts),
        full=exact(n, scale),
        layers={name: exact(s, scale * f) for (name, s), f in zip(sizes.items(), (0.1, 0.4, 1.0), strict=True)}
        if layers
        else {},
        timing=timing(n),
    )


def training_run(steps: Sequence[int] = (0, 10, 100, 1000)) -> list[SpectralAnalysis]:
    """Exact analyses of one run: the spectrum grows with the step."""
    return [
        exact_analysis(
            f"runs/step-{step:05d}.pt", scale=0.05 * (1 + step) ** 0.4, step=step, test_accuracy=0.1 + step / 1200
        )
        for step in steps
    ]


def slq_analysis(
    checkpoint: str = "resnet20.pt",
    *,
    n: int = 4000,
    probes: int = 8,
    steps: int = 60,
    layer_names: Sequence[str] = ("conv1", "layer1.0.conv1", "layer2.0.conv1", "linear"),
    unconverged: int = 2,
    **facts: Any,
) -> SpectralAnalysis:
    """A stochastic analysis, by default one in which some eigenpairs have not converged."""
    rng = np.random.default_rng(n)

    def estimate(size: int, scale: float, unconverged: int) -> BlockAnalysis:
        values = network_eigenvalues(rng, size, scale=scale)
        spectrum = lanczos_quadrature(rng, values, probes=probes, steps=steps)
        spectrum = dataclasses.replace(spectrum, dtype=facts.get("dtype", spectrum.dtype))
        return block(values, spectrum, unconverged=unconverged)

    return SpectralAnalysis(
        problem=problem(checkpoint, n, tol=1e-4, **facts),
        full=estimate(n, 1.0, unconverged),
        layers={
            name: estimate(n // 4, 0.5**index, int(unconverged > 0 and index == 1))
            for index, name in enumerate(layer_names)
        },
        timing=timing(2000),
        notes=(Note("linearisation", "Eigenvectors were not kept."),),
    )
