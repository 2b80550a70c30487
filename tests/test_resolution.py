"""What is called resolved is so: cells hold as many eigenvalues as they say, and intervals the share they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from analyses import lanczos_quadrature, network_eigenvalues, pairs

from pyhessian_spectra import MatrixOperator, analyze_operator
from pyhessian_spectra.analysis.resolution import confidence, known_others, narrowest_interval, resolved_cells
from pyhessian_spectra.spectra.spectrum import Spectrum

EDGES = np.concatenate([-np.geomspace(1, 1e-6, 40), [0.0], np.geomspace(1e-6, 200, 60)])


def test_cells_of_a_list_of_eigenvalues_are_a_histogram():
    values = np.random.default_rng(0).normal(size=300)
    edges = np.linspace(-6, 6, 50)
    cells = resolved_cells(Spectrum.from_eigenvalues(values), edges)
    np.testing.assert_array_equal(cells.edges, edges)
    for counts in (cells.counts, cells.lower, cells.upper):
        np.testing.assert_allclose(counts, np.histogram(values, edges)[0], atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_cells_hold_as_many_eigenvalues_as_they_say(seed):
    rng = np.random.default_rng(seed)
    values = network_eigenvalues(rng, 2000, width=[1e-6, 1e-4, 1e-2][seed % 3])
    cells = resolved_cells(lanczos_quadrature(rng, values, probes=2, steps=40), EDGES)
    truth = np.diff(np.searchsorted(values, cells.edges, side="right"))
    assert (cells.lower <= truth).all() and (truth <= cells.upper).all()
    assert cells.counts.sum() == pytest.approx(2000)
    assert len(cells.counts) > 1 and (cells.upper <= 10 * np.maximum(cells.lower, 0.05)).all()


@pytest.mark.parametrize("share", [0.3, 0.9, 0.97])
@pytest.mark.parametrize("shift", [0.0, 0.5, -3.0])
def test_an_interval_holds_the_share_it_is_asked_for(share, shift):
    rng = np.random.default_rng(3)
    values = network_eigenvalues(rng, 4000) + shift
    low, high = narrowest_interval(lanczos_quadrature(rng, values, probes=2, steps=60), share)
    assert np.mean((values > low) & (values <= high)) >= share
    assert high - low < 2  # of a range of 100


def test_the_process_that_found_the_edges_narrows_the_bounds_and_they_still_hold():
    values = network_eigenvalues(np.random.default_rng(0), 400, width=1e-2)
    op = MatrixOperator(torch.diag(torch.from_numpy(values)))
    grid = np.linspace(-0.03, 0.03, 41)
    exact = Spectrum.from_eigenvalues(values).cdf(grid)
    held, narrower = 0, []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        found = analyze_operator(op, exact_limit=0, num_eigenvalues=8, num_steps=12, generator=generator)
        spectrum = found.spectrum
        assert spectrum.whole.shape[1] > 12
        lower, upper = spectrum.cdf_bounds(grid, level=0.99)
        alone = dataclasses.replace(spectrum, whole=None).cdf_bounds(grid, level=0.995)
        assert (lower >= alone[0]).all() and (upper <= alone[1]).all()
        held += (lower <= exact + 1e-12).all() and (exact <= upper + 1e-12).all()
        narrower.append(np.mean(upper - lower) / np.mean(alone[1] - alone[0]))
        assert 2 * spectrum.cdf_error(level=0.99) >= (upper - lower).max() - 1e-12
    assert held == 10 and np.median(narrower) < 0.9


@pytest.mark.parametrize(("size", "longer"), [(1200, True), (150, False)])
def test_products_to_resolve_more_go_where_they_narrow(size, longer):
    values = np.random.default_rng(1).uniform(-1, 1, size)
    op = MatrixOperator(torch.diag(torch.from_numpy(values)))
    settings = {"exact_limit": 0, "num_eigenvalues": 2, "num_steps": 5 if longer else 40, "trace_probes": 2}
    settings |= {"tol": 1e-2}
    spectra = [
        analyze_operator(op, resolve=resolve, generator=torch.Generator().manual_seed(0), **settings)
        for resolve in (0, 200)
    ]
    before, after = (found.spectrum for found in spectra)
    more = 2 * len(spectra[1].spectrum.nodes)  # each probe's rounding is measured by two
    assert 0 < spectra[1].num_products - spectra[0].num_products <= 200 + more
    assert after.cdf_error(level=0.99) < 0.75 * before.cdf_error(level=0.99)
    assert after.num_probes > 2 or longer
    assert (after.facts["steps_per_probe"] > settings["num_steps"]) is longer
    exact = Spectrum.from_eigenvalues(values)
    lower, upper = after.cdf_bounds(np.linspace(-1, 1, 99), level=0.99)
    truth = exact.cdf(np.linspace(-1, 1, 99))
    assert (lower <= truth + 1e-12).all() and (truth <= upper + 1e-12).all()


def test_bounds_rely_on_the_interval_of_the_others_only_where_the_atoms_are_the_pairs_it_came_with():
    values = network_eigenvalues(np.random.default_rng(2), 500)
    spectrum = Spectrum(values[None, 10:], np.full((1, 490), 1 / 490), 500, num_atoms=0, dtype="float64")
    top = pairs(values[-10:], relative=1e-8, others=(-1.0, 1.0))
    assert known_others(spectrum, [top]) is None and confidence(None) == "99 %"
    known = known_others(dataclasses.replace(spectrum, num_atoms=10), [top])
    assert known == (-1.0, 1.0) and confidence(known) == "98 %"


def test_an_eigenvalue_that_may_lie_beyond_an_edge_is_in_neither_cell_for_certain():
    values, edges = [-1, 0.999, 1.5, 3], [-2, 0.5, 1, 2, 4]
    sharp = resolved_cells(Spectrum.from_eigenvalues(values), edges)
    assert sharp.edges.tolist() == edges and sharp.lower.tolist() == sharp.upper.tolist() == [1, 1, 1, 1]
    blurred = resolved_cells(Spectrum.from_eigenvalues(values, rounding=0.01), edges)
    assert blurred.edges.tolist() == [-2, 0.5, 2, 4]
    assert blurred.lower.tolist() == blurred.upper.tolist() == [1, 2, 1]
