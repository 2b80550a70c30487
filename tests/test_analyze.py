"""analyze: exact equals the oracle, matrix-free agrees within its certificates, and everything is accounted for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import Oracle
from passes import run_pass
from problems import CASES
from test_spectra import generator, with_spectrum
from torch import nn

from pyhessian_spectra import (
    EmpiricalRisk,
    GGNOperator,
    Partition,
    analyze,
)

EPS = np.finfo(np.float64).eps


def network(dtype: torch.dtype = torch.float64, risk: type[EmpiricalRisk] = EmpiricalRisk) -> EmpiricalRisk:
    """A tanh network of three layers and 627 parameters on 40 made examples."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # what it draws is replaced
        model = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 18), nn.Tanh(), nn.Linear(18, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=rng))
    x, y = torch.randn(40, 8, generator=rng).to(dtype), torch.randint(3, (40,), generator=rng)
    return risk(model, nn.CrossEntropyLoss(), (x, y))


# The exact path


@pytest.mark.parametrize("case", CASES)
def test_the_exact_path_equals_the_oracle(case):
    risk = CASES[case]()
    matrix = Oracle(risk).hessian().numpy()
    found = analyze(risk, num_eigenvalues=4)
    values = np.linalg.eigvalsh(matrix)
    scale = np.abs(values).max()
    k = min(4, len(values))
    assert found.full.spectrum.exact
    np.testing.assert_allclose(found.full.spectrum.nodes[0], values, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found.full.largest.eigenvalues, values[-k:], rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found.full.smallest.eigenvalues, values[:k], rtol=0, atol=1e-10 * scale)
    assert found.full.trace.value == pytest.approx(np.trace(matrix), abs=1e-10 * scale * len(values))
    assert found.full.frobenius.value == pytest.approx(np.linalg.norm(matrix), rel=1e-10)
    assert found.full.trace.stderr == found.full.frobenius.stderr == 0
    for name, block in found.layers.items():
        own = Partition.by_module(risk.layout)[name].indices
        part = np.linalg.eigvalsh(matrix[np.ix_(own, own)])
        np.testing.assert_allclose(block.spectrum.nodes[0], part, rtol=0, atol=1e-10 * scale)


def test_another_matrix_than_the_hessian_is_analysed_when_asked_for():
    risk = CASES["relu_mlp"]()
    exact = np.linalg.eigvalsh(Oracle(risk).ggn().numpy())
    for limit in (3000, 0):
        found = analyze(risk, matrix=GGNOperator, num_eigenvalues=3, exact_limit=limit, tol=1e-9, generator=generator())
        assert found.problem["matrix"] == "GGN"
        np.testing.assert_allclose(found.full.largest.eigenvalues, exact[-3:], atol=1e-9 * exact[-1])


# The matrix-free path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_matrix_free_path_agrees_with_the_exact_one_within_its_certificates(dtype):
    exact = analyze(network(), num_eigenvalues=6)
    found = analyze(network(dtype), num_eigenvalues=6, exact_limit=0, max_steps=200, generator=generator())
    assert not found.full.spectrum.exact and found.layers.keys() == exact.layers.keys()
    rounding = 100 * torch.finfo(dtype).eps
    for block, truth in [(found.full, exact.full), *zip(found.layers.values(), exact.layers.values(), strict=True)]:
        for pairs, values in ((block.largest, truth.largest.eigenvalues), (block.smallest, truth.smallest.eigenvalues)):
            slack = rounding * np.abs(values).max()  # the parameters of the float32 problem are rounded ones
            assert pairs.converged.all()
            lower, upper, all_values = pairs.lower - slack, pairs.upper + slack, truth.spectrum.nodes[0]
            holds = (lower[:, None] <= all_values) & (all_values <= upper[:, None])
            assert holds.any(axis=1).all()
            # where no other eigenvalue can be that far out, it is the one of this rank
            certified = (pairs.eigenvalues < pairs.others[0]) | (pairs.eigenvalues > pairs.others[1])
            assert ((lower <= values) & (values <= upper))[certified].all()
            assert certified.any() or pairs is block.smallest
        low, high = truth.spectrum.nodes[0][6], truth.spectrum.nodes[0][-7]  # the extremes of all the others
        assert block.largest.others[0] <= low and high <= block.largest.others[1]
        for estimate, value in ((block.trace, truth.trace.value), (block.frobenius, truth.frobenius.value)):
            assert abs(estimate.value - value) <= 10 * estimate.stderr + 1e-3 * truth.frobenius.value


