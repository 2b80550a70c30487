"""Bulk and edges of spectra with a known structure."""

import numpy as np
import pytest
import torch
from analyses import lanczos_quadrature

from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.analysis.fits import fit_marchenko_pastur, fit_semicircle
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.eigen import eigsh
from pyhessian_spectra.spectra.operator import MatrixOperator
from pyhessian_spectra.spectra.results import Eigenpairs, TraceEstimate
from pyhessian_spectra.spectra.slq import slq
from pyhessian_spectra.spectra.spectrum import Spectrum

NO_PAIRS = Eigenpairs(np.empty(0), np.empty(0), np.empty(0, dtype=bool))


def wigner(n: int, seed: int = 0) -> np.ndarray:
    """Symmetric, spectrum close to the semicircle on [-2, 2]."""
    a = np.random.default_rng(seed).standard_normal((n, n))
    return (a + a.T) / np.sqrt(2 * n)


def wishart(n: int, num: int, seed: int = 0) -> np.ndarray:
    """Positive semidefinite, spectrum close to the Marchenko-Pastur law of ratio n / num."""
    a = np.random.default_rng(seed).standard_normal((n, num))
    return a @ a.T / num


def planted(matrix: np.ndarray, outliers: list[float], seed: int = 1) -> np.ndarray:
    """The matrix with orthogonal rank-one parts added; an outlier well beyond the bulk moves only a little."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(matrix), len(outliers))))
    return matrix + (q * outliers) @ q.T


def block(spectrum: Spectrum, largest: Eigenpairs = NO_PAIRS, smallest: Eigenpairs = NO_PAIRS) -> BlockAnalysis:
    return BlockAnalysis(spectrum.n, spectrum, largest, smallest, TraceEstimate(0, 0, 0), TraceEstimate(0, 0, 0), 0)


@pytest.mark.parametrize(
    ("matrix", "outliers", "above", "below"),
    [
        (wigner(200), [6.0, 9.0], 2, 0),
        (wigner(200), [-7.0], 0, 1),
        (wigner(200), [5.0, 5.5, 6.0, -5.0], 3, 1),
        (wishart(150, 600), [10.0] * 3 + [20.0] * 7, 10, 0),
        (wishart(150, 50), [30.0, 40.0], 2, 0),
    ],
    ids=["two above", "one below", "both sides", "ten classes", "singular"],
)
def test_planted_outliers_are_the_edges(matrix, outliers, above, below):
    eigenvalues = np.linalg.eigvalsh(planted(matrix, outliers))
    split = split_bulk(eigenvalues)
    assert (split.num_above, split.num_below) == (above, below)
    np.testing.assert_array_equal(split.above, eigenvalues[len(eigenvalues) - above :])
    np.testing.assert_array_equal(split.below, eigenvalues[:below])
    assert split.bulk == (eigenvalues[below], eigenvalues[-above - 1])


def test_random_matrices_with_nothing_planted_are_rarely_split():
    splits = [split_bulk(np.linalg.eigvalsh(wigner(60, seed))) for seed in range(100)]
    splits += [split_bulk(np.linalg.eigvalsh(wishart(60, 180, seed))) for seed in range(100)]
    # the stated rates, 0.3 % and 3 %, make 3 of 200; 10 would be four standard deviations more
    assert sum(split.separable for split in splits) < 10
    refused = next(split for split in splits if not split.separable)
    assert "times the largest inside the bulk" in refused.reason
    assert str(refused).startswith("not separable: ")
    assert refused.gap_above is not None and refused.gap_above.over_inside < 3


def test_a_geometric_spectrum_has_no_gap():
    assert not split_bulk(0.5 ** np.arange(40)).separable


def test_an_exactly_singular_matrix_has_its_rank_as_edges_and_the_rest_at_zero():
    a = np.random.default_rng(0).standard_normal((60, 3))
    split = split_bulk(np.linalg.eigvalsh(a @ a.T))
    assert split.num_above == 3
    assert split.zero_mass == pytest.approx(57 / 60)
    assert split.negative_mass == 0.0


def test_the_zero_threshold_scales_with_the_spectrum_and_the_precision():
    values = np.concatenate([np.zeros(50), [1e-6, -1e-6, 1.0]])
    double, single = split_bulk(1e-5 * values), split_bulk(1e-5 * values, dtype=torch.float32)
    assert double.zero_threshold == pytest.approx(1e-5 * 53 * np.finfo(np.float64).eps)
    assert single.zero_threshold == pytest.approx(1e-5 * 53 * np.finfo(np.float32).eps)
    assert double.zero_mass == pytest.approx(50 / 53) and double.negative_mass == pytest.approx(1 / 53)
    assert single.zero_mass == pytest.approx(52 / 53) and single.negative_mass == 0.0


def test_scaling_and_mirroring_the_spectrum_scale_and_mirror_the_split():
    eigenvalues = np.linalg.eigvalsh(planted(wigner(100), [8.0, 9.0, -7.0]))
    split, scaled, mirrored = (split_bulk(values) for values in (eigenvalues, 1e-12 * eigenvalues, -eigenvalues))
    assert (split.num_above, split.num_below) == (scaled.num_above, scaled.num_below) == (2, 1)
    assert (mirrored.num_above, mirrored.num_below) == (1, 2)
    assert mirrored.bulk == (-split.bulk[1], -split.bulk[0])
    assert mirrored.gap_below.width == split.gap_above.width


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [2.0] * 30], ids=["one", "zeros", "equal"])
def test_equal_eigenvalues_are_not_separable(values):
    split = split_bulk(values)
    assert not split.separable and "equal to rounding" in split.reason
    assert split.bulk == (values[0], values[0])
    assert split.gap_above is None and split.gap_below is None
    assert split.to_json()["gap_above"] is None


def test_two_clusters_of_like_size_are_not_bulk_and_edge():
    split = split_bulk([0.0] * 10 + [1.0] * 10)
    assert not split.separable and "majority" in split.reason


def test_padding_with_weight_zero_changes_nothing():
    exact = Spectrum.from_eigenvalues(np.linalg.eigvalsh(planted(wigner(50), [9.0])))
    padded = Spectrum(
        np.append(exact.nodes, [[1e9, -1e9]], axis=1),
        np.append(exact.weights, [[0.0, 0.0]], axis=1),
        50,
        num_atoms=50,
        dtype="float64",
        exact=True,
    )
    assert split_bulk(padded).to_json() == split_bulk(exact).to_json()


@pytest.mark.parametrize("outliers", [[6.0, 9.0], [7.0, -5.0, -6.0]])
def test_an_estimate_and_the_exact_spectrum_agree_on_the_edges(outliers):
    matrix = planted(wigner(300), outliers)
    exact = split_bulk(np.linalg.eigvalsh(matrix))
    op = MatrixOperator(torch.from_numpy(matrix))
    estimate = split_bulk(slq(op, num_probes=4, num_steps=60, generator=torch.Generator().manual_seed(0)))
    assert exact.exact and not estimate.exact
    np.testing.assert_allclose(estimate.above, exact.above, rtol=1e-8)
    np.testing.assert_allclose(estimate.below, exact.below, rtol=1e-8)
    assert estimate.negative_mass == pytest.approx(exact.negative_mass, abs=0.1)


def test_the_masses_of_an_estimate_are_bounds_that_hold_the_exact_ones():
    # half of the eigenvalues are zero and a quarter negative, too close to zero for a quadrature to tell
    values = np.concatenate([np.zeros(200), -1e-6 * np.arange(1, 101), 1e-6 * np.arange(1, 99), [5.0, 6.0]])
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((400, 400)))
    op = MatrixOperator(torch.from_numpy((q * values) @ q.T))
    estimate = split_bulk(slq(op, num_probes=20, num_steps=12, generator=torch.Generator().manual_seed(0)))
    exact = split_bulk(values)
    assert exact.zero_bounds == pytest.approx((0.5, 0.5)) and exact.negative_bounds == pytest.approx((0.25, 0.25))
    for found, true in ((estimate.zero_bounds, 0.5), (estimate.negative_bounds, 0.25)):
        assert found[0] <= true <= found[1]
        assert found[1] - found[0] > 0.01
    assert "to" in str(estimate).split(";")[-1]


def test_converged_eigenpairs_count_what_a_quadrature_cannot():
    # a Krylov space sees a threefold eigenvalue once
    matrix = planted(wigner(200), [])
    values, vectors = np.linalg.eigh(matrix)
    values[-3:] = 9.0
    op = MatrixOperator(torch.from_numpy((vectors * values) @ vectors.T))
    generator = torch.Generator().manual_seed(0)
    spectrum = slq(op, num_probes=3, num_steps=50, generator=generator)
    pairs = eigsh(op, 3, tol=1e-12, generator=generator)
    assert split_bulk(spectrum).num_above == 1
    split = split_bulk(block(spectrum, pairs))
    assert split.num_above == 3
    assert split.gap_above.residual == pytest.approx(pairs.residuals[0])
    assert split.gap_above.over_residual > 1e8


def test_a_gap_within_the_residuals_is_no_boundary():
    spectrum = Spectrum.from_eigenvalues([0.0] * 20 + [1e-3, 2e-3, 3.0])
    sure, unsure = (Eigenpairs(np.array([3.0]), np.array([residual]), np.array([True])) for residual in (1e-9, 5.0))
    assert split_bulk(block(spectrum, sure)).num_above == 1
    split = split_bulk(block(spectrum, unsure))
    assert split.num_above == 0 and "within the error 5" in split.reason


def test_eigenpairs_that_did_not_converge_are_left_out():
    spectrum = slq(
        MatrixOperator(torch.from_numpy(planted(wigner(100), [8.0]))),
        num_probes=2,
        num_steps=40,
        generator=torch.Generator().manual_seed(0),
    )
    wrong = Eigenpairs(np.array([50.0]), np.array([20.0]), np.array([False]))
    np.testing.assert_array_equal(split_bulk(block(spectrum, wrong)).above, split_bulk(spectrum).above)


def test_zero_is_what_the_precision_of_the_products_and_their_measured_rounding_cannot_tell_from_it():
    values = [1e-6] * 9 + [1.0]
    for known, share in (({"dtype": "float32"}, 0.9), ({"rounding": 2e-6}, 0.9), ({"rounding": 5e-7}, 0.0), ({}, 0.0)):
        spectrum = Spectrum.from_eigenvalues(values, **known)
        # built in float64 whatever the model's dtype
        analysis = SpectralAnalysis({"dtype": "float32"}, block(spectrum))
        assert split_bulk(analysis).zero_mass == split_bulk(spectrum).zero_mass == pytest.approx(share)


def sketched(steps):
    """A semicircle with nine tenths of its mass moved to zero, as two short probes see it."""
    values = np.concatenate([np.zeros(900), np.linalg.eigvalsh(wigner(100))])
    return lanczos_quadrature(np.random.default_rng(0), values, probes=2, steps=steps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_bulk([1.0, np.nan, np.inf]), "2 eigenvalues are not finite"),
        (lambda: split_bulk([]), "empty"),
        (lambda: split_bulk([1.0, 2.0], factor=1.0), "factor must be above 1"),
        (lambda: split_bulk([1.0, 2.0], dtype="int64"), "floating type"),
        (lambda: fit_semicircle([2.0, 2.0, 2.0]), "no width"),
        (lambda: fit_marchenko_pastur(-np.arange(9.0)), "positive"),
        (lambda: fit_semicircle([*np.zeros(60), *np.linspace(-1, 1, 40)]), "60% of the bulk are zero"),
        (lambda: fit_marchenko_pastur(np.geomspace(1e-8, 1, 200)), "between its edges"),
        (lambda: fit_semicircle(sketched(20)), "not resolved"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_semicircle_is_recovered_beside_outliers():
    fit = fit_semicircle(np.linalg.eigvalsh(planted(wigner(400), [6.0, 7.0]) + 3 * np.eye(400)))
    assert fit.parameters["centre"] == pytest.approx(3.0, abs=0.05)
    assert fit.parameters["radius"] == pytest.approx(2.0, rel=0.03)
    assert fit.edges == pytest.approx((1.0, 5.0), abs=0.1)
    assert fit.distance < 0.02


@pytest.mark.parametrize("ratio", [0.25, 0.8, 1.6])
def test_the_marchenko_pastur_law_is_recovered_beside_outliers(ratio):
    n = 400
    fit = fit_marchenko_pastur(np.linalg.eigvalsh(planted(2.0 * wishart(n, int(n / ratio)), [40.0, 50.0])))
    assert fit.parameters["variance"] == pytest.approx(2.0, rel=0.03)
    assert fit.parameters["ratio"] == pytest.approx(ratio, rel=0.08)
    assert fit.distance < 0.02


def test_the_wrong_law_is_further_away():
    values = np.linalg.eigvalsh(wishart(300, 400))
    assert fit_semicircle(values).distance > 5 * fit_marchenko_pastur(values).distance


def test_a_block_of_an_analysis_knows_its_precision_on_its_own():
    spectrum = Spectrum.from_eigenvalues([1e-6] * 9 + [1.0])
    known = Spectrum(spectrum.nodes, spectrum.weights, 10, num_atoms=10, dtype="float32", exact=True)
    assert split_bulk(known).zero_mass == split_bulk(block(known)).zero_mass == pytest.approx(0.9)
    assert split_bulk(known, dtype="float64").zero_mass == 0.0


def test_eigenpairs_are_not_taken_for_a_spectrum():
    pairs = Eigenpairs(np.ones(2), np.zeros(2), np.ones(2, dtype=bool))
    with pytest.raises(InputError, match="part of a spectrum"):
        split_bulk(pairs)


def test_what_products_round_to_does_not_grow_with_the_number_of_parameters():
    # n eps would be 4 % of the largest: ten eigenvalues found one by one at -2 % would be called zero
    size = 300_000
    nodes, weights = np.array([[-2.0] * 10 + [0.0, 100.0]]), np.array([[1 / size] * 10 + [1 - 11 / size, 1 / size]])
    spectrum = Spectrum(nodes, weights, size, num_atoms=10, dtype="float32")
    split = split_bulk(spectrum)
    assert split.negative_mass == pytest.approx(10 / size)
    assert split.zero_threshold == pytest.approx(100 * 100 * np.finfo(np.float32).eps)
