"""Trace and Frobenius estimators: exactness where theory says so, and honest error bars."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_spectra import generator, with_spectrum

from pyhessian_spectra import MatrixOperator, frobenius_norm, trace
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.trace import METHODS, _xtrace, mean_of, samples_for

every_method = pytest.mark.parametrize("method", METHODS)


def naive_xtrace(matrix: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Leave-one-out estimates as defined, one basis at a time (Epperly, Tropp and Webber 2024, section 2.1)."""
    n, m = w.shape
    estimates = np.empty(m)
    for i in range(m):
        q = np.linalg.qr(matrix @ np.delete(w, i, axis=1))[0]
        rest = w[:, i] - q @ (q.T @ w[:, i])
        rest *= np.sqrt((n - q.shape[1]) / (rest @ rest))
        estimates[i] = np.trace(q.T @ matrix @ q) + rest @ matrix @ rest
    return estimates


def test_xtrace_equals_its_leave_one_out_definition():
    op = with_spectrum(np.r_[np.exp(-np.arange(30.0) / 4), -0.3])
    estimates = _xtrace(op, 16, generator(4))[0]
    w = torch.randn(31, 8, generator=generator(4), dtype=torch.float64).numpy()
    w *= np.sqrt(31) / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(estimates, naive_xtrace(op.to_dense().numpy(), w), rtol=1e-9)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_low_rank_traces_are_exact(method):
    op = with_spectrum([3.0, -2.0, 7.0] + [0.0] * 40)
    estimate = trace(op, num_probes=24, method=method, generator=generator())
    assert estimate.value == pytest.approx(8.0, abs=1e-10)
    assert estimate.stderr < 1e-10


@every_method
def test_the_zero_operator_has_trace_zero(method):
    estimate = trace(MatrixOperator(torch.zeros(9, 9, dtype=torch.float64)), num_probes=9, method=method)
    assert (estimate.value, estimate.stderr) == (0.0, 0.0)


@every_method
def test_the_standard_error_is_honest_over_many_seeds(method):
    """With 200 seeds the share within two standard errors has a standard deviation of about 2 %; 95 % less 4 of
    those, and the small-sample widening of Student's t at 10 samples (2 stderr cover 92.6 %), give 85 %."""
    eigenvalues = np.r_[np.linspace(-0.5, 1, 298), 5.0, 20.0]
    op = with_spectrum(eigenvalues)
    estimates = [trace(op, num_probes=30, method=method, generator=generator(seed)) for seed in range(200)]
    errors = np.array([(e.value - eigenvalues.sum()) / e.stderr for e in estimates])
    assert (np.abs(errors) < 2).mean() > 0.85
    assert np.median(np.abs(errors)) > 0.2  # and not far too large
    assert abs(np.mean([e.value for e in estimates]) - eigenvalues.sum()) < 4 * np.std(
        [e.value for e in estimates]
    ) / np.sqrt(200)
    assert all(e.num_products == 32 for e in estimates)  # two of them for the rounding


HARD = {
    "two by two": torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64),
    "an outlier": with_spectrum(np.r_[50.0, np.ones(39)]).to_dense(),
    "rank one": with_spectrum(np.r_[1.0, np.zeros(39)]).to_dense(),
    "bulk and outliers": with_spectrum(np.r_[np.linspace(-0.2, 0.2, 36), 1.0, 2.0, 3.0, 4.0]).to_dense(),
    "rare large entries": torch.block_diag(1 - torch.eye(6, dtype=torch.float64), torch.zeros(34, 34)),
}


@every_method
@pytest.mark.parametrize("num_probes", [9, 15])
@pytest.mark.parametrize("name", HARD)
def test_intervals_cover_the_trace_at_their_rate(name, num_probes, method):
    """100 seeds: 95 % less three binomial standard deviations of 2.2 % is 88.4 %."""
    op, truth = MatrixOperator(HARD[name]), float(HARD[name].trace())
    slack, hits = 1e-12 * float(HARD[name].abs().sum()), 0
    for seed in range(100):
        low, high = trace(op, num_probes=num_probes, method=method, generator=generator(seed)).interval(0.95)
        hits += low - slack <= truth <= high + slack
    assert hits >= 0.884 * 100


@pytest.mark.parametrize("num_probes", [2, 4, 10])
@pytest.mark.parametrize("name", HARD)
def test_intervals_cover_the_norm_at_their_rate(name, num_probes):
    op, truth, hits = MatrixOperator(HARD[name]), float(HARD[name].norm()), 0
    for seed in range(100):
        low, high = frobenius_norm(op, num_probes=num_probes, generator=generator(seed)).interval(0.95)
        hits += low * (1 - 1e-12) <= truth <= high * (1 + 1e-12)
    assert hits >= 0.884 * 100


def test_frobenius_norm_covers_the_truth():
    eigenvalues = np.r_[np.linspace(-0.5, 1, 40), 5.0]
    op, truth = with_spectrum(eigenvalues), np.linalg.norm(eigenvalues)
    errors = []
    for seed in range(100):
        estimate = frobenius_norm(op, num_probes=40, generator=generator(seed))
        errors.append((estimate.value - truth) / estimate.stderr)
    assert (np.abs(errors) < 2).mean() > 0.85


@every_method
def test_too_few_probes_are_refused(method):
    with pytest.raises(InputError, match="num_probes of at least"):
        trace(with_spectrum(np.arange(8.0)), num_probes=1, method=method)


def test_unknown_methods_are_refused_naming_the_known_ones():
    with pytest.raises(InputError, match="hutchinson, hutch\\+\\+, xtrace"):
        trace(with_spectrum(np.arange(8.0)), method="hutch")


def test_two_stage_intervals_cover_at_their_rate_where_stopping_early_does_not():
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        draws = rng.normal(10.0, 1.0, 60)
        wanted = min(60, samples_for(draws[:10], 0.05))
        low, high = mean_of(draws[:wanted], 0, "", first_stage=10).interval()
        hits += low <= 10.0 <= high
        count = next(c for c in range(3, 61) if c == 60 or np.diff(mean_of(draws[:c], 0, "").interval())[0] <= 1.0)
        low, high = mean_of(draws[:count], 0, "").interval()
        naive += low <= 10.0 <= high
    # the standard deviation of 2,000 draws at a rate of 0.95 is 10
    assert abs(hits - 1900) < 40 and naive < 1860
