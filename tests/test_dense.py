"""The dense path: what it leaves out is null, and what it gives is exact to rounding."""

import numpy as np
import pytest
import torch
from oracle import Oracle

from pyhessian_spectra import EmpiricalRisk, MatrixOperator, analyze
from pyhessian_spectra.spectra import dense as dense_path
from pyhessian_spectra.spectra.dense import PROBES, DenseMatrix, Folding

EPS = torch.finfo(torch.float64).eps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rotated(eigenvalues, seed=0):
    """A matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed), dtype=torch.float64)).Q
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def unfolded(matrix):
    return DenseMatrix(matrix, Folding.none(len(matrix)))


def repeated_rows():
    """A 60 x 60 matrix of rank 20, its first 30 rows multiples of 10 others, 10 rows zero; and its expected size."""
    core = rotated(torch.linspace(-1, 3, 20), seed=1)
    labels = torch.cat([torch.arange(10).repeat(4), torch.arange(10, 20)])
    coefficients = torch.randn(50, generator=generator(2), dtype=torch.float64)
    matrix = torch.zeros(60, 60, dtype=torch.float64)
    kept = torch.randperm(60, generator=generator(3))[:50]
    matrix[kept[:, None], kept] = core[labels][:, labels] * coefficients * coefficients[:, None]
    return (matrix + matrix.T) / 2, 21


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
    eigenvalues, lowest, highest = unfolded(matrix).edges(k)
    np.testing.assert_allclose(eigenvalues, np.sort(SPECTRA[name].double().numpy()), rtol=0, atol=10 * n * EPS * norm)
    for values, vectors in ((eigenvalues[:k], lowest), (eigenvalues[n - k :], highest)):
        assert np.abs(vectors.T @ vectors - np.eye(k)).max() <= 10 * n * EPS
        assert (
            np.linalg.norm(matrix.numpy() @ vectors - vectors * values, axis=0).max() <= max(10 * n * EPS, 1e-14) * norm
        )


def test_blocks_that_add_only_rounding_are_orthonormalised_all_the_same(monkeypatch):
    matrix = rotated(torch.cat([torch.zeros(380), torch.linspace(0.1, 2, 20)]))
    bases = []

    def recorded(block, basis, orthonormal=dense_path._orthonormal):
        bases.append(torch.cat([basis, orthonormal(block, basis)], dim=1))
        return bases[-1][:, basis.shape[1] :]

    monkeypatch.setattr(dense_path, "_orthonormal", recorded)
    unfolded(matrix).edges(10, tol=0.0)  # never satisfied, so that steps go on where nothing is left to find
    assert max(basis.shape[1] for basis in bases) >= 200
    for basis in bases:
        identity = torch.eye(basis.shape[1], dtype=torch.float64)
        torch.testing.assert_close(basis.T @ basis, identity, rtol=0, atol=400 * EPS)


def test_parallel_and_zero_rows_cost_no_products_and_their_null_space_counts():
    matrix, size = repeated_rows()
    op = MatrixOperator(matrix)
    dense = DenseMatrix.of(op, Folding.of(op))
    assert op.num_matvecs == PROBES + size == PROBES + len(dense.core)
    scale = float(torch.linalg.matrix_norm(matrix))
    torch.testing.assert_close(dense.to_dense(), matrix, rtol=0, atol=32 * EPS * scale)
    expected = torch.linalg.eigvalsh(matrix).numpy()
    eigenvalues, lowest, highest = dense.edges(40)  # beyond the rank: null vectors among them
    np.testing.assert_allclose(eigenvalues, expected, rtol=0, atol=60 * EPS * scale)
    for values, vectors in ((eigenvalues[:40], lowest), (eigenvalues[20:], highest)):
        assert np.abs(vectors.T @ vectors - np.eye(40)).max() <= 600 * EPS
        assert np.linalg.norm(matrix.numpy() @ vectors - vectors * values, axis=0).max() <= 600 * EPS * scale
    assert dense.trace() == pytest.approx(float(matrix.trace()), rel=0, abs=60 * EPS * scale)
    assert dense.frobenius() == pytest.approx(scale, rel=60 * EPS)


def test_products_with_a_folded_matrix_are_those_with_the_matrix():
    matrix, _ = repeated_rows()
    op = MatrixOperator(matrix)
    dense, v = DenseMatrix.of(op, Folding.of(op)), torch.randn(60, 3, generator=generator(5), dtype=torch.float64)
    scale = float(torch.linalg.matrix_norm(matrix) * torch.linalg.matrix_norm(v))
    torch.testing.assert_close(dense @ v, matrix @ v, rtol=0, atol=60 * EPS * scale)
    torch.testing.assert_close(dense @ v[:, 0], matrix @ v[:, 0], rtol=0, atol=60 * EPS * scale)


@pytest.mark.parametrize("indices", [range(40), range(0, 60, 7), [3]], ids=["most", "some", "one"])
def test_blocks_of_a_folded_matrix_are_blocks_of_the_matrix(indices):
    matrix, _ = repeated_rows()
    op = MatrixOperator(matrix)
    own = torch.tensor(list(indices))
    block = DenseMatrix.of(op, Folding.of(op)).block(own)
    scale = float(torch.linalg.matrix_norm(matrix))
    torch.testing.assert_close(block.to_dense(), matrix[own][:, own], rtol=0, atol=60 * EPS * scale)
    expected = np.linalg.eigvalsh(matrix[own][:, own].numpy())
    np.testing.assert_allclose(block.edges(1)[0], expected, rtol=0, atol=60 * EPS * scale)


def test_a_folding_that_the_columns_contradict_is_given_up():
    matrix = rotated(torch.linspace(-1, 1, 40))
    folding = Folding(torch.arange(40) // 2, torch.full((40,), 0.5**0.5, dtype=torch.float64), 20)
    op = MatrixOperator(matrix)
    torch.testing.assert_close(DenseMatrix.of(op, folding).to_dense(), matrix, rtol=0, atol=0)
    assert op.num_matvecs == 20 + 40


def test_a_matrix_without_parallel_rows_is_built_column_by_column():
    matrix = rotated(torch.linspace(-1, 1, 150))
    op = MatrixOperator(matrix)
    assert Folding.of(op).size == 150
    torch.testing.assert_close(DenseMatrix.of(op, Folding.of(op)).core, op.to_dense(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constant_pixels_and_units_that_are_off_cost_no_products(dtype):
    torch.manual_seed(0)
    x = torch.randn(50, 12, generator=generator(), dtype=dtype)
    x[:, :4] = -0.4  # with the bias, one row for each of the 5 units that are on
    model = torch.nn.Sequential(torch.nn.Linear(12, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        model[0].bias[0] = -100.0  # 13 zero rows, and 3 more on the way out: one row
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, torch.randint(3, (50,), generator=generator(1))))
    found = analyze(risk, num_eigenvalues=4, generator=generator())
    most = 5 * 9 + 5 * 3 + 3 + 1
    assert found.full.products <= PROBES + most + (5 if dtype == torch.float32 else 0) + 8 < risk.n
    expected = np.linalg.eigvalsh(Oracle(risk).hessian().double().numpy())
    rounding = 100 * torch.finfo(dtype).eps * np.abs(expected).max()
    np.testing.assert_allclose(found.full.spectrum.nodes[0], expected, rtol=0, atol=rounding)
    for pairs, edge in ((found.full.largest, expected[-4:]), (found.full.smallest, expected[:4])):
        assert pairs.converged.all()
        assert ((pairs.lower <= edge + rounding) & (edge - rounding <= pairs.upper)).all()
