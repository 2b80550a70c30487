"""How much of the gradient lies in the top eigenspace, against the dense Hessian's."""

import numpy as np
import pytest
import torch
from oracle import Oracle
from problems import CASES, class_weights, mlp

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


def test_the_error_of_the_data_is_the_spread_over_samples_of_the_data():
    """Of the share with fixed eigenvectors, over fresh data."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(6, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 6, generator=generator, dtype=torch.float64))
    scale = torch.tensor([4.0, 2, 1, 1, 1, 1], dtype=torch.float64)

    def fresh() -> EmpiricalRisk:
        x = torch.randn(400, 6, generator=generator, dtype=torch.float64) * scale
        y = torch.randn(400, 1, generator=generator, dtype=torch.float64) + 1.5 * x[:, :1]
        return EmpiricalRisk(model, torch.nn.MSELoss(), list(zip(x.split(20), y.split(20), strict=True)))

    block = analyze_operator(HessianOperator(fresh()), num_eigenvalues=2)
    found = [gradient_shares(fresh(), block) for _ in range(150)]
    for k in (1, 2):
        spread = np.std([each.in_top(k)[0] for each in found], ddof=1)
        said = np.sqrt(np.mean([each.data_stderr[k - 1] ** 2 for each in found]))
        assert 0.75 < said / spread < 1.35


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
