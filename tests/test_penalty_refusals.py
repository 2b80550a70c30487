"""What the trace penalty refuses."""

from __future__ import annotations

import pytest
import torch
from functions import Apply, CubeOnce, CubeTwice
from penalties import BATCH, both_matrices, deep
from torch import nn

from pyhessian_spectra.errors import InputError, NonFiniteError, SecondDerivativeError
from pyhessian_spectra.regularisers import trace_penalty


def test_of_an_unknown_layer_the_nearest_is_offered():
    with pytest.raises(InputError, match=r"no trainable parameter matches 'd.weigth'; did you mean 'd.weight'\?"):
        deep(groups="d.weigth")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"probes": "uniform"}, "probes must be one of rademacher, gaussian"),
        ({"num_probes": 0}, "at least 1"),
        ({"every": 0}, "at least 1"),
        ({"start": -1}, "at least 0"),
        ({"mode": "test"}, "mode must be"),
    ],
)
def test_wrong_arguments_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        deep(**options)


def test_modules_in_both_modes_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    penalty = trace_penalty(model, nn.CrossEntropyLoss())
    model[1].eval()
    with pytest.raises(InputError, match="in train mode and its module 1 in eval mode; pass mode="):
        penalty(BATCH)


def test_dropout_that_is_active_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"rate 0\.5"):
        trace_penalty(model, nn.CrossEntropyLoss())
    assert trace_penalty(model, nn.CrossEntropyLoss(), mode="eval")(BATCH).requires_grad


@both_matrices
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_a_piecewise_linear_loss_is_refused(activation, matrix):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), activation(), nn.Linear(8, 2))
    with pytest.raises(SecondDerivativeError, match="piecewise linear, such as L1"):
        trace_penalty(model, nn.L1Loss(), matrix=matrix)((torch.eye(2), torch.full((2, 2), 9.0)))


@both_matrices
def test_a_loss_without_third_derivative_is_refused(matrix):
    with pytest.raises(SecondDerivativeError, match="no third one"):
        trace_penalty(nn.Linear(2, 2), nn.MSELoss(), matrix=matrix)((torch.eye(2), torch.eye(2)))


def test_a_head_of_zeros_is_no_loss_without_derivatives():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.zeros_(model[2].weight)
    assert float(trace_penalty(model, nn.CrossEntropyLoss(), groups="0")(BATCH).detach()) == 0


@both_matrices
@pytest.mark.parametrize(("function", "named"), [(CubeOnce, "CubeOnce"), (CubeTwice, "BendOnce")])
def test_an_operation_without_further_derivatives_is_named(function, named, matrix):
    model = nn.Sequential(nn.Linear(2, 3), Apply(function.apply), nn.Linear(3, 2))
    with pytest.raises(SecondDerivativeError, match=named):
        trace_penalty(model, nn.CrossEntropyLoss(), matrix=matrix)(BATCH)


def test_a_batch_without_a_trace_and_switched_off_derivatives_are_told_as_such():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.ones(2, 3)
    penalty = trace_penalty(model, nn.CrossEntropyLoss())
    with torch.no_grad(), pytest.raises(InputError, match="outside of"):
        penalty((x, torch.tensor([0, 1])))
    with pytest.raises(NonFiniteError, match="whether it has any target that counts"):
        penalty((x, torch.tensor([-100, -100])))
