"""Where rounding hides the loss or its derivatives, right models are not refused, and wrong ones still are."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from functions import Apply, CubeAlmost
from torch import nn

from pyhessian_spectra import EmpiricalFisherOperator, EmpiricalRisk, HessianOperator
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import UnverifiedError


@pytest.mark.parametrize("seed", [1, 2, 3, 5])
def test_a_loss_that_rounding_makes_zero_is_no_fault(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(100)
    x = torch.randn(16, 10)
    y = model(x).argmax(1)
    told = verify(HessianOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)])))
    assert "products right to" in told.found and "gradients" not in told.found
    assert told.doubts[-1].startswith("Whether gradients are right cannot be seen")
    assert nn.CrossEntropyLoss()(model.double()(x.double()), y) == 0


@pytest.mark.parametrize("loss", [1e-3, 1e-7, 1e-10, 1e-13, 1e-14])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Sigmoid])
def test_cross_entropy_of_examples_that_are_fitted_is_no_fault(loss, activation):
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 3)).double()
        x = torch.randn(20, 3, dtype=torch.float64)
        outputs = model(x).topk(2).values
        with torch.no_grad():
            for p in model[2].parameters():
                p.mul_(-math.log(loss) / (outputs[:, 0] - outputs[:, 1]).min())
        verify(HessianOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, model(x).argmax(1))])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_second_derivative_is_seen_where_the_loss_converts_to_float32(dtype):
    model = nn.Sequential(nn.Linear(3, 5), Apply(CubeAlmost.apply), nn.Linear(5, 3)).to(dtype)
    x, y = torch.randn(12, 3, dtype=dtype), torch.arange(12) % 3
    with pytest.raises(UnverifiedError, match="products with the Hessian" if dtype == torch.float32 else "computes in"):
        verify(HessianOperator(EmpiricalRisk(model, lambda outputs, y: F.cross_entropy(outputs.float(), y), [(x, y)])))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU])
@pytest.mark.parametrize("examples", [8, 64])  # of which the last are zero
def test_a_kink_at_the_point_itself_is_told_and_is_no_fault(activation, examples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.zero_()
    x, y = torch.randn(examples, 5), torch.arange(examples) % 3
    x[-4:] = 0
    verdict = verify(HessianOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)])))
    assert "gradients right to" in verdict.found and "products to" in verdict.found
    if examples == 8 or activation not in (nn.ELU, nn.CELU):  # whose first derivatives have none: later ones are seen
        assert verdict.doubts[0].startswith("The loss has a kink at exactly these parameters")
    if examples == 8:
        wrong = nn.Sequential(*model[:2], Apply(CubeAlmost.apply), model[2])
        with pytest.raises(UnverifiedError, match="products"):
            verify(HessianOperator(EmpiricalRisk(wrong, nn.CrossEntropyLoss(), [(x, y)])))


def test_a_model_that_rounds_to_float32_within_is_not_certified_in_silence():
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = 3 * x.float() ** 2
            return x**3

        @staticmethod
        def backward(ctx, g):
            return ctx.slope * g

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), Apply(Rounded.apply), nn.Linear(3, 2)).double()
    data = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 2
    with pytest.raises(UnverifiedError, match="products with the Hessian"):
        verify(HessianOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(), data)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1, 5, 10])
def test_the_fisher_matrix_of_examples_that_are_fitted_is_no_fault(scale, dtype):
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(), nn.Linear(6, 3)).to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        x = torch.randn(12, 5, dtype=dtype)
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, model(x).argmax(1))])
        verify(EmpiricalFisherOperator(risk))


def test_class_weights_in_float32_are_no_fault():
    weights = torch.tensor([0.2, 1.0, 3.0])
    for seed in range(40):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(10)
        data = [(torch.randn(12, 5), torch.randint(0, 3, (12,))) for _ in range(2)]
        verify(HessianOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(weight=weights), data)))


def test_a_matrix_of_zeros_is_seen_to_be_zero():
    torch.manual_seed(0)
    data = torch.randn(12, 4), torch.randn(12, 2)
    verdict = verify(HessianOperator(EmpiricalRisk(nn.Linear(4, 2), nn.L1Loss(), data)))
    assert "products to 0e+00" in verdict.found and not verdict.doubts
