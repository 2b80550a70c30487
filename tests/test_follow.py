"""Eigenpairs followed from a matrix to the next: right within their residuals, and cheaper than from the beginning."""

import numpy as np
import pytest
import torch

from pyhessian_spectra import DiagonalOperator, MatrixOperator
from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.spectra.follow import follow

DOUBLE = torch.float64


def _symmetric(n, seed, values=None):
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE, generator=generator))[0]
    values = torch.linspace(-1, 1, n, dtype=DOUBLE) if values is None else values
    return q @ torch.diag(values) @ q.T


def _outliers(n):
    values = torch.linspace(-0.3, 1, n, dtype=DOUBLE)
    values[-4:] = torch.tensor([4.0, 5.0, 7.0, 10.0])
    values[0] = -2.0
    return values


def _random(n, p, seed=0):
    return torch.randn(n, p, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("largest", "smallest"), [(1, 0), (3, 0), (2, 1), (0, 2)])
def test_pairs_followed_from_random_columns_are_those_of_the_dense_matrix(largest, smallest):
    n = 40
    matrix = _symmetric(n, 1, _outliers(n))
    found = follow(MatrixOperator(matrix), _random(n, 2), largest=largest, smallest=smallest, tol=1e-8, max_products=n)
    values = np.linalg.eigvalsh(matrix.numpy())
    expected = np.r_[values[:smallest], values[n - largest :]]
    assert found.pairs.converged.all()
    assert found.pairs.eigenvalues == pytest.approx(expected, abs=1e-10)
    vectors = torch.from_numpy(found.pairs.eigenvectors)
    exact = matrix @ vectors - vectors * torch.from_numpy(found.pairs.eigenvalues)
    assert found.pairs.residuals == pytest.approx(exact.norm(dim=0).numpy(), abs=1e-12)
    assert torch.allclose(found.start.T @ found.start, torch.eye(found.start.shape[1], dtype=DOUBLE), atol=1e-12)


def test_an_eigenvalue_lies_within_the_residual_whenever_the_search_ends():
    n = 60
    for seed in range(20):
        matrix = _symmetric(n, seed)
        for most in (1, 3, 8):
            found = follow(MatrixOperator(matrix), _random(n, 1, seed), largest=1, tol=1e-6, max_products=most).pairs
            values = np.linalg.eigvalsh(matrix.numpy())
            assert np.abs(values - found.eigenvalues[0]).min() <= found.residuals[0]
            assert found.num_products <= max(1, most)


def test_a_matrix_that_moves_a_little_takes_fewer_products_than_one_that_is_met_first():
    n, warm, cold = 200, 0, 0
    values, generator = _outliers(n), torch.Generator().manual_seed(3)
    matrix = _symmetric(n, 0, values)
    start = follow(MatrixOperator(matrix), _random(n, 2), largest=1, tol=1e-2, max_products=100).start
    for seed in range(20):
        move = torch.randn(n, n, dtype=DOUBLE, generator=generator)
        matrix = matrix + 0.01 * (move + move.T)
        found = follow(MatrixOperator(matrix), start, largest=1, tol=1e-2)
        again = follow(MatrixOperator(matrix), _random(n, 2, seed), largest=1, tol=1e-2, max_products=100)
        assert found.pairs.converged.all() and again.pairs.converged.all()
        assert found.pairs.eigenvalues[0] == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-2)
        start, warm, cold = found.start, warm + found.pairs.num_products, cold + again.pairs.num_products
    assert warm < 0.5 * cold


def test_the_largest_eigenvalue_is_kept_where_another_overtakes_it():
    n = 30
    q = torch.linalg.qr(_random(n, n, 4))[0]
    start = q[:, :2]
    for step in range(11):
        values = torch.zeros(n, dtype=DOUBLE)
        values[0], values[1] = 2.0, 1.0 + 0.2 * step
        found = follow(MatrixOperator(q @ torch.diag(values) @ q.T), start, largest=1, tol=1e-3)
        assert found.pairs.eigenvalues[0] == pytest.approx(max(2.0, 1.0 + 0.2 * step))
        start = found.start


def test_dependent_and_zero_columns_are_left_out():
    n = 20
    matrix, column = _symmetric(n, 5, _outliers(n)), _random(n, 1)
    start = torch.cat([column, 2 * column, torch.zeros(n, 1, dtype=DOUBLE)], dim=1)
    found = follow(MatrixOperator(matrix), start, largest=2, tol=1e-6, max_products=n)
    assert found.pairs.converged.all()
    assert found.pairs.eigenvalues == pytest.approx([7.0, 10.0])


def test_eigenvectors_to_start_from_give_as_many_pairs_as_are_asked_for():
    n = 12
    matrix = torch.diag(torch.arange(1.0, n + 1, dtype=DOUBLE))
    found = follow(MatrixOperator(matrix), torch.eye(n, dtype=DOUBLE)[:, -1:], largest=3, tol=1e-6, max_products=n)
    assert found.pairs.eigenvalues == pytest.approx([10.0, 11.0, 12.0])


def test_a_matrix_of_one_row_has_its_entry():
    found = follow(MatrixOperator(torch.tensor([[-3.0]])), torch.ones(1, 1), largest=1)
    assert found.pairs.eigenvalues == pytest.approx([-3.0])


def test_nan_is_refused():
    with pytest.raises(NonFiniteError, match="NaN"):
        follow(DiagonalOperator(torch.full((3,), torch.nan)), torch.ones(3, 1), largest=1)


@pytest.mark.parametrize("start", [torch.ones(4, 1), torch.ones(3)])
def test_columns_that_do_not_fit_are_refused(start):
    with pytest.raises(InputError, match="columns"):
        follow(MatrixOperator(torch.eye(3)), start, largest=1)
