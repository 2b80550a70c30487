"""How much of the gradient lies in the top eigenspace, against the dense Hessian's."""

import copy

import numpy as np
import pytest
import torch
from oracle import Oracle
from problems import CASES, InFloat32, class_weights, mlp

from pyhessian_spectra import EmpiricalRisk, HessianOperator, analyze_operator
from pyhessian_spectra.analysis.gradient import gradient_shares
from pyhessian_spectra.errors import InputError


@pytest.mark.parametrize("name", CASES)
def test_shares_are_those_of_the_dense_eigenvectors_within_their_error(name):
    risk = CASES[name]()
    block = analyze_operator(HessianOperator(risk), num_eigenvalues=4)
    found = gradient_shares(risk, block)
    oracle = Oracle(risk)
    g, vectors = oracle.gradient(), torch.linalg.eigh(oracle.hessian()).eigenvectors.flip(1)[:, :4]
    expected = ((vectors.T @ g) ** 2 / (g @ g)).cumsum(0).numpy()
    assert found.norm == pytest.approx(float(g.norm()), rel=1e-8)
    assert (np.abs(np.cumsum(found.shares) - expected) <= found.errors + 1e-9).all()
    assert found.in_top(4)[0] == pytest.approx(float(found.shares.sum()))


def near_minimum(dtype: torch.dtype, away: float) -> EmpiricalRisk:
    """Least squares, so far from the minimum that rounding in ``dtype`` is seen in the gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator) * torch.tensor([4.0, 3, 2, 1.5, 1, 0.7])
    y = x.sum(dim=1, keepdim=True) + torch.randn(64, 1, generator=generator)
    best = torch.linalg.lstsq(x.double(), y.double()).solution + away
    model = torch.nn.Linear(6, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(best.T)
    x, y = x.to(dtype), y.to(dtype)
    return EmpiricalRisk(model, torch.nn.MSELoss(), list(zip(x.split(16), y.split(16), strict=True)))


def exact_shares(risk: EmpiricalRisk, k: int) -> np.ndarray:
    """The sums of the first ``k`` shares at the same parameters in float64."""
    model = copy.deepcopy(risk.model).double()
    oracle = Oracle(EmpiricalRisk(model, risk.loss_fn, [(x.double(), y.double()) for x, y in risk.data]))
    g, vectors = oracle.gradient(), torch.linalg.eigh(oracle.hessian()).eigenvectors.flip(1)[:, :k]
    return ((vectors.T @ g) ** 2 / (g @ g)).cumsum(0).numpy()


def test_rounding_of_a_small_gradient_in_float32_is_within_the_error():
    risk = near_minimum(torch.float32, away=1e-6)
    op, k = HessianOperator(risk), 4
    block = analyze_operator(op, num_eigenvalues=k)
    found, expected = gradient_shares(risk, block), exact_shares(risk, k)
    assert (found.errors < 1e-2).any()
    assert (np.abs(np.cumsum(found.shares) - expected) <= found.errors).all()
    # what makes the case: by the gradient as float32 has it, shares are off by more
    g, vectors = risk.gradient().double(), torch.from_numpy(block.largest.eigenvectors[:, ::-1].copy()).double()
    rounded = ((vectors.T @ g) ** 2 / (g @ g)).cumsum(0).numpy()
    assert (np.abs(rounded - expected) > found.errors).any()


def test_a_gradient_that_is_nothing_but_rounding_has_shares_of_unknown_error():
    risk = near_minimum(torch.float64, away=0.0)
    found = gradient_shares(risk, analyze_operator(HessianOperator(risk), num_eigenvalues=4))
    assert found.norm < 1e-13 and (found.errors == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_of_a_model_that_does_not_compute_in_float64_have_unknown_errors(dtype):
    risk = mlp()
    model = InFloat32(copy.deepcopy(risk.model)).to(dtype)
    ((x, y),) = risk.data
    lower = EmpiricalRisk(model, risk.loss_fn, (x.to(dtype), y))
    found = gradient_shares(lower, analyze_operator(HessianOperator(risk), num_eigenvalues=3))
    assert (found.errors == 1).all() and found.in_top(1)[1] == 1


@pytest.mark.parametrize("case", [mlp, class_weights])
def test_gradients_of_batches_add_up_to_the_gradient(case):
    risk = case()
    total = sum(share * gradient for share, gradient in risk.batch_gradients())
    torch.testing.assert_close(total, risk.gradient(), rtol=1e-12, atol=1e-14)
    assert sum(share for share, _ in risk.batch_gradients()) == pytest.approx(1.0)


def test_gradients_of_batches_of_a_sum_add_up_to_the_gradient():
    risk = mlp()
    summed = EmpiricalRisk(risk.model, torch.nn.CrossEntropyLoss(reduction="sum"), risk.data)
    total = sum(share * gradient for share, gradient in summed.batch_gradients())
    torch.testing.assert_close(total, summed.gradient(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[20] * 20, [5, 35] * 10], ids=["even", "uneven"])
def test_the_error_of_the_data_is_the_spread_over_samples_of_the_data(sizes, reduction):
    """Of the share with fixed eigenvectors, over fresh data; values are those of the population on average."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(6, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 6, generator=generator, dtype=torch.float64))
    scale = torch.tensor([4.0, 2, 1, 1, 1, 1], dtype=torch.float64)

    def fresh() -> EmpiricalRisk:
        x = torch.randn(400, 6, generator=generator, dtype=torch.float64) * scale
        y = torch.randn(400, 1, generator=generator, dtype=torch.float64) + 1.5 * x[:, :1]
        return EmpiricalRisk(model, loss, list(zip(x.split(sizes), y.split(sizes), strict=True)))

    loss = torch.nn.MSELoss(reduction=reduction)
    block = analyze_operator(HessianOperator(fresh()), num_eigenvalues=2)
    found = [gradient_shares(fresh(), block) for _ in range(100)]
    # of inputs without correlation the gradient is along scale^2 (w - w_0)
    slope = (scale**2 * (model.weight.detach()[0] - 1.5 * torch.eye(6, dtype=torch.float64)[0])).numpy()
    population = np.cumsum((block.largest.eigenvectors[:, ::-1].T @ slope) ** 2) / (slope @ slope)
    for k in (1, 2):
        values = [each.in_top(k)[0] for each in found]
        spread = np.std(values, ddof=1)
        said = np.sqrt(np.mean([each.data_stderr[k - 1] ** 2 for each in found]))
        assert 0.7 < said / spread < 1.4
        assert abs(np.mean(values) - population[k - 1]) < 4 * spread / len(found) ** 0.5


def test_no_share_is_told_of_a_zero_gradient_or_without_vectors():
    model = torch.nn.Linear(2, 1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    risk = EmpiricalRisk(model, torch.nn.MSELoss(), (torch.ones(3, 2).double(), torch.zeros(3, 1).double()))
    block = analyze_operator(HessianOperator(risk), num_eigenvalues=2)
    assert gradient_shares(risk, block) is None
    with pytest.raises(InputError, match="between 1 and the 2 eigenvectors, got 3"):
        gradient_shares(mlp(), analyze_operator(HessianOperator(mlp()), num_eigenvalues=2)).in_top(3)
