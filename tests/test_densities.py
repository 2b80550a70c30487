"""Differences of smoothed densities: their value by exact spectra, their bands by how often these hold it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analyses import exact_analysis

from pyhessian_spectra import MatrixOperator, SpectralAnalysis, Spectrum, analyze_operator
from pyhessian_spectra.analysis.densities import compare_densities


def pair(near: float, n: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    """A bulk and outliers, and the same moved."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    bulk = 0.01 * torch.randn(n - 6, generator=generator, dtype=torch.float64)
    first = (vectors * torch.cat([bulk, torch.logspace(-1, 1, 6, dtype=torch.float64)])) @ vectors.T
    noise = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return first, (1 + 0.3 * near) * first + near * 0.005 * (noise + noise.T) / n**0.5


def estimates(matrices, seed: int, probes: int, **more) -> list[SpectralAnalysis]:
    fields = {"exact_limit": 0, "num_probes": probes, "num_eigenvalues": 4, "trace_probes": 2, **more}
    draw = torch.Generator()
    return [
        SpectralAnalysis({}, analyze_operator(MatrixOperator(each), generator=draw.manual_seed(seed), **fields))
        for each in matrices
    ]


def smoothed(eigenvalues: torch.Tensor, found) -> np.ndarray:
    """The density on the grid of a comparison, one Gaussian at a time."""
    place = lambda x: np.arcsinh(np.asarray(x) / found.threshold) / np.log(10)  # noqa: E731
    total = np.zeros(len(found.eigenvalues))
    for value in eigenvalues.tolist():
        total += np.exp(-0.5 * ((place(found.eigenvalues) - place(value)) / found.bandwidth) ** 2)
    return total / (len(eigenvalues) * found.bandwidth * np.sqrt(2 * np.pi))


def test_exact_densities_integrate_to_one_and_differ_as_their_eigenvalues_say():
    matrices = pair(1.0)
    found = compare_densities([SpectralAnalysis({}, analyze_operator(MatrixOperator(each))) for each in matrices])
    first, second = (smoothed(torch.linalg.eigvalsh(each), found) for each in matrices)
    np.testing.assert_allclose(found.differences[1], second - first, atol=1e-10)
    np.testing.assert_allclose(found.values.sum(axis=1) * found.bandwidth / 4, 1.0, atol=1e-4)
    assert (found.reach[1] < 1e-8).all() and (found.differences[0] == 0).all() and not found.exceeds[0].any()
    assert np.isnan(found.data_stderr[1]).all()


@pytest.mark.parametrize("near, probes", [(0.1, 10), (1.0, 10), (1.0, 3)])
def test_bands_hold_the_true_difference_over_fresh_probes(near, probes):
    """Points of one grid go together, so that few draws tell coverage to some per cent."""
    matrices, held = pair(near), []
    exact = [torch.linalg.eigvalsh(each) for each in matrices]
    for seed in range(5):
        found = compare_densities(estimates(matrices, seed, probes))
        truth = smoothed(exact[1], found) - smoothed(exact[0], found)
        dense = found.values.max(axis=0) > 0.01
        held.append((np.abs(found.differences[1] - truth) <= found.reach[1])[dense].mean())
    assert np.mean(held) > 0.9


def test_bands_are_wide_where_quadratures_do_not_resolve_the_density():
    """Eigenvalues over five decades: probes of a length are off in the same way, which their spread does not see."""
    values = torch.cat([-torch.logspace(-6, -2, 50), torch.logspace(-6, -1, 100)]).double()
    vectors = torch.linalg.qr(torch.randn(150, 150, generator=torch.Generator().manual_seed(0)).double()).Q
    matrix, held = (vectors * values) @ vectors.T, []
    for seed in range(4):
        found = compare_densities([estimates([matrix], seed, 10, num_steps=steps)[0] for steps in (6, 12)])
        dense = found.values.max(axis=0) > 0.01
        held.append((np.abs(found.differences[1]) <= found.reach[1])[dense].mean())  # the truth is zero
    assert np.mean(held) > 0.9  # 0.2 with the spread alone


def test_bands_of_paired_probes_are_far_narrower_than_those_of_two_errors_where_checkpoints_are_near():
    near, far = (compare_densities(estimates(pair(moved), 0, 10)) for moved in (0.1, 1.0))
    alone = compare_densities(estimates(pair(0.1), 0, 9))  # too few to be paired
    reach = [np.median(each.reach[1][each.values.max(axis=0) > 0.01]) for each in (near, far, alone)]
    assert reach[0] < 0.7 * reach[1] and reach[0] < 0.2 * reach[2]


def test_the_error_of_the_data_is_of_differences_on_the_same_parts():
    """Parts that move both spectra alike say nothing against a difference; parts that move one do."""
    rng = np.random.default_rng(0)

    def parts(analysis, shifts):
        values = analysis.full.spectrum.nodes[0]
        spectra = [{"whole": Spectrum.from_eigenvalues(values * (1 + shift))} for shift in shifts]
        return SpectralAnalysis({}, analysis.full, parts=spectra)

    one, other = exact_analysis(n=200, layers=False), exact_analysis(n=200, scale=1.3, layers=False)
    shifts = 0.1 * rng.standard_normal(6)
    alike = compare_densities([parts(one, shifts), parts(other, shifts)])
    apart = compare_densities([parts(one, shifts), parts(other, -shifts)])
    assert np.median(alike.data_stderr[1]) < 0.5 * np.median(apart.data_stderr[1])
    assert np.isnan(compare_densities([parts(one, shifts), parts(other, shifts[:4])]).data_stderr[1]).all()
