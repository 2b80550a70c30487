"""What an optimiser cannot take: one sentence, and parameters as they were."""

from __future__ import annotations

import pytest
import torch
from problems import CASES, mlp
from test_hessian_free import flat, halves, parameters
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator
from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.optimisers import HessianFree, Newton, levenberg_marquardt, squared_gradients

REFUSED = {
    "overlap": (dict(partition=[["0"], ["0.weight", "2"]]), "overlap"),
    "left out": (dict(partition=[["0"]]), "no block has 2.weight, 2.bias"),
    "no such name": (dict(partition={"a": "3"}), "no trainable parameter matches '3'"),
    "damping": (dict(damping=-1.0), "damping must be a number of at least 0"),
    "iterations": (dict(max_cg_iterations=0), "max_cg_iterations must be a whole number of at least 1"),
    "rtol": (dict(cg_rtol=-1.0), "cg_rtol must be a number of at least 0"),
    "momentum": (dict(cg_momentum=1.5), "cg_momentum must be between 0 and 1"),
    "averaging": (dict(averaging=1.0), "averaging must be .* less than 1"),
    "names": (dict(partition=["nothing*"]), "no trainable parameter matches"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_fit_are_refused_at_once(name):
    options, sentence = REFUSED[name]
    with pytest.raises(InputError, match=sentence):
        HessianFree(mlp().model.named_parameters(), **options)


def test_a_block_has_one_setting():
    named = list(mlp().model.named_parameters())
    groups = [{"params": named[:2], "damping": 0.1}, {"params": named[2:], "damping": 0.2}]
    with pytest.raises(InputError, match="block 'all' have different damping"):
        HessianFree(groups)
    assert len(HessianFree(groups, partition="layer").partition) == 2


def refused(risk: EmpiricalRisk, sentence: str, *step: object, error: type = InputError, **options: object) -> None:
    optimizer, before = HessianFree(parameters(risk), damping=0.1, **options), flat(risk)
    with pytest.raises(error, match=sentence):
        optimizer.step(*step)
    assert torch.equal(flat(risk), before) and not optimizer.records


def test_a_subset_that_is_not_smaller_is_refused():
    risk = mlp()
    ((x, y),) = risk.data
    refused(risk, "16 examples are not fewer than the gradient's 16", risk, risk.replace(data=(x, y)))

    def closure():
        outputs = risk.model(x)
        return nn.functional.cross_entropy(outputs, y), outputs

    refused(risk, "16 examples are not fewer than the gradient's 16", closure, closure)


def test_closures_that_return_no_graph_or_no_outputs_are_refused():
    risk = mlp()
    ((x, y),) = risk.data

    def graphless():
        with torch.no_grad():
            outputs = risk.model(x)
            return nn.functional.cross_entropy(outputs, y), outputs

    refused(risk, "without a graph", graphless)
    refused(risk, "scalar tensor, or .*got float", lambda: nn.functional.cross_entropy(risk.model(x), y).item())
    refused(risk, r"return \(loss, outputs\)", lambda: nn.functional.cross_entropy(risk.model(x), y))
    refused(risk, "needs a closure", 3.0)
    assert HessianFree(parameters(risk), curvature=HessianOperator, damping=9.0).step(
        lambda: nn.functional.cross_entropy(risk.model(x), y)
    )


def test_another_models_risk_is_refused():
    refused(mlp(), "does not have the optimiser's parameter 0.weight", mlp())


def test_a_loss_that_is_not_finite_ends_the_step_before_it():
    risk = mlp()
    ((x, y),) = risk.data
    refused(risk, "NaN or infinite", risk.replace(data=(x * torch.nan, y)), error=NonFiniteError)
    refused(risk, "NaN or infinite", risk, risk.replace(data=(x[:4] * torch.nan, y[:4])), error=NonFiniteError)


def test_a_step_to_where_the_loss_is_not_finite_is_taken_back():
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = Newton([w], lr=3.0)
    with pytest.warns(RuntimeWarning, match="step 1 is taken back: the loss after it is NaN or infinite"):
        optimizer.step(lambda: w.log().sum() ** 2 + 5 * w.square().sum())
    assert w.item() == 2.0 and optimizer.records[0].rejected is not None
    free = HessianFree([w], lr=30.0, damping=1e-3, curvature=HessianOperator, adapt_damping=levenberg_marquardt)
    with pytest.warns(RuntimeWarning, match="taken back"):
        free.step(lambda: w.log().sum() ** 2 + 5 * w.square().sum())
    assert w.item() == 2.0 and free.param_groups[0]["damping"] == 1.5e-3
    assert "direction" not in free.state[w]  # the next iteration does not start from there


def test_a_loss_that_is_not_convex_in_the_outputs_has_no_gauss_newton_step():
    risk = mlp()
    ((x, y),) = risk.data
    concave = EmpiricalRisk(risk.model, lambda outputs, targets: -outputs.square().mean(), (x, y))
    refused(concave, "not positive semidefinite", concave)
    bounded = EmpiricalRisk(risk.model, lambda outputs, targets: (1 - torch.exp(-outputs.square())).sum(), (5 * x, y))
    refused(bounded, "not positive semidefinite", bounded)
    for name in ("mlp", "mean_squared_error", "class_weights", "ignored_tokens"):  # convex ones are not
        each = CASES[name]()
        HessianFree(parameters(each), damping=0.1).step(each)


def test_a_damping_that_is_zero_cannot_be_multiplied():
    risk = mlp()
    optimizer = HessianFree(parameters(risk), adapt_damping=levenberg_marquardt)
    with pytest.raises(InputError, match="start from one above 0"):
        optimizer.step(risk)
    optimizer.load_state_dict(HessianFree(parameters(risk), damping=0.3).state_dict())
    optimizer.step(risk)


@pytest.mark.parametrize("partition", ["module", "layer", 1, ["0"], {"a": "0"}])
def test_blocks_by_name_of_parameters_without_names_are_refused(partition):
    with pytest.raises(InputError, match="named_parameters"):
        HessianFree(mlp().model.parameters(), partition=partition)
    assert len(HessianFree(mlp().model.parameters(), partition="parameter").partition) == 4


def test_a_closure_that_calls_backward_is_told_not_to():
    risk = mlp()
    ((x, y),) = risk.data

    def closure():
        outputs = risk.model(x)
        loss = nn.functional.cross_entropy(outputs, y)
        loss.backward()
        return loss, outputs

    optimizer, before = HessianFree(risk.model.parameters(), damping=0.1), flat(risk)
    with pytest.raises(InputError, match=r"leave backward\(\) out"):
        optimizer.step(closure)
    assert torch.equal(flat(risk), before)


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.zeros(43), -1.0, None])
def test_a_preconditioner_that_is_none_is_refused(wrong):
    risk = mlp()
    refused(risk, "positive and finite numbers", risk, preconditioner=lambda *_: wrong)


def test_the_preconditioner_needs_examples():
    risk = mlp()
    ((x, y),) = risk.data

    def closure():
        outputs = risk.model(x)
        return nn.functional.cross_entropy(outputs, y), outputs

    refused(risk, "squared_gradients needs single examples", closure, preconditioner=squared_gradients)


def test_there_is_no_average_before_a_step():
    optimizer = HessianFree(mlp().model.parameters(), averaging=0.9)
    with pytest.raises(InputError, match="there is no average yet"), optimizer.averaged():
        pass


def test_a_run_goes_on_after_an_error():
    risk = mlp()
    ((x, y),) = risk.data
    optimizer = HessianFree(parameters(risk), damping=0.1)
    with pytest.raises(NonFiniteError):
        optimizer.step(risk.replace(data=(x * torch.nan, y)))
    first = float(optimizer.step(risk, halves(risk)))
    assert float(optimizer.step(risk, halves(risk))) < first
