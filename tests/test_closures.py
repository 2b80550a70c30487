"""What a step is given is checked before it moves a parameter, in a new run and in a resumed one."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import mlp
from test_hessian_free import flat, parameters
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyhessian_spectra import EmpiricalRisk, HessianOperator, analyze
from pyhessian_spectra.errors import InputError, SecondDerivativeError
from pyhessian_spectra.optimisers import HessianFree, Newton


def test_a_loss_that_has_nothing_to_do_with_the_parameters_or_the_outputs_is_refused():
    risk, other = mlp(), mlp()
    ((x, y),) = risk.data
    optimizer = HessianFree(parameters(risk), damping=0.1)

    def elsewhere():
        outputs = other.model(x)
        return nn.functional.cross_entropy(outputs, y), outputs

    def beside():
        return nn.functional.cross_entropy(risk.model(x), y), risk.model(x)

    with pytest.raises(InputError, match="depends on none of the optimiser's parameters"):
        optimizer.step(elsewhere)
    with pytest.raises(InputError, match="not computed from the outputs"):
        optimizer.step(beside)
    optimizer.step(risk)
    with pytest.raises(InputError, match="not computed from the outputs"):  # also later on
        optimizer.step(beside)


def test_checkpoints_that_call_backward_are_refused_also_where_torch_leaves_them_out():
    risk = mlp()
    ((x, y),) = risk.data

    def closure():
        hidden = checkpoint(risk.model[:2], x.clone().requires_grad_(), use_reentrant=True)
        outputs = risk.model[2](hidden)
        return nn.functional.cross_entropy(outputs, y), outputs

    before = flat(risk)
    with pytest.raises(SecondDerivativeError, match="use_reentrant=False"):
        HessianFree(parameters(risk), damping=0.1).step(closure)
    assert torch.equal(flat(risk), before)


def test_a_closure_that_draws_at_random_is_refused():
    risk = mlp()
    ((x, y),) = risk.data

    def closure():
        outputs = risk.model(nn.functional.dropout(x))
        return nn.functional.cross_entropy(outputs, y), outputs

    with torch.random.fork_rng(), pytest.raises(InputError, match="the loss at the same parameters was"):
        torch.manual_seed(0)
        HessianFree(parameters(risk), damping=0.1).step(closure)


@pytest.mark.parametrize("make", [HessianFree, Newton])
@pytest.mark.parametrize("way", ["resumed", "loaded over", "copied"])
def test_a_run_that_goes_on_elsewhere_is_checked_as_a_new_one_is(make, way):
    risk = mlp()
    ((x, y),) = risk.data
    optimizer = make(parameters(risk), damping=5.0)
    optimizer.step(risk)
    if way == "copied":
        model, optimizer = copy.deepcopy((risk.model, optimizer))
    else:
        model, state = risk.model, optimizer.state_dict()
        optimizer = make(parameters(risk), damping=5.0) if way == "resumed" else optimizer
        optimizer.load_state_dict(state)
    other = mlp().model
    concave = EmpiricalRisk(model, lambda outputs, targets: -outputs.square().mean(), (x, y))

    def random():
        outputs = model(nn.functional.dropout(x))
        return nn.functional.cross_entropy(outputs, y), outputs

    def elsewhere():
        outputs = other(x)
        return nn.functional.cross_entropy(outputs, y), outputs

    refused = [(random, "the loss at the same parameters was"), (elsewhere, "depends on none")]
    refused += [(concave, "not positive semidefinite")] if make is HessianFree else []
    for closure, sentence in refused:
        with torch.random.fork_rng(), pytest.raises(InputError, match=sentence):
            optimizer.step(closure)
    optimizer.step(EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y)))
    assert optimizer.records[-1].step == 2


def test_a_loss_in_another_precision_than_the_parameters():
    ends = []
    for dtype, inner in ((torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float64,) * 2):
        risk = mlp()
        model, ((x, y),) = risk.model.to(dtype), risk.data

        def closure(model=model, x=x, y=y, dtype=dtype, inner=inner):
            outputs = model(x.to(dtype)).to(inner)
            return nn.functional.cross_entropy(outputs, y), outputs

        HessianFree(model.named_parameters(), damping=0.1, lr=1.0).step(closure)
        ends.append(torch.cat([p.detach().double().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[1], ends[2], rtol=1e-4, atol=1e-5)


def test_a_loader_that_leaves_other_examples_out_each_time_is_refused():
    risk = mlp()
    ((x, y),) = risk.data
    data = torch.utils.data.TensorDataset(x, y)
    for drop, fits in ((True, False), (False, True)):
        loader = torch.utils.data.DataLoader(data, 7, shuffle=True, drop_last=drop, generator=torch.Generator())
        own = EmpiricalRisk(risk.model, nn.CrossEntropyLoss(), loader)
        optimizer = HessianFree(parameters(risk), damping=0.1)
        if fits:
            optimizer.step(own)
        else:
            with pytest.raises(InputError, match="leaves examples out"):
                optimizer.step(own)


def test_a_closures_risk_is_at_the_live_point_and_no_other():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    risk = EmpiricalRisk.from_closure({"w": w}, lambda: 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2)
    op = HessianOperator(risk)
    expected = torch.tensor([[1200 - 400 * 2.0 + 2, -400], [-400, 200]], dtype=torch.float64)
    torch.testing.assert_close(op.to_dense(), expected)
    with torch.no_grad():
        w[1] = 1.0
    assert op.to_dense()[0, 0] == 802
    with pytest.raises(InputError, match="a closure is evaluated at the parameters as they are"):
        analyze(risk)
    with pytest.raises(InputError, match="a closure is evaluated at the parameters as they are"):
        op.at(op.point.moved(torch.ones(2, dtype=torch.float64))) @ torch.ones(2, dtype=torch.float64)
