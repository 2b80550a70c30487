"""Scores of weights by the Hessian of their layer, against dense Hessians."""

import copy

import pytest
import torch
from oracle import Oracle
from problems import CASES, rectifier_network
from torch import nn

from pyhessian_spectra import EmpiricalRisk
from pyhessian_spectra.curvature import HessianOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.regularisers import curvature_scores

LOSS = nn.CrossEntropyLoss()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(risk):
    return [name for name, shape in risk.layout.shapes.items() if len(shape) > 1]


def expected(block, score):
    rows = block.abs()
    return {"sum": rows.sum(dim=1), "mean": rows.mean(dim=1), "diagonal": rows.diagonal()}[score]


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_dense_hessian_of_each_layer(case):
    risk = CASES[case]()
    hessian = Oracle(risk).hessian()
    for score in ("sum", "mean", "diagonal"):
        for name, found in curvature_scores(risk, weights(risk), score=score).items():
            own = risk.layout.slices[name]
            wanted = expected(hessian[own, own], score)
            tolerance = 100 * risk.n * torch.finfo(torch.float64).eps * float(hessian.abs().max())
            assert found.shape == risk.layout.shapes[name]
            torch.testing.assert_close(found.flatten(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(reduction="sum"), nn.MSELoss(), nn.MSELoss(reduction="sum")])
def test_scores_do_not_depend_on_biases_or_on_the_form_of_the_loss(bias, loss):
    model, (x, y) = rectifier_network(bias=bias)
    targets = y if isinstance(loss, nn.CrossEntropyLoss) else nn.functional.one_hot(y, 3).double()
    risk = EmpiricalRisk(model, loss, [(x[:12], targets[:12]), (x[12:], targets[12:])])
    for name, found in curvature_scores(risk, 3).items():
        parameters = dict(model.named_parameters())

        def value(w, name=name, parameters=parameters):
            return loss(torch.func.functional_call(model, {**parameters, name: w}, (x,)), targets)

        block = torch.func.hessian(value)(parameters[name].detach()).reshape(found.numel(), -1)
        torch.testing.assert_close(found.flatten(), expected(block, "sum"), rtol=1e-11, atol=1e-11)


def test_the_closed_form_is_taken_where_it_is_the_hessian_and_nowhere_else():
    def needs_products(case, name):
        try:
            curvature_scores(CASES[case](), name, limit=1)
        except InputError:
            return True
        return False

    assert not any(needs_products("relu_mlp", name) for name in ("0", "2", "4"))
    assert not needs_products("uneven_last_batch", "2") and not needs_products("class_weights", "2")
    assert not needs_products("mlp", "2") and needs_products("mlp", "0")  # a tanh follows the first layer
    assert needs_products("shared_module", "0") and needs_products("tied_weights", "embed")
    assert needs_products("batchnorm_train", "0") and needs_products("lstm", "lstm")


def test_the_last_layer_of_a_classifier_has_the_scores_of_its_formula():
    """With inputs x >= 0 all terms of a block have one sign: sum_j |H_ij| = E[2 p_a (1 - p_a) x_i |x|_1]."""
    model, (x, y) = rectifier_network()
    with torch.no_grad():
        below = model[:-1](x)
        p = model(x).softmax(dim=1)
    formula = (2 * p * (1 - p)).T @ (below * below.sum(dim=1, keepdim=True)) / len(x)
    torch.testing.assert_close(curvature_scores(EmpiricalRisk(model, LOSS, (x, y)))["4.weight"], formula)


def test_a_layer_is_scored_whose_block_would_not_fit_the_memory():
    """Of 30,000 weights the block has 7.2 GB; rows of it are compared with products."""
    model, data = rectifier_network(widths=(8, 300, 100, 4), examples=8)
    found = curvature_scores(EmpiricalRisk(model, LOSS, data), "2")["2.weight"].flatten()
    op = HessianOperator(EmpiricalRisk(model, LOSS, data, params="2.weight"))
    some = torch.cat([found.topk(3).indices, torch.tensor([0, 17_000])])
    columns = torch.zeros(op.n, len(some), dtype=op.dtype)
    columns[some, torch.arange(len(some))] = 1.0
    torch.testing.assert_close(found[some], (op @ columns).abs().sum(dim=0))


def test_scores_in_float32_are_those_in_float64_to_its_rounding():
    model, data = rectifier_network(dtype=torch.float32)
    exact = copy.deepcopy(model).double()
    found = curvature_scores(EmpiricalRisk(model, LOSS, data), 3)
    for name, wanted in curvature_scores(EmpiricalRisk(exact, LOSS, (data[0].double(), data[1])), 3).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.max()))


def test_too_many_products_are_refused_and_the_diagonal_is_named_where_it_helps():
    risk = CASES["batchnorm_eval"]()
    with pytest.raises(InputError, match=r"18 weights, more than limit = 3; take score='diagonal'"):
        curvature_scores(risk, "0", limit=3)
    assert curvature_scores(risk, "0", score="diagonal", limit=3)["0.weight"].shape == (2, 1, 3, 3)
    with pytest.raises(InputError, match=r"more than limit = 3; score a smaller layer"):
        curvature_scores(CASES["mlp"](), "0", limit=3)
