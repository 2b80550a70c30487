"""Bounds of distribution functions and densities hold the truth at their rate, and are narrow enough to be of use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from passes import run_pass

from pyhessian_spectra import MatrixOperator, Spectrum, slq
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import EigenvalueAxis
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.quadrature import (
    bracket,
    largest_probe_error,
    probe_bounds,
    step_bounds,
)

LEVEL = 1 - FAILURE
OUTLIERS = np.geomspace(1.0, 100.0, 8)


def operator(eigenvalues):
    return MatrixOperator(torch.diag(torch.from_numpy(np.asarray(eigenvalues, dtype=np.float64))))


def one_pass(eigenvalues, seed, *, num_probes=2, num_steps=12, k=8):
    steps = {"num_probes": num_probes, "num_steps": num_steps, "max_steps": 300}
    return run_pass(operator(eigenvalues), k=k, tol=1e-6, generator=torch.Generator().manual_seed(seed), **steps)


def fraction(eigenvalues, grid):
    return np.searchsorted(np.sort(eigenvalues), grid, side="right") / len(eigenvalues)


def gauss(nodes, weights, num_nodes):
    """The Gauss quadrature of a discrete measure, through the Krylov space of its weights' roots."""
    q, _ = np.linalg.qr(np.sqrt(weights)[:, None] * np.polynomial.chebyshev.chebvander(nodes, num_nodes - 1))
    theta, vectors = np.linalg.eigh(q.T @ (nodes[:, None] * q))
    return theta, (q.T @ np.sqrt(weights) @ vectors) ** 2


def test_both_bands_hold_the_truth_everywhere_at_the_stated_rate_over_200_seeds():
    bulk = np.random.default_rng(0).normal(0, 1e-2, 32)
    eigenvalues = np.sort(np.r_[bulk, OUTLIERS[-4:]])
    exact = Spectrum.from_eigenvalues(eigenvalues)
    axis = EigenvalueAxis.fit([exact])
    # Just before and just after each eigenvalue; atoms are known to 1e-6 only.
    points = np.r_[bulk - 1e-9, bulk + 1e-9, axis.eigenvalues(np.linspace(axis.low, axis.high, 40))]
    points = points[np.abs(points[:, None] - OUTLIERS).min(axis=1) > 1e-3]
    true = fraction(eigenvalues, points)
    some = points[::3]
    wide = replace(exact, nodes=axis.decades(exact.nodes)).density(axis.decades(some), bandwidth=0.2)
    missed = {"cdf": 0, "density": 0, "without the probes": 0}
    for seed in range(200):
        found = one_pass(eigenvalues, seed, num_steps=32, k=4)  # nothing but the probes' error is left
        spectrum, others = found.spectrum, found.largest.others
        low, high = spectrum.cdf_bounds(points, level=LEVEL, others=others)
        missed["cdf"] += bool((low > true + 1e-9).any() or (true - 1e-9 > high).any())
        low, high = spectrum.density_bounds(some, bandwidth=0.2, level=LEVEL, others=others, coordinate=axis.decades)
        missed["density"] += bool((low > wide + 1e-4).any() or (wide - 1e-4 > high).any())
        low, high = spectrum.cdf_bounds(points, others=others)
        missed["without the probes"] += bool((low > true + 1e-9).any() or (true - 1e-9 > high).any())
    most = scipy.stats.binom.ppf(0.999, 200, 2 * FAILURE)
    assert missed["cdf"] <= most and missed["density"] <= most
    assert missed["without the probes"] > 150


def test_the_bound_over_probes_holds_for_what_ideal_probes_see_and_is_less_than_twice_too_wide():
    rng, size, probes = np.random.default_rng(1), 100, 3
    squares = rng.standard_normal((1000, probes, size)) ** 2
    seen = (np.cumsum(squares, axis=2) / squares.sum(axis=2, keepdims=True)).mean(axis=1)
    ranks = np.arange(1, size + 1) / size
    for level in (0.5, 0.9, 0.99):
        low, high = probe_bounds(seen, seen, probes, size, level=level)
        assert ((low <= ranks + 1e-9) & (ranks <= high + 1e-9)).all(axis=1).mean() >= level
    needed = np.quantile(np.abs(seen - ranks).max(axis=1), LEVEL)
    assert needed <= largest_probe_error(probes, size, level=LEVEL) < 2 * needed
    assert (high - seen).max() <= largest_probe_error(probes, size, level=0.99)  # Pinsker's inequality
    few = np.array([0.01])  # where few eigenvalues are, the band is narrower
    assert probe_bounds(few, few, probes, 10**5, level=LEVEL)[1] - few < 0.3 * largest_probe_error(
        probes, 10**5, level=LEVEL
    )


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8, 15])
def test_brackets_hold_the_measure_and_are_narrower_than_those_between_the_nodes(num_nodes):
    rng = np.random.default_rng(num_nodes)
    for _ in range(10):
        nodes = np.sort(rng.choice([-1, 1], 200) * rng.random(200) ** 3)
        weights = rng.dirichlet(np.full(200, 0.5))
        theta, masses = gauss(nodes, weights, num_nodes)
        grid = np.linspace(-1.1, 1.1, 500)
        true = np.array([weights[nodes <= x].sum() for x in grid])
        low, high = step_bounds(*bracket(theta, masses), grid)
        assert (low <= true + 1e-10).all() and (true <= high + 1e-10).all()
        plain = step_bounds(theta, np.cumsum(masses) - masses, np.cumsum(masses), grid)  # those at the nodes only
        assert (plain[0] <= low + 1e-10).all() and (high <= plain[1] + 1e-10).all()
        if num_nodes > 2:
            assert (high - low).mean() < 0.75 * (plain[1] - plain[0]).mean()


