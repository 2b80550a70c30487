"""eigsh at every edge: the eigenvalues asked for, or an error with what was found; at a cost that follows
the tolerance."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from problems import CASES

from pyhessian_spectra import (
    DiagonalOperator,
    HessianOperator,
    MatrixOperator,
    Meter,
    analyze_operator,
    eigh,
    eigsh,
)
from pyhessian_spectra.errors import ConvergenceError, InputError
from pyhessian_spectra.spectra.edges import WHICH, wanted
from pyhessian_spectra.testing import matrix_with_spectrum

RNG = np.random.default_rng(0)
SPECTRA = {
    "outliers above a bulk": np.r_[RNG.uniform(-0.2, 0.2, 1995), 1.0, 2.0, 3.0, 4.0, 5.0],
    "outliers at both edges": np.r_[-3.0, -2.0, RNG.normal(0, 0.05, 790), np.geomspace(0.5, 40, 8)],
    "semidefinite": np.r_[np.zeros(180), np.geomspace(1e-9, 10, 120)],
    "symmetric": np.r_[np.linspace(-1, -0.1, 60), np.linspace(0.1, 1, 60)],
    "multiple at the top": np.r_[np.linspace(0, 1, 190), [7.0] * 5, [9.0] * 3],
    "multiple at the bottom": np.r_[[-4.0] * 6, np.linspace(0, 1, 200)],
    "identity": np.ones(90),
    "minus identity": -np.ones(50),
    "zero": np.zeros(60),
    "low rank": np.r_[np.zeros(140), 1.0, 2.0, -3.0],
    "decaying": np.geomspace(1e-15, 1, 150),
    "huge": 1e12 * np.r_[np.linspace(-1, 1, 100), 3.0],
    "tiny": 1e-12 * np.r_[np.linspace(-1, 1, 100), 3.0],
    "few": np.array([-1.0, 0.5, 2.0]),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_eigenvalues_asked_for_or_an_error_and_never_others(name, which, dtype):
    values = np.sort(SPECTRA[name])
    op = DiagonalOperator(torch.from_numpy(values).to(dtype))
    scale = np.abs(values).max()
    for k in (1, 2, 5, 10):
        if k >= len(values):
            continue
        try:
            found = eigsh(op, k, which=which, generator=generator(k))
        except ConvergenceError as error:
            nearest = np.abs(values[:, None] - error.partial.eigenvalues).min(axis=0)
            assert (nearest <= error.partial.residuals + 30 * op.space.eps * scale).all()
            continue
        truth = values[wanted(values, k, which)]
        if which == "LM":  # of equal magnitude any may come
            assert np.sort(np.abs(found.eigenvalues)) == pytest.approx(
                np.sort(np.abs(truth)), abs=200 * op.space.eps * scale
            )
        else:
            np.testing.assert_allclose(found.eigenvalues, truth, rtol=0, atol=200 * op.space.eps * scale)
            assert ((found.lower <= truth) & (truth <= found.upper)).all()
        assert found.converged.all()


@pytest.mark.parametrize("name", ["outliers above a bulk", "outliers at both edges", "low rank"])
def test_no_eigenvalue_beyond_the_bound_is_missed(name):
    values = np.sort(SPECTRA[name])
    op = DiagonalOperator(torch.from_numpy(values))
    for seed in range(20):
        found = eigsh(op, 3, which="BE", tol=1e-4, generator=generator(seed))
        rest = np.delete(values, wanted(values, 3, "BE"))
        assert found.others[0] <= rest[0] and rest[-1] <= found.others[1]


def test_the_cost_follows_the_tolerance():
    """At a tolerance of a per cent, a few products; ARPACK alone takes 20 before it looks."""
    values = np.sort(SPECTRA["outliers at both edges"])
    spent = []
    for tol in (1e-1, 1e-2, 1e-4, 1e-8, 0.0):
        meter = Meter(DiagonalOperator(torch.from_numpy(values)))
        found = eigsh(meter, 1, tol=tol, generator=generator())
        spent.append(meter.num_products)
        assert found.num_products == meter.num_products
        assert abs(found.eigenvalues[0] - values[-1]) <= max(tol, 1e-12) * values[-1]
        assert found.lower[0] <= values[-1] <= found.upper[0]
    assert spent == sorted(spent) and spent[0] <= 24 and spent[0] < spent[-1] <= 66


def test_pairs_from_before_are_a_start():
    """Of a matrix nearby, as between two steps of a training."""
    old = matrix_with_spectrum(np.r_[np.linspace(0, 1, 190), np.linspace(3, 8, 10)])
    change = matrix_with_spectrum(RNG.normal(0, 1e-3, 200), generator=generator(5))
    new = old + change
    before = eigsh(old, 4, generator=generator())
    exact = np.linalg.eigvalsh(new.to_dense().numpy())[-4:]
    costs = {}
    for name, v0 in (("cold", None), ("pairs", before), ("vectors", torch.from_numpy(before.eigenvectors))):
        meter = Meter(new)
        found = eigsh(meter, 4, tol=1e-4, v0=v0, generator=generator())
        np.testing.assert_allclose(found.eigenvalues, exact, atol=1e-5)
        costs[name] = meter.num_products
    assert costs["pairs"] == costs["vectors"] < costs["cold"]
    with pytest.raises(InputError, match="v0 must be"):
        eigsh(new, 2, v0=torch.ones(5))


@pytest.mark.parametrize("which", ["LA", "SA"])
def test_a_start_vector_that_is_another_eigenvector_is_not_taken_for_the_edge(which):
    op = DiagonalOperator(torch.linspace(-1, 1, 80, dtype=torch.float64))
    inner = torch.zeros(80, dtype=torch.float64)
    inner[40] = 1.0
    found = eigsh(op, 1, which=which, v0=inner, generator=generator())
    assert found.eigenvalues[0] == pytest.approx(1.0 if which == "LA" else -1.0, abs=1e-10)


@pytest.mark.parametrize("which", WHICH)
def test_scipys_own_eigsh_agrees_on_networks(which):
    op = HessianOperator(CASES["relu_mlp"]())
    found = eigsh(op, 4, which=which, generator=generator())
    theirs = scipy.sparse.linalg.eigsh(op.to_scipy(), 4, which=which, return_eigenvectors=False)
    scale = np.abs(eigh(op).eigenvalues).max()
    np.testing.assert_allclose(found.eigenvalues, np.sort(theirs), atol=1e-9 * scale)


def test_what_was_found_is_not_filled_up_from_elsewhere():
    op = DiagonalOperator(torch.from_numpy(np.sort(SPECTRA["outliers above a bulk"])))
    with pytest.raises(ConvergenceError, match="raise max_products") as stop:
        eigsh(op, 10, which="SA", max_products=60, generator=generator())
    assert all(value < 0 for value in stop.value.partial.eigenvalues)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["outliers at both edges", "semidefinite", "decaying", "multiple at the top"])
def test_both_eigensolvers_of_analyze_certify_the_same_eigenvalues(name, dtype):
    values = np.sort(SPECTRA[name])
    op, scale = MatrixOperator(matrix_with_spectrum(values).to_dense().to(dtype)), np.abs(values).max()
    for engine in ("lanczos", "arpack"):
        found = analyze_operator(op, eigensolver=engine, exact_limit=0, num_eigenvalues=3, generator=generator(1))
        for pairs, truth in ((found.largest, values[-3:]), (found.smallest, values[:3])):
            nearest = np.abs(pairs.eigenvalues[:, None] - values).min(axis=1)
            assert (nearest <= pairs.residuals + 1e-4 * np.abs(pairs.eigenvalues) + 1e-6 * scale).all()
            if pairs.others is not None:
                known = (pairs.eigenvalues < pairs.others[0]) | (pairs.eigenvalues > pairs.others[1])
                assert ((pairs.lower <= truth) & (truth <= pairs.upper))[known].all()
        if name == "outliers at both edges":
            assert found.unconverged == 0 and found.largest.others is not None
    with pytest.raises(InputError, match="lanczos, arpack"):
        analyze_operator(op, eigensolver="power")


@pytest.mark.parametrize("tol", [0.0, 1e-3, 1e-2])
def test_copies_are_preferred_to_eigenvalues_farther_from_the_edge_at_any_tolerance(tol):
    values = np.r_[np.zeros(60), 0.05, 0.1, np.geomspace(1, 10, 8)]
    for seed in range(10):
        op = matrix_with_spectrum(values, generator=torch.Generator().manual_seed(seed))
        found = eigsh(op, 4, which="SA", tol=tol, generator=torch.Generator().manual_seed(seed))
        assert np.abs(found.eigenvalues).max() <= max(4 * tol, 1e-9) * 10