def test_intervals_cover_at_their_rate():
    """Outliers within the edges, a bulk and a tail in the complement, as for trained networks."""
    rng = np.random.default_rng(0)
    values = np.sort(np.r_[rng.normal(0, 0.01, 88), np.geomspace(1, 20, 8), -np.geomspace(0.1, 0.5, 4)])
    op, runs = with_spectrum(values), 240
    covered = dict.fromkeys(("trace", "frobenius", "eigenvalues", "others"), 0)
    for seed in range(runs):
        found = run_pass(op, k=8, num_probes=3, num_steps=20, tol=1e-4, max_steps=100, generator=generator(1000 + seed))
        for name, truth in (("trace", values.sum()), ("frobenius", np.linalg.norm(values))):
            low, high = getattr(found, name).interval(0.95)
            covered[name] += low <= truth <= high
        edges = ((found.largest, values[-8:]), (found.smallest, values[:8]))
        covered["eigenvalues"] += all((p.lower <= v).all() and (v <= p.upper).all() for p, v in edges)
        low, high = found.largest.others
        covered["others"] += low <= values[8] and values[-9] <= high
    # three standard deviations of a binomial below the nominal rate, 0.95 and 0.99
    for name, rate in (("trace", 0.95), ("frobenius", 0.95), ("eigenvalues", 0.99), ("others", 0.99)):
        assert covered[name] / runs >= rate - 3 * np.sqrt(rate * (1 - rate) / runs), (name, covered[name] / runs)
    # and error bars that are never wrong are too long
    assert covered["trace"] < runs and covered["frobenius"] < runs


def test_the_trace_is_unbiased_where_outliers_are_left_in_the_complement():
    values = np.r_[np.linspace(-0.01, 0.01, 50), np.geomspace(1, 20, 10)]
    op = with_spectrum(values)
    samples = [
        run_pass(op, k=3, num_probes=2, num_steps=15, tol=1e-3, max_steps=60, generator=generator(s)).trace.value
        for s in range(300)
    ]
    assert abs(np.mean(samples) - values.sum()) < 4 * np.std(samples, ddof=1) / np.sqrt(len(samples))


SPECTRA = {
    "double top": np.r_[np.linspace(0, 1, 58), 7.0, 7.0],
    "triple top, double bottom": np.r_[np.linspace(0, 1, 55), -4.0, -4.0, 7.0, 7.0, 7.0],
    "identity": np.full(40, 3.0),
    "minus identity": np.full(40, -3.0),
    "low rank": np.r_[np.zeros(57), 1.0, 2.0, 3.0],
    "low rank, triple": np.r_[np.zeros(56), 1.0, 3.0, 3.0, 3.0],
    "zero": np.zeros(30),
    "three": np.array([1.0, 1.0, 2.0]),
    "five": np.array([-1.0, -1.0, 2.0, 2.0, 2.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_multiplicities_come_out_right(name, k, dtype):
    values = np.sort(SPECTRA[name])
    k = min(k, len(values) // 2)
    op = with_spectrum(values, dtype=dtype)
    found = run_pass(op, k=k, num_probes=3, num_steps=40, tol=1e-5, max_steps=100, generator=generator())
    error = 100 * torch.finfo(dtype).eps * np.abs(values).max()
    for pairs, truth in ((found.largest, values[len(values) - k :]), (found.smallest, values[:k])):
        assert pairs.converged.all()
        np.testing.assert_allclose(pairs.eigenvalues, truth, rtol=0, atol=error)
        assert (pairs.lower <= truth).all() and (truth <= pairs.upper).all()
        overlaps = pairs.eigenvectors.T.astype(np.float64) @ pairs.eigenvectors
        np.testing.assert_allclose(overlaps, np.eye(k), atol=100 * torch.finfo(dtype).eps * len(values))


class _Tiny(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.0, n, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.w.sin()).sum(dim=1)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_networks_of_a_few_parameters_are_analysed_without_building_a_large_matrix(n, k):
    x = torch.randn(9, n, generator=generator(), dtype=torch.float64)
    risk = EmpiricalRisk(_Tiny(n), nn.MSELoss(), (x, torch.zeros(9, dtype=torch.float64)))
    exact = np.linalg.eigvalsh(Oracle(risk).hessian().numpy())
    full = analyze(risk, num_eigenvalues=k, exact_limit=0, generator=generator()).full
    np.testing.assert_allclose(full.largest.eigenvalues, exact[-len(full.largest) :], atol=1e-10)
    np.testing.assert_allclose(full.smallest.eigenvalues, exact[: len(full.smallest)], atol=1e-10)
    assert len(full.largest) == min(k, n)


def test_a_bulk_ten_thousand_times_narrower_than_the_range_is_resolved():
    bulk = np.linspace(-0.005, 0.005, 190)
    values = np.r_[bulk, np.linspace(50, 100, 10)]
    found = run_pass(
        with_spectrum(values), k=10, num_probes=4, num_steps=40, tol=1e-6, max_steps=100, generator=generator()
    )
    grid = np.linspace(-0.0048, 0.0048, 25)
    exact = np.searchsorted(values, grid, side="right") / len(values)
    assert np.abs(found.spectrum.cdf(grid) - exact).max() < 0.1
    assert found.spectrum.cdf(1.0) == pytest.approx(0.95, abs=1e-12)


def test_what_did_not_converge_says_so():
    found = analyze(network(), exact_limit=0, num_steps=12, max_steps=12, num_eigenvalues=6, tol=1e-12, layers=False)
    pairs = found.full.largest
    assert not pairs.converged.all() and pairs.others is None
    assert any("did not reach the tolerance" in note.text and "max_steps" in note.text for note in found.notes)
    exact = analyze(network(), layers=False).full.spectrum.nodes[0]
    nearest = np.abs(exact[:, None] - pairs.eigenvalues)
    assert (nearest <= pairs.residuals + 1e-12).any(axis=0).all()  # residuals hold, converged or not
