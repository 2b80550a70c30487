"""Ten cases that a tool of the field gets wrong, one test each; what each did is in the docstrings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import CASES
from test_risk import assert_unchanged, state
from test_spectra import generator, with_spectrum
from torch import nn

from pyhessian_spectra import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    Spectrum,
    analyze,
    eigsh,
    lanczos,
    slq,
    trace,
)


def test_1_batches_of_60_and_4_weigh_60_and_4():
    """Averaged equally, the product was off by 190 % on a small MLP."""
    risk = CASES["uneven_last_batch"]()
    (x1, y1), (x2, y2) = risk.data
    whole = EmpiricalRisk(risk.model, risk.loss_fn, (torch.cat([x1, x2]), torch.cat([y1, y2])))
    found, expected = HessianOperator(risk).to_dense(), HessianOperator(whole).to_dense()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-13


def test_2_no_eigenvalue_appears_more_often_than_it_is_there():
    """120 steps without reorthogonalisation returned 100.0 eight times."""
    eigenvalues = np.r_[np.linspace(0, 1, 490), np.linspace(10, 100, 10)]
    op = with_spectrum(eigenvalues)
    ritz, _ = lanczos(op, torch.randn(500, generator=generator(), dtype=torch.float64), 120).eigh()
    np.testing.assert_allclose(ritz[-10:], eigenvalues[-10:], rtol=1e-12)
    np.testing.assert_allclose(eigsh(op, 14, generator=generator()).eigenvalues, eigenvalues[-14:], atol=1e-10)


def test_3_the_trace_has_an_error_bar_that_covers_the_truth():
    """A running mean that stopped moving ended at 6 to 31 probes, without one. Of 200 seeds, two standard errors of 30
    probes cover the truth in 94 % of cases (Student's t), less four standard deviations of that count."""
    eigenvalues = np.r_[np.linspace(-1, 1, 190), np.linspace(10, 50, 10)]
    op, truth = with_spectrum(eigenvalues), eigenvalues.sum()
    runs = [trace(op, num_probes=30, generator=generator(seed)) for seed in range(200)]
    assert np.mean([abs(run.value - truth) < 2 * run.stderr for run in runs]) > 0.87


def test_4_a_semidefinite_matrix_of_scale_5e_minus_6_has_no_negative_ritz_value():
    """A vector divided by its norm plus 1e-6 is not a unit vector at this scale."""
    eigenvalues = 5e-6 * np.r_[np.zeros(50), np.linspace(0.01, 1, 50)]
    spectrum = slq(with_spectrum(eigenvalues), num_probes=3, num_steps=80, generator=generator())
    assert spectrum.support[0] > -1e-12 * 5e-6
    assert eigsh(with_spectrum(eigenvalues), 3, which="SA", generator=generator()).eigenvalues[0] > -1e-12 * 5e-6


def test_5_a_bulk_of_width_5e_minus_2_beside_outliers_at_100_keeps_its_shape():
    """A kernel whose width is a fraction of the range blurs it; here its quartiles come out to a tenth of its width."""
    bulk = np.linspace(-0.025, 0.025, 390)
    op = with_spectrum(np.r_[bulk, np.linspace(60, 100, 10)])
    spectrum = slq(op, num_probes=5, num_steps=60, deflate=eigsh(op, 10, generator=generator()), generator=generator(1))
    exact = Spectrum.from_eigenvalues(np.r_[bulk, np.linspace(60, 100, 10)])
    quartiles = np.quantile(bulk, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(spectrum.cdf(quartiles), exact.cdf(quartiles), atol=0.1)
    grid = np.linspace(-0.05, 0.05, 101)
    assert spectrum.density(grid, bandwidth=0.002)[[0, -1]].max() < 1e-6 < spectrum.density(grid, bandwidth=0.002)[50]
    np.testing.assert_allclose(spectrum.cdf(1.0), 390 / 400, atol=1e-12)


def test_6_a_low_rank_gauss_newton_matrix_ends_lanczos_exactly():
    """The breakdown of the process was divided by, which gave NaN."""
    x = torch.randn(2, 30, generator=generator(), dtype=torch.float64)
    model = nn.Linear(30, 3).double()
    op = GGNOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, torch.tensor([0, 2]))))
    spectrum = slq(op, num_probes=4, num_steps=50, generator=generator(1))  # rank at most N (C - 1) = 4
    assert spectrum.facts["steps"] <= 6
    dense = np.linalg.eigvalsh(op.to_dense().numpy())
    for nodes, weights in zip(spectrum.nodes, spectrum.weights, strict=True):
        np.testing.assert_allclose(nodes[weights > 1e-12][-4:], dense[-4:], rtol=1e-9)


def test_7_a_negative_eigenvalue_of_largest_magnitude_is_not_the_largest():
    """Power iteration returned it as the top one."""
    op = with_spectrum([-9.0, *np.linspace(-1, 1, 30), 4.0])
    found = {which: eigsh(op, 1, which=which, generator=generator()).eigenvalues[0] for which in ("LA", "SA", "LM")}
    assert found == pytest.approx({"LA": 4.0, "SA": -9.0, "LM": -9.0})


def test_8_no_seed_means_random_and_seeds_share_no_probe():
    """seed=None gave the same numbers twice; the probes of seeds 0 and 1 overlapped."""
    op = with_spectrum(np.linspace(0, 1, 40))
    assert not np.intersect1d(*(slq(op, num_probes=2, num_steps=6).nodes for _ in range(2))).size
    by_seed = [slq(op, num_probes=4, num_steps=6, generator=generator(seed)).nodes for seed in (0, 1)]
    assert not np.intersect1d(*by_seed).size
    assert trace(op).value != trace(op).value


def test_9_padded_tokens_do_not_weigh():
    """Weights by examples are wrong where the loss ignores some of their tokens."""
    risk = CASES["ignored_tokens"]()
    tokens, targets = (torch.cat(parts) for parts in zip(*risk.data, strict=True))
    whole = EmpiricalRisk(risk.model, lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()), (tokens, targets))
    for operator in (HessianOperator, GGNOperator):
        found, expected = operator(risk).to_dense(), operator(whole).to_dense()
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-13


@pytest.mark.parametrize("case", ["batchnorm_eval", "batchnorm_train", "lstm"])
def test_10_mode_gradients_and_buffers_are_left_as_they_were(case):
    """A whole analysis, of a model in the other mode."""
    risk = CASES[case]()
    risk.model.train(risk.mode == "eval")
    before = state(risk.model)
    analyze(risk, num_eigenvalues=2, generator=generator())
    analyze(risk, num_eigenvalues=2, num_probes=2, num_steps=4, exact_limit=0, generator=generator())
    assert_unchanged(before, risk.model)
