"""Optimisers are copied, saved, extended, frozen and converted while they train, and say so when they cannot be."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from problems import mlp
from test_hessian_free import flat, halves, parameters
from torch import nn

from pyhessian_spectra import DiagonalOperator, EmpiricalRisk, HessianOperator, Partition, cg
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers import HessianFree, Newton, backtracking, levenberg_marquardt

MAKE = {
    "one block": lambda named: HessianFree(named, damping=0.1, averaging=0.9),
    "blocks": lambda named: HessianFree(named, damping=0.1, partition="module", adapt_damping=levenberg_marquardt),
    "newton": lambda named: Newton(named, damping=4.0),
}


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original_does(make, way):
    risk = mlp()
    optimizer = MAKE[make](list(risk.model.named_parameters()))
    optimizer.step(risk)
    pair = (risk.model, optimizer)
    model, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    start = flat(risk)
    optimizer.step(risk)
    assert not torch.equal(flat(risk), start)
    again = EmpiricalRisk(model, nn.CrossEntropyLoss(), risk.data)
    assert torch.equal(flat(again), start)  # which the original's step has not moved
    other.step(again)
    assert torch.equal(flat(again), flat(risk)) and len(other.records) == 2


def test_parameters_that_are_frozen_between_steps_stay_and_move_again_when_they_are_not():
    risk = mlp()
    ((x, y),) = risk.data
    optimizer = HessianFree(risk.model.named_parameters(), damping=0.1)

    def closure():
        outputs = risk.model(x)
        return nn.functional.cross_entropy(outputs, y), outputs

    weight = risk.model[0].weight
    for frozen in (False, True, False):
        weight.requires_grad_(not frozen)
        before = weight.detach().clone()
        optimizer.step(closure)
        assert torch.equal(weight, before) == frozen


def test_a_model_that_is_converted_between_steps_goes_on():
    risk = mlp()
    ((x, y),) = risk.data
    optimizer = HessianFree(risk.model.named_parameters(), damping=0.1)
    first = float(optimizer.step(risk))
    risk.model.float()
    second = optimizer.step(EmpiricalRisk(risk.model, nn.CrossEntropyLoss(), (x, y)))
    assert second.dtype == torch.float32 and float(second) < first


def test_names_that_two_parameters_have_are_refused():
    one, other = nn.Linear(4, 3), nn.Linear(3, 2)
    groups = [{"params": module.named_parameters()} for module in (one, other)]
    with pytest.raises(InputError, match="two parameters 'weight', or one twice"):
        HessianFree(groups)
    named = list(one.named_parameters())
    optimizer = HessianFree(named)
    with pytest.raises(InputError, match="two parameters 'weight'"):
        optimizer.add_param_group({"params": other.named_parameters()})
    assert optimizer.layout.n == 15 and len(optimizer.param_groups) == 1
    assert HessianFree([*one.parameters(), *other.parameters()]).layout.n == 23


def test_a_group_that_does_not_fit_is_not_added():
    risk = mlp()
    named = parameters(risk)
    optimizer = HessianFree(named[:2], damping=0.1)
    for group, sentence in (
        ({"params": named[2:], "damping": -1.0}, "damping must be"),
        ({"params": named[2:], "lr": float("nan")}, "lr must be"),
        ({"params": named[2:], "cg_rtoll": 1.0}, "no setting 'cg_rtoll'; there are lr, damping"),
    ):
        with pytest.raises(InputError, match=sentence):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    before = flat(risk)
    optimizer.step(risk)
    optimizer.add_param_group({"params": named[2:]})
    optimizer.step(risk)
    assert (flat(risk) != before).all()


def test_the_state_of_another_is_refused():
    risk = mlp()
    named = parameters(risk)
    own = HessianFree(named, damping=0.1)
    own.step(risk)
    wide = nn.Linear(9, 9)
    for state, target, sentence in (
        (Newton(named).state_dict(), own, "not the state of a HessianFree"),
        (torch.optim.SGD([p for _, p in named], lr=0.1).state_dict(), own, "not the state of a HessianFree"),
        (own.state_dict(), Newton(named), "not the state of a Newton"),
        (own.state_dict(), HessianFree(wide.parameters()), "the state is of 4 parameters, the optimiser has 2"),
        (own.state_dict(), HessianFree([wide.weight, wide.bias, *nn.Linear(2, 2).parameters()]), "shape"),
    ):
        with pytest.raises(InputError, match=sentence):
            target.load_state_dict(state)


def test_newtons_damping_is_in_its_state():
    risk = mlp()
    state = Newton(parameters(risk), damping=3.0).state_dict()
    optimizer = Newton(parameters(risk), damping=9.0)
    optimizer.load_state_dict(state)
    optimizer.step(risk)
    assert optimizer.records[0].damping == (3.0,)
    groups = [{"params": [p], "damping": float(i)} for i, (_, p) in enumerate(parameters(risk))]
    with pytest.raises(InputError, match="Newton has one for all"):
        Newton(groups)


def test_the_damping_rests_where_there_is_nothing_left_to_gain():
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for line_search in (None, backtracking):
        optimizer = HessianFree(
            [w], damping=0.1, curvature=HessianOperator, adapt_damping=levenberg_marquardt, line_search=line_search
        )
        for _ in range(3):
            optimizer.step(lambda: w.square().sum() + 1)
        assert optimizer.records[-1].rejected is None
        assert optimizer.param_groups[0]["damping"] == 0.1 and not w.any()


def test_a_line_search_that_finds_nothing_says_so():
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = Newton([w], line_search=backtracking)
    with pytest.warns(RuntimeWarning, match="the line search finds nothing better"):
        optimizer.step(lambda: -w.square().sum())  # whose stationary point is a maximum
    assert w.item() == 1.0 and optimizer.records[0].rejected is not None
    for wrong in (-1.0, float("nan"), None, "a"):
        with pytest.raises(InputError, match="the factor of line_search must be a number"):
            Newton([w], line_search=lambda *_, wrong=wrong: wrong).step(lambda: w.square().sum())
        assert w.item() == 1.0


def test_negative_curvature_at_once_has_a_predicted_reduction_and_moves_the_damping():
    w = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([w], curvature=HessianOperator, lr=0.1, damping=0.5, adapt_damping=levenberg_marquardt)
    optimizer.step(lambda: -(w[0] ** 2) - 2 * w[1] ** 2)
    record = optimizer.records[0]
    assert record.predicted == pytest.approx(record.actual, rel=1e-12)  # the loss is its own quadratic model
    assert optimizer.param_groups[0]["damping"] == pytest.approx(0.5 * 2 / 3)
    assert record.num_products == 2  # the one that met it, and one for the model


def test_a_damping_that_is_none_is_refused():
    risk = mlp()
    for wrong in (-1.0, float("nan"), None):
        optimizer = HessianFree(parameters(risk), damping=0.1, adapt_damping=lambda *_, wrong=wrong: wrong)
        with pytest.raises(InputError, match="what adapt_damping returns must be a number"):
            optimizer.step(risk)


def test_records_are_json():
    risk = mlp()
    optimizer = HessianFree(parameters(risk), damping=0.1, partition="layer")
    optimizer.step(risk, halves(risk))
    found = json.loads(json.dumps([record.to_json() for record in optimizer.records], allow_nan=False))
    assert found[0]["solves"][1]["label"] == "2" and found[0]["loss"] == optimizer.records[0].loss


def test_settings_of_other_kinds_are_refused():
    named = parameters(mlp())
    for options, sentence in (
        (dict(lr=-1.0), "lr must be a number of at least 0"),
        (dict(lr=float("inf")), "lr must be"),
        (dict(lr="fast"), "lr must be"),
        (dict(cg_stop=1), "cg_stop must be a function"),
        (dict(curvature="GGN"), "curvature must be a function"),
        (dict(line_search=True), "line_search must be a function"),
        (dict(partition=lambda layout: 3), "returned a int"),
        (dict(partition=[["0", "2"], []]), "empty"),
        (dict(partition=lambda layout: Partition.by_glob(layout, ["0"])), "no block has 2.weight"),
    ):
        with pytest.raises(InputError, match=sentence):
            HessianFree(named, **options)
    for nothing in ([], "weights", 3, [torch.zeros(2)]):
        with pytest.raises(InputError):
            HessianFree(nothing)


def test_inference_mode_and_expanded_parameters_are_refused():
    w = torch.ones(1, dtype=torch.float64).expand(3).requires_grad_()
    with pytest.raises(InputError, match="it is expanded"):
        Newton([w])
    own = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        Newton([own]).step(lambda: own.square().sum())


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size_are_solved_for_in_float32(scale):
    entries = torch.linspace(1, 2, 40)
    b = scale * torch.ones(40)
    found = cg(DiagonalOperator(entries), b, rtol=1e-5)
    assert found.status == "converged" and found.num_iterations > 2
    torch.testing.assert_close(found.x, b / entries, rtol=1e-4, atol=0)
    assert found.residuals[0] == pytest.approx(scale * 40**0.5, rel=1e-5)
    assert found.model[-1] == pytest.approx(-float((b.double() ** 2 / entries).sum()) / 2, rel=1e-4)


def test_a_line_search_counts_in_what_is_predicted():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for make in (Newton, lambda *p, **o: HessianFree(*p, curvature=HessianOperator, **o)):
        optimizer = make([w], lr=1.5, line_search=lambda loss_at, loss, slope: 0.5)
        optimizer.step(lambda: w.square().sum())
        record = optimizer.records[0]
        assert record.actual == pytest.approx(record.predicted) and record.factor == 0.5


def test_a_step_without_end_is_taken_back():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([w], lr=1e308, curvature=HessianOperator)
    with pytest.warns(RuntimeWarning, match="taken back"):
        optimizer.step(lambda: w.square().sum())
    assert torch.equal(w.detach(), torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_an_interrupt_while_damping_adapts_leaves_a_whole_step():
    def interrupted(*_):
        raise KeyboardInterrupt

    risk = mlp()
    optimizer = HessianFree(parameters(risk), damping=0.1, averaging=0.5, adapt_damping=interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(risk)
    after = flat(risk)
    with optimizer.averaged():
        assert torch.equal(flat(risk), after)


def test_states_that_keep_groups_and_parameters_only_are_enough():
    risk = mlp()
    optimizer = HessianFree(parameters(risk), damping=0.1)
    optimizer.step(risk)
    state = {key: optimizer.state_dict()[key] for key in ("state", "param_groups")}
    other = HessianFree(parameters(risk), damping=0.7)
    other.load_state_dict(state)
    other.step(risk)
    assert other.records[0].step == 2 and other.records[0].damping == (0.1,)


def test_warnings_point_at_the_line_that_steps():
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="taken back") as caught:
        Newton([w], lr=3.0).step(lambda: w.log().sum() ** 2 + 5 * w.square().sum())
    assert caught[0].filename == __file__
