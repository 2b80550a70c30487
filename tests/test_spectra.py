"""Identities of the eigensolvers, the Lanczos process and stochastic Lanczos quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import CASES

from pyhessian_spectra import HessianOperator, MatrixOperator, Meter, Spectrum, eigh, eigsh, lanczos, slq, trace
from pyhessian_spectra.errors import ConvergenceError, InputError
from pyhessian_spectra.spectra.space import forked

every_case = pytest.mark.parametrize("case", CASES)
EPS = np.finfo(np.float64).eps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_spectrum(eigenvalues, seed: int = 0, dtype=torch.float64) -> MatrixOperator:
    """A dense matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64))[0]
    matrix = q @ torch.diag(values) @ q.T
    return MatrixOperator(((matrix + matrix.T) / 2).to(dtype))


@every_case
@pytest.mark.parametrize("which", ["LA", "SA", "BE", "LM"])
def test_eigsh_equals_dense_eigh(case, which):
    op = HessianOperator(CASES[case]())
    dense = eigh(op).eigenvalues
    k = 4
    chosen = {
        "LA": dense[-k:],
        "SA": dense[:k],
        "BE": np.r_[dense[: k // 2], dense[-(k - k // 2) :]],
        "LM": np.sort(dense[np.argsort(np.abs(dense))[-k:]]),
    }[which]
    found = eigsh(op, k, which=which, generator=generator())
    np.testing.assert_allclose(found.eigenvalues, chosen, rtol=0, atol=1e-8 * np.abs(dense).max())
    assert found.converged.all()
    assert (np.diff(found.eigenvalues) >= 0).all()


@every_case
def test_residuals_are_those_of_fresh_products(case):
    op = HessianOperator(CASES[case]())
    pairs = eigsh(op, 3, generator=generator())
    matrix = op.to_dense().numpy()
    expected = np.linalg.norm(matrix @ pairs.eigenvectors - pairs.eigenvectors * pairs.eigenvalues, axis=0)
    np.testing.assert_allclose(pairs.residuals, expected, atol=1e3 * EPS * np.abs(matrix).max())


@every_case
def test_slq_is_exact_for_a_full_krylov_space(case):
    """At full depth a probe's quadrature is the measure it sees: sum of (q_i . v)^2 at lambda_i."""
    op = HessianOperator(CASES[case]())
    pairs = eigh(op)
    n, scale = op.shape[0], np.abs(pairs.eigenvalues).max()
    spectrum = slq(op, num_probes=1, num_steps=n, generator=generator(3))
    probe = torch.randn(n, generator=generator(3), dtype=torch.float64).numpy()
    seen = (pairs.eigenvectors.T @ (probe / np.linalg.norm(probe))) ** 2
    for power in range(6):  # equal measures have equal moments
        exact = float((seen * (pairs.eigenvalues / scale) ** power).sum())
        estimate = float((spectrum.weights[0] * (spectrum.nodes[0] / scale) ** power).sum())
        assert estimate == pytest.approx(exact, abs=1e-11)
    distinct = np.linspace(-1, 1, 41) * scale * 1.01  # away from eigenvalues, the distribution functions agree
    distinct = distinct[np.abs(distinct[:, None] - pairs.eigenvalues).min(axis=1) > 1e-6 * scale]
    np.testing.assert_allclose(
        spectrum.cdf(distinct), [(seen[pairs.eigenvalues <= x]).sum() for x in distinct], atol=1e-9
    )


@every_case
@pytest.mark.parametrize("num_steps", [2, 5])
@pytest.mark.parametrize("deflated", [0, 2])
def test_the_bounds_of_a_cdf_hold_what_the_probe_sees(case, num_steps, deflated):
    op = HessianOperator(CASES[case]())
    pairs, n = eigh(op), op.shape[0]
    edges = pairs.take(slice(n - deflated, n))
    spectrum = slq(op, num_probes=1, num_steps=num_steps, deflate=edges, generator=generator(3))
    source = forked(generator(3)) if deflated else generator(3)
    probe = torch.randn(n, generator=source, dtype=torch.float64).numpy()
    seen = (pairs.eigenvectors.T @ probe) ** 2
    seen = np.r_[seen[: n - deflated] / seen[: n - deflated].sum() * (n - deflated), np.ones(deflated)] / n
    scale = np.abs(pairs.eigenvalues).max()
    grid = np.linspace(-1.01, 1.01, 401) * scale  # away from eigenvalues, whose place is known to rounding only
    grid = grid[np.abs(grid[:, None] - pairs.eigenvalues).min(axis=1) > 1e-6 * scale]
    lower, upper = spectrum.cdf_bounds(grid)
    exact = np.array([seen[pairs.eigenvalues <= x].sum() for x in grid])
    assert (lower <= exact + 1e-9).all() and (exact <= upper + 1e-9).all()
    assert (lower <= spectrum.cdf(grid) + 1e-12).all() and (spectrum.cdf(grid) <= upper + 1e-12).all()


def test_the_bounds_of_a_cdf_are_a_weight_apart_at_the_nodes_and_no_more_than_two_between_them():
    spectrum = Spectrum(
        np.array([[0.0, 1.0, 2.0, 2.0]]), np.array([[0.2, 0.5, 0.3, 0.0]]), 10, num_atoms=0, dtype="float64"
    )
    lower, upper = spectrum.cdf_bounds([0.0, 1.0, 2.0])
    np.testing.assert_allclose([lower, upper], [[0.0, 0.2, 0.7], [0.2, 0.7, 1.0]])
    lower, upper = spectrum.cdf_bounds([-1.0, 0.5, 1.5, 3.0])
    assert (lower > [-1e-9, 0.0, 0.2, 0.7 - 1e-9]).all() and (upper < [0.2 + 1e-9, 0.7, 1.0, 1.0 + 1e-9]).all()


def test_the_bounds_of_an_exact_cdf_are_the_cdf():
    spectrum = Spectrum.from_eigenvalues([-1.0, 0.0, 0.0, 2.0])
    for bound in spectrum.cdf_bounds([-1.0, 0.0, 1.0]):
        np.testing.assert_array_equal(bound, [0.25, 0.75, 0.75])


def test_lanczos_basis_is_orthonormal_and_reduces_the_operator():
    op = with_spectrum(np.r_[np.linspace(-1, 1, 80), 50.0, 100.0])
    tridiagonal = lanczos(op, torch.randn(82, generator=generator(), dtype=torch.float64), 40)
    v, t = tridiagonal.basis.T, np.diag(tridiagonal.alphas)
    t += np.diag(tridiagonal.betas[:-1], 1) + np.diag(tridiagonal.betas[:-1], -1)
    remainder = (op @ v).numpy() - v.numpy() @ t
    assert tridiagonal.orthogonality < 1e2 * EPS
    assert np.abs(remainder[:, :-1]).max() < 1e3 * EPS * 100
    assert np.linalg.norm(remainder[:, -1]) == pytest.approx(tridiagonal.betas[-1], rel=1e-9)


def test_lanczos_stops_where_the_krylov_space_is_invariant():
    op = with_spectrum([3.0] * 5 + [1.0] * 4 + [0.0] * 11)
    tridiagonal = lanczos(op, torch.randn(20, generator=generator(), dtype=torch.float64), 20)
    assert len(tridiagonal.alphas) == 3 and tridiagonal.betas[-1] == 0
    np.testing.assert_allclose(tridiagonal.eigh()[0], [0.0, 1.0, 3.0], atol=1e-13)


def test_lanczos_against_locked_vectors_runs_on_their_complement():
    op = with_spectrum([100.0, 50.0, *np.linspace(0, 1, 18)])
    locked = eigsh(op, 2, generator=generator())
    tridiagonal = lanczos(
        op,
        torch.randn(20, generator=generator(), dtype=torch.float64),
        18,
        against=torch.from_numpy(locked.eigenvectors),
    )
    np.testing.assert_allclose(tridiagonal.eigh()[0], np.linspace(0, 1, 18), atol=1e-10)


def test_every_eigenvalue_comes_with_its_true_multiplicity():
    """Deeper than convergence, without reorthogonalisation, copies of 100 would appear."""
    op = with_spectrum(np.r_[np.linspace(0, 1, 197), 60.0, 80.0, 100.0])
    nodes, _ = lanczos(op, torch.randn(200, generator=generator(), dtype=torch.float64), 120).eigh()
    assert (nodes > 50).sum() == 3
    top = eigsh(op, 14, generator=generator()).eigenvalues
    np.testing.assert_allclose(top[-4:], [1.0, 60.0, 80.0, 100.0], atol=1e-10)
    doubled = eigsh(with_spectrum(np.r_[np.linspace(0, 1, 97), 5.0, 5.0, 7.0]), 4, generator=generator())
    np.testing.assert_allclose(doubled.eigenvalues, [1.0, 5.0, 5.0, 7.0], atol=1e-10)


def test_deflated_quadrature_keeps_atoms_exact_and_resolves_a_narrow_bulk():
    bulk = np.linspace(-0.025, 0.025, 190)
    outliers = np.linspace(50, 100, 10)
    exact = Spectrum.from_eigenvalues(np.r_[bulk, outliers])
    op = with_spectrum(np.r_[bulk, outliers])
    spectrum = slq(op, num_probes=4, num_steps=40, deflate=eigsh(op, 10, generator=generator()), generator=generator(1))
    assert spectrum.cdf(1.0) == pytest.approx(0.95, abs=1e-12)
    assert spectrum.moment(1) == pytest.approx(exact.moment(1), rel=1e-3)
    grid = np.linspace(-0.024, 0.024, 33)
    assert np.abs(spectrum.cdf(grid) - exact.cdf(grid)).max() < 0.1


def test_slq_mean_over_probes_is_unbiased_for_the_moments():
    eigenvalues = np.r_[np.linspace(0, 1, 60), 4.0]
    spectrum = slq(with_spectrum(eigenvalues), num_probes=200, num_steps=8, generator=generator())
    samples = (spectrum.weights * spectrum.nodes).sum(axis=1)
    stderr = samples.std(ddof=1) / np.sqrt(len(samples))
    assert abs(samples.mean() - eigenvalues.mean()) < 4 * stderr


@pytest.mark.parametrize("scale", [5e-6, 1.0, 1e9])
def test_everything_scales_with_the_operator(scale):
    eigenvalues = np.r_[np.zeros(30), np.linspace(0.1, 1, 30)]
    op, scaled = with_spectrum(eigenvalues), with_spectrum(scale * eigenvalues)
    for which in ("LA", "SA"):
        np.testing.assert_allclose(
            eigsh(scaled, 3, which=which, generator=generator()).eigenvalues / scale,
            eigsh(op, 3, which=which, generator=generator()).eigenvalues,
            atol=1e-12,
        )
    nodes = slq(scaled, num_probes=2, num_steps=60, generator=generator()).nodes / scale
    assert nodes.min() > -1e-12 and nodes.max() < 1 + 1e-12


def test_a_low_rank_operator_ends_lanczos_without_nan():
    vectors = torch.randn(50, 3, generator=generator(), dtype=torch.float64)
    spectrum = slq(MatrixOperator(vectors @ vectors.T), num_probes=3, num_steps=30, generator=generator(1))
    assert spectrum.facts["steps"] <= 5  # three eigenvalues and zero, and perhaps one vector of rounding
    expected = np.linalg.eigvalsh((vectors.T @ vectors).numpy())
    for nodes, weights in zip(spectrum.nodes, spectrum.weights, strict=True):
        np.testing.assert_allclose(nodes[weights > 1e-12][-3:], expected, rtol=1e-10)


def test_seeds_repeat_and_none_does_not():
    op = with_spectrum(np.linspace(0, 1, 30))
    runs = [slq(op, num_probes=2, num_steps=5, generator=g).nodes for g in (generator(0), generator(0), generator(1))]
    assert (runs[0] == runs[1]).all()
    assert not np.intersect1d(runs[0], runs[2]).size  # no probe is shared between seeds
    fresh = [slq(op, num_probes=1, num_steps=5).nodes for _ in range(2)]
    assert not np.intersect1d(*fresh).size


def test_global_random_state_is_untouched():
    op = with_spectrum(np.linspace(0, 1, 30))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    slq(op, num_probes=1, num_steps=5)
    eigsh(op, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_partial_results_survive_non_convergence():
    op = with_spectrum(np.r_[np.linspace(0, 1, 299), 10.0])
    with pytest.raises(ConvergenceError, match="raise max_products") as error:
        eigsh(op, 10, max_products=12, generator=generator())
    assert len(error.value.partial) < 10


def test_a_negative_eigenvalue_of_largest_magnitude_is_not_called_largest():
    op = with_spectrum([-10.0, *np.linspace(0, 1, 20), 5.0])
    assert eigsh(op, 1, which="LA", generator=generator()).eigenvalues[0] == pytest.approx(5.0)
    assert eigsh(op, 1, which="SA", generator=generator()).eigenvalues[0] == pytest.approx(-10.0)
    assert eigsh(op, 1, which="LM", generator=generator()).eigenvalues[0] == pytest.approx(-10.0)


@pytest.mark.parametrize("k", [0, 20, 25])
def test_k_out_of_range_is_refused_with_the_remedy(k):
    with pytest.raises(InputError, match="use eigh"):
        eigsh(with_spectrum(np.arange(20.0)), k)


def test_float32_products_give_float32_accuracy_and_say_so():
    eigenvalues = np.r_[np.linspace(-0.01, 0.01, 97), 10.0, 50.0, 100.0]
    pairs = eigsh(with_spectrum(eigenvalues, dtype=torch.float32), 3, generator=generator())
    np.testing.assert_allclose(pairs.eigenvalues, [10.0, 50.0, 100.0], atol=100 * np.finfo(np.float32).eps * 100)
    assert pairs.converged.all() and pairs.residuals.max() < 1e-3


def test_density_integrates_to_the_mass_on_the_grid_and_is_not_renormalised():
    spectrum = Spectrum.from_eigenvalues([0.0, 0.0, 0.0, 10.0])
    grid = np.linspace(-1, 1, 2001)
    mass = np.trapezoid(spectrum.density(grid, bandwidth=0.05), grid)
    assert mass == pytest.approx(0.75, abs=1e-9)


@pytest.mark.parametrize(
    ("nodes", "weights"), [([[0.0, 1.0]], [[0.5, 0.6]]), ([[0.0, 1.0]], [[1.5, -0.5]]), ([[np.nan, 1.0]], [[0.5, 0.5]])]
)
def test_what_is_not_a_measure_is_refused(nodes, weights):
    with pytest.raises(InputError, match="must"):
        Spectrum(np.array(nodes), np.array(weights), 2, num_atoms=0, dtype="float64")


def test_operator_algebra_counts_products_and_refuses_what_does_not_fit():
    a, b = with_spectrum(np.arange(6.0)), with_spectrum(np.arange(6.0), seed=1)
    counted = Meter(a)
    combined = Meter(2 * counted - b)
    v = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(combined @ v, 2 * (a @ v) - b @ v)
    assert combined.num_products == counted.num_products == 3
    assert combined.kind == "2 matrix - matrix"
    np.testing.assert_allclose(combined.to_scipy() @ v.numpy(), (combined @ v).numpy())
    with pytest.raises(InputError, match="multiplies tensors of shape"):
        combined @ torch.ones(5, dtype=torch.float64)
    with pytest.raises(InputError, match="convert the vector"):
        combined @ torch.ones(6)
    with pytest.raises(InputError, match="do not combine"):
        a + with_spectrum(np.arange(5.0))
    with pytest.raises(InputError, match="not symmetric"):
        MatrixOperator(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize("call", [lambda a: eigh(a), lambda a: eigsh(a, 2), lambda a: slq(a), lambda a: trace(a)])
def test_what_is_no_operator_is_refused_with_the_remedy(call):
    with pytest.raises(InputError, match=r"MatrixOperator\(matrix\)"):
        call(torch.eye(5))


def test_a_deflated_band_holds_the_truth_where_pairs_are_coarse_and_the_seed_is_that_of_eigsh():
    values = np.sort(1 / np.arange(1.0, 61.0) ** 2)
    for seed in range(20):
        op = with_spectrum(values, seed)
        pairs = eigsh(op, 5, which="BE", tol=1e-2, generator=generator(seed))
        spectrum = slq(op, num_probes=3, num_steps=20, deflate=pairs, generator=generator(seed))
        assert spectrum.residual == pytest.approx(np.linalg.norm(pairs.residuals)) and spectrum.residual > 1e-5
        grid = np.r_[np.linspace(0, 1, 200), (pairs.eigenvalues[-3:] + values[-3:]) / 2]
        lower, upper = spectrum.cdf_bounds(grid, level=0.99)
        true = np.searchsorted(values, grid, side="right") / 60
        assert (lower <= true + 1e-12).all() and (true <= upper + 1e-12).all()
