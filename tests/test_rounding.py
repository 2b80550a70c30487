"""Rounding of products is measured and enters every certificate: each covers the float64 truth."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyhessian_spectra import (
    BlockDiagonalOperator,
    CongruenceOperator,
    DiagonalOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    IdentityOperator,
    LinearOperator,
    MatrixOperator,
    Meter,
    ShiftedOperator,
    analyze,
    analyze_operator,
    eigh,
    eigsh,
    frobenius_norm,
    slq,
    trace,
)
from pyhessian_spectra.spectra.rounding import Rounding
from pyhessian_spectra.testing import matrix_with_spectrum

N = 120
VALUES = np.r_[np.linspace(-0.2, 0.2, N - 4), 1.0, 2.0, 5.0, 9.0]


class Wrong(LinearOperator):
    """Products with ``A + E``, whose reference is ``A``."""

    def __init__(self, right: torch.Tensor, error: torch.Tensor) -> None:
        super().__init__(len(right), dtype=torch.float32)
        self._right, self._wrong = right, (right + error).float()

    def _matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self._wrong @ v

    def reference(self) -> LinearOperator:
        return MatrixOperator(self._right)


def symmetric_error(rank: int, size: float, seed: int) -> torch.Tensor:
    factor = torch.randn(N, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    error = factor @ torch.diag(torch.tensor([(-1.0) ** i for i in range(rank)], dtype=torch.float64)) @ factor.T
    return size * error / torch.linalg.matrix_norm(error, 2)


def assert_covers(block, truth: np.ndarray) -> None:
    """Intervals, bounds on the others, bands and sums all hold the true eigenvalues (ascending)."""
    for pairs, ranks in (
        (block.largest, slice(-len(block.largest), None)),
        (block.smallest, slice(0, len(block.smallest))),
    ):
        inside = (pairs.lower[:, None] <= truth) & (truth <= pairs.upper[:, None])
        assert inside.any(axis=1).all()
        if pairs.others is None and not block.spectrum.exact:
            continue
        low, high = pairs.others or (np.inf, -np.inf)
        certain = (pairs.eigenvalues > high) | (pairs.eigenvalues < low)
        assert ((pairs.lower <= truth[ranks]) & (truth[ranks] <= pairs.upper))[certain].all()
        assert block.spectrum.exact or (truth > high).sum() <= len(block.largest)
    grid = np.linspace(truth[0] - 0.1, truth[-1] + 0.1, 400)
    lower, upper = block.spectrum.cdf_bounds(grid, level=0.99, others=block.largest.others)
    true = np.searchsorted(truth, grid, side="right") / len(truth)
    assert (lower <= true + 1e-12).all() and (true <= upper + 1e-12).all()
    if block.trace.stderr == 0:
        assert abs(block.trace.value - truth.sum()) <= block.trace.rounding
        assert abs(block.frobenius.value - np.linalg.norm(truth)) <= block.frobenius.rounding


@pytest.mark.parametrize("drift", [0.5, 1.0, 1.5, 3.0, 10.0])
def test_the_error_of_a_trace_is_bounded_though_one_vector_may_see_none_of_it(drift):
    missed = []
    for seed in range(200):
        noise = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        noise = (noise + noise.T) / torch.linalg.matrix_norm(noise + noise.T) / 1e3
        error = noise + drift / 1e3 / N * torch.eye(N, dtype=torch.float64)
        op = Wrong(torch.diag(torch.from_numpy(VALUES)), error)
        missed.append(abs(float(error.trace())) > Rounding(op).everywhere().trace)
    assert np.mean(missed) <= 0.02


@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.5])
@pytest.mark.parametrize("rank", [1, 30])
def test_errors_of_products_are_within_every_certificate(rank, size):
    right = matrix_with_spectrum(VALUES).to_dense()
    for seed in range(3):
        op = Wrong(right, symmetric_error(rank, size, seed))
        found = analyze_operator(
            op, exact_limit=0, num_eigenvalues=3, num_steps=20, generator=torch.Generator().manual_seed(seed)
        )
        assert_covers(found, VALUES)
        assert size / 10 < found.largest.rounding < 100 * size
        whole = eigh(op)
        assert whole.rounding < 1e-9 and np.allclose(whole.eigenvalues, VALUES, atol=1e-12)  # by the reference
        pairs = eigsh(op, 2, generator=torch.Generator().manual_seed(seed))
        assert (pairs.lower <= VALUES[-2:]).all() and (VALUES[-2:] <= pairs.upper).all()


def test_rounding_widens_traces_norms_and_bands():
    right = matrix_with_spectrum(VALUES).to_dense()
    op, generator = Wrong(right, 0.05 * torch.eye(N, dtype=torch.float64)), torch.Generator().manual_seed(0)
    for method in ("hutchinson", "hutch++", "xtrace"):
        assert trace(op, method=method, generator=generator).rounding >= 0.05 * N
    assert frobenius_norm(op, generator=generator).rounding >= 0.05 * N**0.5
    spectrum = slq(op, num_steps=N, generator=generator)
    assert 0.05 <= spectrum.rounding < 5
    lower, upper = spectrum.cdf_bounds([0.0], level=0.99)
    assert lower[0] <= 0.5 <= upper[0]
    density = spectrum.density_bounds([9.0], bandwidth=0.02, level=0.99)
    assert density[0][0] <= 1 / N / (0.02 * (2 * np.pi) ** 0.5) <= density[1][0]


def test_an_operator_without_a_reference_is_measured_by_its_nonlinearity():
    class Coarse(LinearOperator):
        def _matvec(self, v: torch.Tensor) -> torch.Tensor:
            return (values @ v * 2**8).round() / 2**8

    values = matrix_with_spectrum(VALUES).to_dense().float()
    coarse = analyze_operator(Coarse(N, dtype=torch.float32), exact_limit=0, num_eigenvalues=3, num_steps=20)
    fine = analyze_operator(MatrixOperator(values), exact_limit=0, num_eigenvalues=3, num_steps=20)
    assert coarse.largest.rounding > 1e-3 > 10 * fine.largest.rounding
    assert_covers(coarse, VALUES)


@functools.cache
def trained(steps: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3))
    x = torch.randn(60, 8)
    y = torch.randint(3, (60,))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model, x, y


@pytest.mark.parametrize("matrix", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("steps", [0, 2000])
@pytest.mark.parametrize("limit", [0, 3000])
def test_trained_float32_networks_are_certified(matrix, steps, limit):
    model, x, y = trained(steps)
    risk = EmpiricalRisk(model, F.cross_entropy, [(x[:30], y[:30]), (x[30:], y[30:])])
    generator = torch.Generator().manual_seed(0)  # bands hold with 99 % probability
    found = analyze(
        risk, matrix=matrix, exact_limit=limit, num_eigenvalues=3, layers=True, num_steps=20, generator=generator
    )
    twice = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    twice.load_state_dict(model.state_dict())
    precise = EmpiricalRisk(twice, F.cross_entropy, (x.double(), y))
    for name, block in {None: found.full, **found.layers}.items():
        part = precise if name is None else precise.restrict(name)
        assert_covers(block, np.linalg.eigvalsh(matrix(part).to_dense().numpy()))


def test_confident_predictions_cost_float32_no_digits():
    model, x, y = trained(2000)
    op = HessianOperator(EmpiricalRisk(model, F.cross_entropy, (x, y)))
    assert F.cross_entropy(model(x), y).item() < 1e-4
    v = torch.randn(op.n, generator=torch.Generator().manual_seed(0))
    exact = op.reference() @ v.double()
    assert (op @ v - exact).norm() < 1e-5 * exact.norm()  # 1e-2 with torch's own cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_references_are_the_same_matrix(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    risk = EmpiricalRisk(model, nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 2)))
    h = HessianOperator(risk)
    n = h.n
    identity = IdentityOperator(h.space)
    index = torch.tensor([0, 5, 7])
    for op in (
        h,
        2 * h - 0.5 * GGNOperator(risk) + identity,
        ShiftedOperator(h, 0.3),
        CongruenceOperator(h, index),
        CongruenceOperator(h, torch.linspace(0.5, 2, n, dtype=dtype)),
        BlockDiagonalOperator([h, DiagonalOperator(torch.ones(2, dtype=dtype))]),
        Meter(h),
    ):
        other = op.reference()
        assert other.dtype == torch.float64
        torch.testing.assert_close(other.to_dense(), op.to_dense().double(), rtol=1e-5, atol=1e-6)
    meter = Meter(h)
    _ = meter.reference() @ torch.ones(n, dtype=torch.float64)
    assert meter.num_products == 1


class Float32Inside(nn.Module):
    """A model that computes in float32 whatever the dtype of its parameters, or refuses others."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "refuses" and x.detach().numpy().dtype != np.float32:
            raise RuntimeError("float32 only")
        hidden = self.model[:2](x)
        return self.model[2](hidden.type("torch.FloatTensor").type_as(x) if self.how == "casts" else hidden)


@pytest.mark.parametrize("how", ["refuses", "casts", "data require gradients"])
@pytest.mark.parametrize("exact_limit", [3000, 0])
def test_rounding_is_measured_where_the_model_has_no_twin_in_float64(how, exact_limit):
    x, y = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        with torch.no_grad():
            model[2].weight.mul_(300)  # saturated: what the forward pass rounds, the loss enlarges
        precise = EmpiricalRisk(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), (x.double(), y))
        truth = eigh(HessianOperator(precise)).eigenvalues
        data = x.clone().requires_grad_() if how == "data require gradients" else x
        risk = EmpiricalRisk(Float32Inside(model, how), nn.CrossEntropyLoss(), (data, y))
        generator = torch.Generator().manual_seed(seed)
        found = analyze(risk, layers=False, num_eigenvalues=3, exact_limit=exact_limit, generator=generator).full
        assert_covers(found, truth)
