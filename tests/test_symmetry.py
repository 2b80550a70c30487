"""Symmetries of a ReLU network and the zeros they force."""

import numpy as np
import pytest
import torch
from torch import nn

from pyhessian_spectra.analysis.symmetry import check_ggn_rank, check_relu_rescaling, check_softmax_shift
from pyhessian_spectra.curvature.operators import GGNOperator, HessianOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError

EPS = np.finfo(np.float64).eps


def risk(activation: nn.Module | None = None, *, num: int = 30, classes: int = 2, loss=None) -> EmpiricalRisk:
    """A 2-4-5-C network away from any critical point, in float64."""
    generator = torch.Generator().manual_seed(0)
    act = activation or nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 4), act, nn.Linear(4, 5), act, nn.Linear(5, classes)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (num,), generator=generator)
    return EmpiricalRisk(model, loss or nn.CrossEntropyLoss(), (x, y))


def test_the_softmax_shift_gives_h_plus_one_null_directions_anywhere():
    problem = risk()
    assert float(problem.gradient().norm()) > 1e-2
    op = HessianOperator(problem)
    check = check_softmax_shift(op, output="4")
    assert check.directions.shape == (op.shape[0], 6)
    assert torch.linalg.matrix_rank(check.directions) == 6
    assert check.worst < 100 * EPS
    assert check.scale == pytest.approx(float(torch.linalg.eigvalsh(op.to_dense()).abs().max()), rel=1e-2)


def test_another_loss_does_not_have_the_softmax_shift():
    def squared(outputs, targets):
        return (outputs - nn.functional.one_hot(targets, 2)).square().mean()

    assert check_softmax_shift(HessianOperator(risk(loss=squared)), output="4").worst > 1e-3


@pytest.mark.parametrize(("incoming", "outgoing", "units"), [("0", "2", 4), ("2", "4", 5)])
def test_relu_rescaling_ties_the_hessian_to_the_gradient(incoming, outgoing, units):
    check = check_relu_rescaling(HessianOperator(risk()), incoming=incoming, outgoing=outgoing)
    assert check.residuals.shape == (units,)
    assert check.worst < 1000 * EPS


def test_a_smooth_activation_does_not_have_the_rescaling():
    check = check_relu_rescaling(HessianOperator(risk(nn.Tanh())), incoming="0", outgoing="2")
    assert check.worst > 1e-3


def test_a_dead_unit_does_not_break_the_check():
    problem = risk()
    with torch.no_grad():
        problem.model[0].weight[1] = 0
        problem.model[0].bias[1] = 0
        problem.model[2].weight[:, 1] = 0
    problem = EmpiricalRisk(problem.model, problem.loss_fn, problem.data)
    assert check_relu_rescaling(HessianOperator(problem), incoming="0", outgoing="2").worst < 1000 * EPS


@pytest.mark.parametrize(("num", "classes"), [(4, 3), (6, 2), (50, 2)])
def test_the_rank_of_the_gauss_newton_matrix_is_bounded(num, classes):
    op = GGNOperator(risk(num=num, classes=classes))
    check = check_ggn_rank(op, num_outputs=classes)
    assert check.bound == min(op.shape[0], num * (classes - 1))
    assert 0 < check.rank <= check.bound
    assert check.residual < 1000 * EPS


def test_the_rank_residual_sees_what_lies_beyond_the_bound():
    # a squared error has rank C for each example, one more than the bound of a softmax
    op = GGNOperator(risk(num=4, classes=3, loss=lambda z, y: (z - nn.functional.one_hot(y, 3)).square().mean()))
    assert check_ggn_rank(op, num_outputs=3).residual > 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: check_softmax_shift(op, output="nine"), "'nine.weight' is not among the coordinates"),
        (lambda op: check_relu_rescaling(op, incoming="0", outgoing="4"), "two layers that follow each other"),
        (lambda op: check_ggn_rank(op, num_outputs=0), "num_outputs must be at least 1"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(HessianOperator(risk()))
