"""Edges that one Lanczos process is too short for: restarts find them, in fewer products than ARPACK."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from passes import run_pass
from test_basis import generator, small_blocks  # noqa: F401 - a fixture that applies here too

from pyhessian_spectra import DiagonalOperator, Eigenpairs, LinearOperator, MatrixOperator, Meter
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.basis import KrylovBasis
from pyhessian_spectra.spectra.bounds import certified_intervals
from pyhessian_spectra.spectra.edges import Edges, find_edges

N = 2000
RNG = np.random.default_rng(0)
# outliers at the top, and at the lower edge a cluster that goes over into the bulk
SLOW_BELOW = np.sort(np.r_[np.linspace(-0.1, 0, 40), RNG.uniform(0, 1, N - 50), np.geomspace(2, 30, 10)])
SLOW_AT_BOTH = np.linspace(-1, 1, N)


def operator(values: np.ndarray, dtype: torch.dtype = torch.float64) -> DiagonalOperator:
    return DiagonalOperator(torch.from_numpy(values).to(dtype))


def edges(op: LinearOperator, *, k: int, tol: float, max_products: int, memory_budget: int | None = None) -> Edges:
    return find_edges(
        op,
        op.space.randn(generator(1)),
        2 * k,
        "BE",
        tol=tol,
        atol=0.0,
        min_steps=20,
        max_steps=40,
        max_products=max_products,
        memory_budget=memory_budget,
    )


@pytest.mark.parametrize("values", [SLOW_BELOW, SLOW_AT_BOTH], ids=["below", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_restarts_find_what_one_short_process_does_not(values, dtype):
    k, exact = 6, np.r_[values[:6], values[-6:]]
    op = Meter(operator(values, dtype))
    short = edges(op, k=k, tol=1e-4, max_products=40)
    assert short.steps == op.num_products == 40 and short.restarts == 0 and not short.good.all()
    found = edges(op, k=k, tol=1e-4, max_products=1000)
    assert found.good.all() and found.restarts > 0
    eps, scale = torch.finfo(dtype).eps, np.abs(values).max()
    # residuals within tol of each value, or within the rounding that is allowed for (100 eps of the norm)
    np.testing.assert_allclose(found.values, exact, rtol=1e-4, atol=100 * eps * scale)
    vectors = found.vectors.double().numpy()
    residuals = np.linalg.norm(values[:, None] * vectors - vectors * found.values, axis=0)
    assert (residuals <= 1e-4 * np.abs(exact) + 200 * eps * scale).all()
    rounding = 100 * eps * found.restarts  # each restart combines the vectors anew
    assert found.orthogonality < rounding
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(2 * k), atol=rounding)


@pytest.mark.parametrize("values", [SLOW_BELOW, SLOW_AT_BOTH], ids=["below", "both"])
def test_restarts_take_fewer_products_than_a_cold_eigsh(values):
    k = 6
    found = edges(operator(values), k=k, tol=1e-4, max_products=1000)
    cold = Meter(operator(values))
    start = cold.space.randn(generator(1)).numpy()
    # ARPACK's tolerance is relative to each value, too
    scipy.sparse.linalg.eigsh(cold.to_scipy(), 2 * k, which="BE", tol=1e-4, v0=start)
    assert found.good.all() and found.steps < cold.num_products


def test_the_products_asked_for_are_not_exceeded_and_what_is_left_is_marked():
    values = np.sort(np.r_[np.linspace(0, 1e-3, N - 10), np.geomspace(2, 30, 10)])
    for most in (41, 50, 97):
        op = operator(values)
        found = run_pass(
            op, k=5, num_probes=2, num_steps=20, tol=1e-8, max_steps=40, max_products=most, generator=generator()
        )
        assert found.spectrum.facts["steps"] == most
        assert found.largest.converged.all() and not found.smallest.converged.all()
        assert found.largest.others is None  # no bound without all of the edges
        nearest = np.abs(values[:, None] - found.smallest.eigenvalues).min(axis=0)
        assert (nearest <= found.smallest.residuals + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_copies_come_out_right_beside_an_edge_that_needs_restarts(dtype):
    values = np.sort(np.r_[-1.0, -1.0, SLOW_BELOW[2:-2], 30.0, 30.0])
    found = run_pass(
        operator(values, dtype),
        k=4,
        num_probes=3,
        num_steps=40,
        tol=1e-5,
        max_steps=40,
        max_products=1000,
        generator=generator(3),
    )
    assert found.spectrum.facts["restarts"] > 0
    for pairs, truth in ((found.smallest, values[:4]), (found.largest, values[-4:])):
        assert pairs.converged.all()
        np.testing.assert_allclose(pairs.eigenvalues, truth, rtol=1e-5, atol=100 * torch.finfo(dtype).eps * 30)
        assert (pairs.lower <= truth).all() and (truth <= pairs.upper).all()


def test_restarts_give_the_same_bits_wherever_the_vectors_lie():
    memory, disk = (
        edges(operator(SLOW_BELOW), k=6, tol=1e-4, max_products=400, memory_budget=budget) for budget in (None, 0)
    )
    assert "on disk" in disk.place and "on disk" not in memory.place and memory.restarts > 0
    assert np.array_equal(memory.values, disk.values) and torch.equal(memory.vectors, disk.vectors)


def test_a_basis_with_nowhere_to_go_is_restarted_sooner(monkeypatch):
    monkeypatch.setattr(KrylovBasis, "room", property(lambda basis: max(0, 30 - len(basis))))
    found = edges(operator(SLOW_BELOW), k=6, tol=1e-4, max_products=1000)
    assert found.good.all() and found.restarts > 0
    np.testing.assert_allclose(found.values, np.r_[SLOW_BELOW[:6], SLOW_BELOW[-6:]], rtol=1e-4)


@pytest.mark.parametrize("which", ["LA", "SA"])
def test_one_edge_alone_costs_fewer_products_and_is_certified_as_well(which):
    values = np.sort(np.r_[-np.geomspace(0.5, 4, 6), RNG.uniform(0, 0.1, N - 12), np.geomspace(1, 30, 6)])
    settings = dict(k=5, num_probes=2, num_steps=20, tol=1e-6, max_steps=100, rtol=1.0, trace_probes=2)
    op = Meter(operator(values))
    both = run_pass(op, generator=generator(2), **settings)
    spent = op.num_products
    one = run_pass(op, which=which, generator=generator(2), **settings)
    assert op.num_products - spent < spent
    asked, other = (one.largest, one.smallest) if which == "LA" else (one.smallest, one.largest)
    exact = values[-5:] if which == "LA" else values[:5]
    assert len(other) == 0 and asked.converged.all()
    assert np.all((asked.lower <= exact) & (exact <= asked.upper))
    beyond = asked.others[1] < asked.lower if which == "LA" else asked.upper < asked.others[0]
    assert beyond.all()
    low, high = one.trace.interval(0.999)
    assert low <= values.sum() <= high and both.trace.value == pytest.approx(values.sum(), rel=0.2)


def test_copies_at_one_edge_are_found_where_it_is_the_only_one_wanted():
    values = np.sort(np.r_[RNG.uniform(0, 1, N - 4), [7.0, 7.0, 7.0, 9.0]])
    settings = dict(k=4, num_probes=2, num_steps=20, tol=1e-8, max_steps=100, rtol=1.0, trace_probes=2)
    found = run_pass(operator(values), which="LA", generator=generator(3), **settings).largest
    np.testing.assert_allclose(found.eigenvalues, [7.0, 7.0, 7.0, 9.0], rtol=1e-10)


def test_an_edge_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="which must be one of LA, SA, BE, LM"):
        run_pass(
            operator(SLOW_BELOW),
            k=2,
            which="XX",
            num_probes=2,
            num_steps=5,
            tol=0.1,
            max_steps=9,
            generator=generator(0),
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("rank", [0, 1, 9])
@pytest.mark.parametrize("rotated", [False, True], ids=["diagonal", "rotated"])
def test_a_rank_below_the_number_of_pairs_leaves_no_rounding_taken_for_eigenvalues(rotated, rank, scale, dtype):
    values = np.sort(scale * np.r_[np.linspace(1, 5, rank), np.zeros(300 - rank)])
    if rotated:  # whose products are rounded in all directions
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((300, 300)))[0]
        matrix = torch.from_numpy((basis * values) @ basis.T)
        op = MatrixOperator(((matrix + matrix.T) / 2).to(dtype))
    else:
        op = operator(values, dtype)
    found = run_pass(op, k=10, num_probes=2, num_steps=40, tol=1e-4, max_steps=300, generator=generator(0))
    rounding = 100 * torch.finfo(dtype).eps * 5 * scale
    np.testing.assert_allclose(found.largest.eigenvalues, values[-10:], atol=rounding, rtol=1e-4)
    np.testing.assert_allclose(found.smallest.eigenvalues, values[:10], atol=rounding, rtol=1e-4)
    vectors = np.hstack([found.smallest.eigenvectors, found.largest.eigenvectors]).astype(np.float64)
    assert np.abs(vectors.T @ vectors - np.eye(20)).max() < 1e4 * torch.finfo(dtype).eps
    assert found.spectrum.facts["orthogonality"] < 1e4 * torch.finfo(dtype).eps
    assert found.trace.value == pytest.approx(values.sum(), rel=1e-3, abs=300 * rounding)
    assert found.frobenius.value == pytest.approx(np.sqrt((values**2).sum()), rel=1e-3, abs=300 * rounding)


def test_intervals_that_meet_hold_the_eigenvalues_of_their_ranks():
    generator, k = np.random.default_rng(0), 6
    met = 0
    for _ in range(300):
        truth = np.r_[np.zeros(20), 1 + np.cumsum(10.0 ** generator.uniform(-5, -1, k))]
        noise = generator.normal(0, 10.0 ** generator.uniform(-6, -1, k), (26, k))  # some pairs are better than others
        basis = np.linalg.qr(np.eye(26)[:, -k:] + noise)[0]
        values, turn = np.linalg.eigh(basis.T * truth @ basis)
        vectors = basis @ turn
        residuals = np.linalg.norm(truth[:, None] * vectors - vectors * values, axis=0)
        if (values <= np.linalg.norm(residuals)).any():
            continue  # the pairs are then not known to be those at the edge
        lower, upper = certified_intervals(values, residuals + 1e-14, (0.0, 0.0))
        assert ((lower - 1e-13 <= truth[-k:]) & (truth[-k:] <= upper + 1e-13)).all()
        met += (values[1:] - residuals[1:] < values[:-1] + residuals[:-1]).any()
    assert met > 50


def test_an_eigenvalue_has_its_rank_only_beyond_the_others_at_its_own_edge():
    values = np.array([-1.0, 0.05, 2.0])
    pairs = Eigenpairs(
        values, np.zeros(3), np.ones(3, bool), lower=values - 0.1, upper=values + 0.1, others=(-0.2, 0.2)
    )
    assert pairs.placed(from_top=True).tolist() == [False, False, True]
    assert pairs.placed(from_top=False).tolist() == [True, False, False]
