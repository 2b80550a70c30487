"""Where rounding hides the loss or its derivatives, right models are not refused, and wrong ones still are."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from functions import Apply, CubeAlmost
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator
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
    assert "products right to" in told and "whether gradients are right cannot be seen" in told
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
