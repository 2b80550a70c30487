"""Masses of blocks and the error of the block diagonal, against dense matrices."""

import numpy as np
import pytest
import torch
from oracle import Oracle
from problems import CASES

from pyhessian_spectra import (
    HessianOperator,
    LinearOperator,
    MatrixOperator,
    ParameterLayout,
    Partition,
    analyze_operator,
)
from pyhessian_spectra.analysis.coupling import REST, layer_coupling
from pyhessian_spectra.errors import InputError, NonFiniteError

LAYOUT = ParameterLayout({"a.weight": torch.Size([5, 6]), "b.weight": torch.Size([20]), "c.weight": torch.Size([30])})
LAYERS = Partition.by_module(LAYOUT)


class Products(LinearOperator):
    """A matrix of which only products are known."""

    def __init__(self, entries: torch.Tensor) -> None:
        super().__init__(len(entries), dtype=entries.dtype, device="cpu")
        self.entries = entries

    def _matvec(self, v):
        return self.entries @ v


def coupled(seed: int = 0, outliers: float = 30.0) -> torch.Tensor:
    """A symmetric matrix (80, 80) with two large eigenvalues whose vectors reach through all groups."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(80, 80, generator=generator, dtype=torch.float64)
    u = torch.linalg.qr(torch.randn(80, 2, generator=generator, dtype=torch.float64)).Q
    return (noise + noise.T) / 8 + outliers * u @ u.T


def masses(entries: torch.Tensor, partition: Partition) -> np.ndarray:
    groups = [group.indices for group in partition]
    return np.array([[float((entries[i][:, j] ** 2).sum()) for j in groups] for i in groups])


@pytest.mark.parametrize("name", CASES)
def test_exact_masses_are_those_of_the_dense_hessian(name):
    risk = CASES[name]()
    dense = Oracle(risk).hessian()
    partition = Partition.by_parameter(risk.layout)
    found = layer_coupling(MatrixOperator(HessianOperator(risk).to_dense()), partition)
    expected = masses(dense, partition)
    np.testing.assert_allclose(found.mass, expected, rtol=1e-8, atol=1e-12 * expected.max())
    inside = np.trace(expected) / expected.sum()
    assert found.error.value == pytest.approx(1 - inside, abs=1e-9)
    assert found.cosine.value == pytest.approx(inside**0.5, abs=1e-9)


def test_the_error_of_the_block_diagonal_is_that_of_its_products():
    entries = coupled()
    found = layer_coupling(MatrixOperator(entries), LAYERS)
    blocks = torch.zeros_like(entries)
    for group in LAYERS:
        i, j = group.indices[:, None], group.indices[None]
        blocks[i, j] = entries[i, j]
    v = torch.randn(80, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, diagonal = entries @ v, blocks @ v
    assert found.error.value == pytest.approx(float(((whole - diagonal) ** 2).sum() / (whole**2).sum()), rel=0.02)
    cosine = float((whole * diagonal).sum() / ((whole**2).sum() * (diagonal**2).sum()) ** 0.5)
    assert found.cosine.value == pytest.approx(cosine, rel=0.02)


@pytest.mark.parametrize("known", [False, True], ids=["sampled", "with eigenpairs"])
def test_sampled_masses_are_unbiased_and_their_intervals_cover(known):
    entries, covered, sums, shares = coupled(), 0, [], 0
    op, expected = Products(entries), masses(coupled(), LAYERS)
    pairs = analyze_operator(MatrixOperator(entries), num_eigenvalues=2).largest if known else None
    share = 1 - np.trace(expected) / expected.sum()
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        found = layer_coupling(op, LAYERS, num_probes=4, known=pairs, generator=generator)
        assert (found.mass == found.mass.T).all()
        sums.append(found.mass)
        covered += (np.abs(found.mass - expected) <= 3.18 * found.stderr).mean()  # Student's t of 3 degrees of freedom
        low, high = found.error.interval(0.95)
        shares += low <= share <= high
    mean, spread = np.mean(sums, axis=0), np.std(sums, axis=0)
    assert (np.abs(mean - expected) < 4 * spread / 200**0.5).all()
    assert covered / 200 > 0.9 and shares / 200 > 0.85


def test_known_eigenpairs_make_errors_smaller_and_wrong_ones_do_no_harm():
    entries = coupled()
    op, expected = Products(entries), masses(entries, LAYERS)
    good = analyze_operator(MatrixOperator(entries), num_eigenvalues=2).largest
    wrong = analyze_operator(MatrixOperator(coupled(seed=5)), num_eigenvalues=2).largest

    def spread_and_bias(known):
        draws = np.array(
            [
                layer_coupling(op, LAYERS, known=known, generator=torch.Generator().manual_seed(seed)).mass
                for seed in range(200)
            ]
        )
        return draws.std(axis=0), np.abs(draws.mean(axis=0) - expected)

    plain, _ = spread_and_bias(None)
    sharp, _ = spread_and_bias(good)
    poor, bias = spread_and_bias(wrong)
    assert (sharp < 0.25 * plain).all()
    assert (bias < 4 * poor / 200**0.5).all()


def test_coordinates_of_no_group_form_one_more():
    part = Partition.by_module(LAYOUT, "b")
    found = layer_coupling(MatrixOperator(coupled()), part)
    assert found.labels == ("b", REST)
    assert found.mass.sum() == pytest.approx(float((coupled() ** 2).sum()))


def test_a_block_diagonal_matrix_misses_nothing():
    entries = torch.block_diag(torch.ones(30, 30), 2 * torch.eye(20), torch.zeros(30, 30)).double()
    for op in (MatrixOperator(entries), Products(entries)):
        found = layer_coupling(op, LAYERS, generator=torch.Generator().manual_seed(0))
        assert found.error.value == 0 and found.cosine.value == 1
        assert np.isnan(found.shares[2, 2]) and found.shares[0, 1] == 0


def test_products_are_counted_and_wrong_arguments_refused():
    op = Products(coupled())
    assert layer_coupling(op, LAYERS, num_probes=3).num_products == 3 * 3 + 2
    with pytest.raises(InputError, match="at least 2 for a standard error, got 1"):
        layer_coupling(op, LAYERS, num_probes=1)
    with pytest.raises(InputError, match="80 coordinates and the operator has 5"):
        layer_coupling(MatrixOperator(torch.eye(5)), LAYERS)


def test_the_mass_of_a_single_parameter_is_exact_from_one_sign():
    layout = ParameterLayout({"a.weight": torch.Size([79]), "b.weight": torch.Size([1])})
    entries = coupled()
    found = layer_coupling(Products(entries), Partition.by_module(layout))
    assert found.mass[1, 1] == pytest.approx(float(entries[79, 79] ** 2), rel=1e-9)


def test_products_that_are_no_numbers_and_partitions_that_are_none_are_refused():
    with pytest.raises(NonFiniteError, match="so are the masses"):
        layer_coupling(Products(torch.full((80, 80), torch.nan)), LAYERS)
    with pytest.raises(InputError, match="partition must be a Partition, got list"):
        layer_coupling(Products(coupled()), ["a"])
