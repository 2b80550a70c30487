"""The dense path: what it gives is exact to rounding."""

import numpy as np
import pytest
import torch

from pyhessian_spectra import MatrixOperator, Meter
from pyhessian_spectra.spectra.dense import build, eigenvalues_and_edges

EPS, EPS32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rotated(eigenvalues, seed=0):
    """A matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed), dtype=torch.float64)).Q
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


SPECTRA = {
    "outliers above a bulk": torch.cat([torch.linspace(-0.1, 0.1, 290), torch.linspace(1, 9, 10)]),
    "edges without a gap": torch.linspace(-1, 1, 300),
    "multiple at both edges": torch.cat(
        [torch.full((7,), -1.0), torch.linspace(-0.5, 0.5, 286), torch.full((7,), 2.0)]
    ),
    "semidefinite of low rank": torch.cat([torch.zeros(280), torch.logspace(-8, 0, 20)]),
    "identity": torch.ones(150),
    "zero": torch.zeros(150),
    "tiny": torch.linspace(-1, 1, 150) * 1e-30,
    "small": torch.tensor([2.0, -1.0, 0.5]),
    "one": torch.tensor([3.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 5])
def test_edges_have_orthonormal_vectors_with_residuals_at_rounding(name, k):
    matrix = rotated(SPECTRA[name])
    n, norm = len(matrix), float(SPECTRA[name].abs().max())
    k = min(k, n)
    eigenvalues, lowest, highest = eigenvalues_and_edges(matrix, k)
    np.testing.assert_allclose(eigenvalues, np.sort(SPECTRA[name].double().numpy()), rtol=0, atol=10 * n * EPS * norm)
    for values, vectors in ((eigenvalues[:k], lowest), (eigenvalues[n - k :], highest)):
        assert np.abs(vectors.T @ vectors - np.eye(k)).max() <= 10 * n * EPS
        assert (
            np.linalg.norm(matrix.numpy() @ vectors - vectors * values, axis=0).max() <= max(10 * n * EPS, 1e-14) * norm
        )


@pytest.mark.parametrize("name", SPECTRA)
def test_the_two_edges_are_orthogonal_to_one_another(name):
    matrix = rotated(SPECTRA[name])
    k = min(5, (len(matrix) - 1) // 2)
    if not k:
        pytest.skip("one eigenvalue has no two edges")
    _, lowest, highest = eigenvalues_and_edges(matrix, k)
    assert np.abs(lowest.T @ highest).max() <= 10 * len(matrix) * EPS


def test_edges_that_meet_share_their_vectors():
    _, lowest, highest = eigenvalues_and_edges(torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), 2)
    np.testing.assert_allclose(np.abs(lowest[:, 1]), np.abs(highest[:, 0]), atol=10 * EPS)


def test_building_symmetrises_in_float64_and_takes_a_product_for_each_column():
    matrix = rotated(torch.linspace(-1, 1, 70)).float()
    meter = Meter(2.0 * MatrixOperator(matrix))  # which is known by its products
    built, used, off = build(meter)
    built = built.to_dense()
    assert meter.num_products == 70 + 6  # six measure how far the others are off
    assert used.dtype == torch.float64 and off.norm < 1e-13
    assert built.dtype == torch.float64 and torch.equal(built, built.T)
    torch.testing.assert_close(built, 2 * matrix.double(), rtol=0, atol=float(EPS32 * matrix.abs().max()))
