"""Where eigenvectors live and how far that may be off, against matrices whose eigenvectors are known."""

import dataclasses

import numpy as np
import pytest
import torch

from pyhessian_spectra import MatrixOperator, ParameterLayout, Partition, analyze_operator
from pyhessian_spectra.analysis.eigenspaces import eigenspace_overlap, localisation
from pyhessian_spectra.errors import InputError

LAYOUT = ParameterLayout({"a.weight": torch.Size([6, 5]), "b.weight": torch.Size([30]), "c.weight": torch.Size([20])})
LAYERS = Partition.by_module(LAYOUT)


def matrix(seed: int = 0, turned: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix (80, 80) with five outliers, and its eigenvectors, ascending."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=torch.float64)).Q
    if turned:
        q = torch.linalg.qr(q + turned * torch.randn(80, 80, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([torch.linspace(-0.5, 0.5, 75), torch.tensor([3.0, 4, 6, 8, 9])]).double()
    return (q * values) @ q.T, q


def analysed(entries: torch.Tensor, dtype: torch.dtype = torch.float64, **fields):
    fields = {"exact_limit": 0, "num_eigenvalues": 5, "num_steps": 20, **fields}
    return analyze_operator(MatrixOperator(entries.to(dtype)), generator=torch.Generator().manual_seed(1), **fields)


@pytest.mark.parametrize("fields", [{}, {"exact_limit": 100}, {"tol": 1e-2}], ids=["pass", "built", "loose"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shares_of_layers_are_those_of_the_true_eigenvectors_within_their_error(fields, dtype):
    entries, _ = matrix()
    found = localisation(analysed(entries, dtype, **fields), LAYERS)
    truth = torch.linalg.eigh(entries.to(dtype).double()).eigenvectors[:, -5:].flip(1) ** 2
    expected = np.array([truth[group.indices].sum(dim=0).numpy() for group in LAYERS])
    assert found.labels == ("a", "b", "c")
    assert found.shares.sum(axis=0) == pytest.approx(np.ones(5), abs=1e-5)
    assert (np.abs(found.shares - expected) <= found.errors + 1e-12).all()
    assert (found.errors < (0.2 if fields.get("tol") else 1e-2)).all()


def test_a_pair_without_a_gap_has_no_certain_place():
    entries = torch.diag(torch.tensor([0.1] * 77 + [2.0, 5.0, 5.0], dtype=torch.float64))
    found = localisation(analysed(entries, exact_limit=100, num_eigenvalues=3), LAYERS)
    assert found.errors[0] == found.errors[1] == 1.0 and found.errors[2] < 1e-6


@pytest.mark.parametrize("k", [2, 5])
def test_the_overlap_is_that_of_the_true_spaces_within_its_error(k):
    (one, u), (other, v) = matrix(0), matrix(0, turned=0.03)
    value, error = eigenspace_overlap(analysed(one, torch.float32), analysed(other, torch.float32, exact_limit=100), k)
    expected = float(((u[:, -k:].T @ v[:, -k:]) ** 2).sum() / k)
    assert abs(value - expected) <= error < 1e-3
    assert 0.3 < value < 0.999


def test_a_space_overlaps_itself_fully_and_one_of_unrelated_vectors_by_chance():
    first, second = analysed(matrix(0)[0]), analysed(matrix(1)[0])
    assert eigenspace_overlap(first, first, 5)[0] == pytest.approx(1.0)
    draws = [eigenspace_overlap(first, analysed(matrix(seed)[0], exact_limit=100), 5)[0] for seed in range(2, 32)]
    assert np.mean(draws) == pytest.approx(5 / 80, rel=0.25)
    assert eigenspace_overlap(first, second, 5)[0] < 0.5


def test_vectors_that_were_not_kept_or_have_another_length_are_refused():
    block = analysed(matrix()[0])
    bare = dataclasses.replace(block, largest=dataclasses.replace(block.largest, eigenvectors=None))
    with pytest.raises(InputError, match="none were kept"):
        localisation(bare, LAYERS)
    with pytest.raises(InputError, match="9 eigenvectors are needed and 5 were kept"):
        eigenspace_overlap(block, block, 9)
    with pytest.raises(InputError, match="80 and 40 coordinates"):
        eigenspace_overlap(block, analysed(matrix()[0][:40, :40]), 2)