def test_brackets_hold_where_rounding_hides_the_last_entries_of_the_eigenvectors():
    eigenvalues = np.r_[np.linspace(-1e-6, 1e-6, 50), 1.0, 1e4]
    points = np.r_[np.linspace(-1.1e-6, 1.1e-6, 101), 0.5, 1.5, 2e4]
    for steps in (4, 8, 20, 40):
        spectrum = slq(operator(eigenvalues), num_probes=2, num_steps=steps, generator=torch.Generator().manual_seed(0))
        low, high = spectrum.cdf_bounds(points, level=LEVEL)
        true = fraction(eigenvalues, points)
        assert (low <= true).all() and (true <= high).all()


def test_density_bounds_are_reached_by_distributions_between_the_bounds_of_the_cdf():
    spectrum = slq(
        operator(np.linspace(-1, 1, 60)), num_probes=1, num_steps=6, generator=torch.Generator().manual_seed(0)
    )
    fine = np.linspace(-2, 2, 40_001)
    middle = (fine[1:] + fine[:-1]) / 2
    others = (-1.0, 1.0)
    low, high = spectrum.cdf_bounds(fine, level=LEVEL, others=others)
    for x in (-0.8, 0.0, 0.35):
        at = low[np.searchsorted(fine, x)], high[np.searchsorted(fine, x)]
        kernel = scipy.stats.norm.pdf(middle, x, 0.3)
        # With most mass at x, and with most mass pushed away from it past the rank c.
        candidates = [np.where(fine < x, low, high)]
        candidates += [np.where(fine < x, np.minimum(high, c), np.maximum(low, c)) for c in np.linspace(*at, 400)]
        densities = np.array([kernel @ np.diff(cdf) for cdf in candidates])
        bounds = spectrum.density_bounds([x], bandwidth=0.3, level=LEVEL, others=others)
        assert bounds[1][0] == pytest.approx(densities.max(), rel=1e-3)
        assert bounds[0][0] == pytest.approx(densities.min(), rel=1e-3)


def test_a_bulk_ten_thousand_times_narrower_than_the_range_is_resolved():
    width, size = 1e-2, 400
    bulk = width * (np.arange(size) + 0.5) / size
    found = one_pass(np.r_[bulk, OUTLIERS], 0, num_probes=4, num_steps=60)
    spectrum, others = found.spectrum, found.largest.others
    atoms = spectrum.nodes[0, : spectrum.num_atoms]
    np.testing.assert_allclose(np.sort(atoms)[-len(OUTLIERS) :], OUTLIERS, rtol=1e-6)
    points = np.linspace(0.0, width, 201)
    low, high = spectrum.cdf_bounds(points, level=LEVEL, others=others)
    true = fraction(np.r_[bulk, OUTLIERS], points)
    assert (low <= true + 1e-9).all() and (true <= high + 1e-9).all()
    half = float((high - low).max()) / 2
    # The probes' share, and one node's weight: pi / (2 m) at most for a uniform bulk.
    assert half < largest_probe_error(4, size, level=LEVEL) + np.pi / (2 * 60)
    # In a uniform bulk, a fraction that is off by 2 half puts a quantile off by 2 half times the width.
    estimate = spectrum.cdf(points)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        at = points[np.searchsorted(estimate, quantile * size / (size + len(OUTLIERS)))]
        assert at == pytest.approx(quantile * width, abs=(2 * half + 1 / 100) * width)


def test_the_density_band_is_not_vacuous():
    values = np.linspace(0.0, 1.0, 2000)
    spectrum = slq(operator(values), num_probes=4, num_steps=100, generator=torch.Generator().manual_seed(0))
    low, high = spectrum.density_bounds([0.3, 0.5, 0.7], bandwidth=0.1, level=LEVEL)
    assert (low > 0.5).all() and (high < 1.6).all() and (low < 1).all() and (high > 1).all()
    outside = spectrum.density_bounds([-2.0, 3.0], bandwidth=0.1, level=LEVEL, others=(0.0, 1.0))[1]
    assert (outside < 1e-12).all()


def test_an_exact_spectrum_has_its_own_density_as_both_bounds():
    spectrum = Spectrum.from_eigenvalues([0.0, 1.0, 3.0])
    for bound in spectrum.density_bounds([0.0, 0.5], bandwidth=0.2, level=LEVEL):
        np.testing.assert_array_equal(bound, spectrum.density([0.0, 0.5], bandwidth=0.2))


@pytest.mark.parametrize("level", [0.0, 1.0, 99.0])
def test_a_level_that_is_no_probability_is_refused(level):
    spectrum = slq(operator([1.0, 2.0, 3.0]), num_probes=1, num_steps=2)
    with pytest.raises(InputError, match="between 0 and 1"):
        spectrum.cdf_bounds([0.0], level=level)
