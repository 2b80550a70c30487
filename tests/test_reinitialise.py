"""What a reset of weights by their scores changes and leaves."""

import copy

import numpy as np
import pytest
import torch
from problems import CASES, rectifier_network
from torch import nn

from pyhessian_spectra import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.regularisers import CurvatureReinitializer, curvature_scores

LOSS = nn.CrossEntropyLoss()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reset(model, **choices):
    return CurvatureReinitializer(model, LOSS, generator=generator(), **choices)


@pytest.mark.parametrize("select", ["top", "bottom"])
def test_the_chosen_weights_are_zero_and_all_else_is_as_it_was(select):
    model, data = rectifier_network()
    model.train()
    model(data[0]).square().sum().backward()
    before, slopes = copy.deepcopy(model), [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    scores = curvature_scores(EmpiricalRisk(model, LOSS, data))["4.weight"].flatten()
    done = reset(model, k=20, select=select).step(data)
    order = scores.argsort(descending=select == "top", stable=True)
    assert set(done.coordinates["4.weight"].tolist()) == set(order[:3].tolist())  # 20 % of 15
    after = before[4].weight.detach().flatten().clone()
    after[done.coordinates["4.weight"]] = 0
    assert torch.equal(model[4].weight.flatten(), after)
    for (name, p), q, slope in zip(model.named_parameters(), before.parameters(), slopes, strict=True):
        assert name == "4.weight" or torch.equal(p, q)
        assert torch.equal(p.grad, slope)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_the_log_has_what_was_seen():
    model, data = rectifier_network()
    loss = float(LOSS(model(data[0]), data[1]).detach())
    scores = curvature_scores(EmpiricalRisk(model, LOSS, data), 2)
    steps = reset(model, layers=2, k=10)
    done = steps.step(data)
    assert steps.log == [done] and done.seed == 0 and done.cleared == ()
    assert done.before == pytest.approx(loss, rel=1e-12)
    assert done.after == pytest.approx(float(LOSS(model(data[0]), data[1]).detach()), rel=1e-12)
    for name, values in scores.items():
        np.testing.assert_allclose(done.quantiles[name], np.quantile(values, (0, 0.25, 0.5, 0.75, 0.9, 1)))
    steps.step(data)
    assert len(steps.log) == 2


def test_sum_and_mean_choose_alike_within_a_layer_and_not_where_layers_are_pooled():
    chosen = {}
    for scope in ("layer", "pooled"):
        for score in ("sum", "mean"):
            model, data = rectifier_network()
            found = reset(model, layers=3, k=20, score=score, scope=scope).step(data).coordinates
            chosen[scope, score] = {name: c.tolist() for name, c in found.items()}
    assert chosen["layer", "sum"] == chosen["layer", "mean"]
    assert chosen["pooled", "sum"] != chosen["pooled", "mean"]
    assert sum(map(len, chosen["pooled", "mean"].values())) == round(0.2 * (24 + 30 + 15))


@pytest.mark.parametrize("unit", ["row", "column"])
def test_a_unit_is_reset_whole_by_the_sum_of_its_scores(unit):
    model, data = rectifier_network()
    axis = 1 if unit == "row" else 0  # the axis along which a unit lies
    units = curvature_scores(EmpiricalRisk(model, LOSS, data), "2")["2.weight"].sum(dim=axis)
    reset(model, layers="2", k=40, unit=unit).step(data)
    zero = (model[2].weight == 0).all(dim=axis)
    assert set(zero.nonzero()[:, 0].tolist()) == set(units.topk(2).indices.tolist())  # 40 % of 5 and of 6


@pytest.mark.parametrize("count", range(1, 10))
def test_pooled_units_are_ranked_by_the_mean_score_of_their_weights_where_it_is_asked_for(count):
    model, data = rectifier_network()
    means = curvature_scores(EmpiricalRisk(model, LOSS, data), 3, score="mean")
    rows = torch.cat([scores.mean(dim=1) for scores in means.values()])  # of 6, 5 and 3 units
    reset(model, layers=3, k=100 * count / len(rows), score="mean", unit="row", scope="pooled").step(data)
    zero = torch.cat([(model.get_parameter(name) == 0).all(dim=1) for name in means])
    assert set(zero.nonzero()[:, 0].tolist()) == set(rows.topk(count).indices.tolist())


def test_new_values_are_drawn_as_asked():
    bounds = {"zeros": 0.0, "uniform": 0.05, "xavier": (6 / (6 + 5)) ** 0.5, "own": 6**-0.5}
    for init, bound in bounds.items():
        model, data = rectifier_network()
        found = reset(model, layers="2", k=90, init=init).step(data).coordinates["2.weight"]
        new = model[2].weight.detach().flatten()[found]
        assert float(new.abs().max()) <= bound
        assert init == "zeros" or (float(new.abs().max()) > 0.8 * bound and len(new.unique()) == 27)
    model, data = rectifier_network()
    own = lambda shape, draw: torch.full(shape, 7.0)  # noqa: E731
    reset(model, k=10, init=own).step(data)
    assert int((model[4].weight == 7).sum()) == 2
    with pytest.raises(InputError, match=r"a real tensor \(3, 5\) for 4.weight, and gave shape \(2,\)"):
        reset(model, init=lambda shape, draw: torch.zeros(2)).step(data)


@pytest.mark.parametrize("choices", [{"select": "random"}, {"init": "own"}, {"init": "xavier"}])
def test_seeds_repeat(choices):
    results = []
    for seed in (0, 0, 1):
        model, data = rectifier_network()
        torch.rand(1)  # the global state has no part in it, and is left alone
        state = torch.get_rng_state()
        CurvatureReinitializer(model, LOSS, k=50, generator=generator(seed), **choices).step(data)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(model[4].weight.detach())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_random_selection_takes_no_hessian():
    risk = CASES["mlp"]()
    done = reset(risk.model, layers="0", k=10, select="random", limit=0).step(risk.data)
    assert len(done.coordinates["0.weight"]) == 2 and not done.quantiles


@pytest.mark.parametrize(
    "optimizer, keys",
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), ["momentum_buffer"]),
        (lambda p: torch.optim.Adam(p, amsgrad=True), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (lambda p: torch.optim.SGD(p, lr=0.1), []),
    ],
)
def test_the_optimizer_forgets_the_weights_that_are_reset_and_nothing_else(optimizer, keys):
    model, (x, y) = rectifier_network()
    steps = optimizer(model.parameters())
    resets = reset(model, k=20, optimizer=steps)
    assert resets.step((x, y)).cleared == ()  # there is no state yet
    LOSS(model(x), y).backward()
    steps.step()
    before = copy.deepcopy(steps.state_dict()["state"])
    done = resets.step((x, y))
    assert list(done.cleared) == [f"4.weight {key}" for key in keys]
    names = [name for name, _ in model.named_parameters()]
    for number, entries in steps.state_dict()["state"].items():
        for key, value in entries.items():
            wanted = before[number][key]
            if names[number] == "4.weight" and key in keys:
                here = done.coordinates["4.weight"]
                assert bool((wanted.view(-1)[here] != 0).all())
                wanted.view(-1)[here] = 0
            assert value is wanted or torch.equal(value, wanted)


def test_state_that_cannot_be_cleared_is_refused_before_anything_changes():
    model, (x, y) = rectifier_network()
    steps = torch.optim.LBFGS(model[4].parameters())

    def closure():
        steps.zero_grad()
        value = LOSS(model(x), y)
        value.backward()
        return value

    steps.step(closure)
    before = model[4].weight.detach().clone()
    with pytest.raises(InputError, match=r"of 4.weight has no entry for each weight"):
        reset(model, optimizer=steps).step((x, y))
    assert torch.equal(model[4].weight, before)


@pytest.mark.parametrize(
    "choices, sentence",
    [
        ({"k": 0}, r"k must be a percentage between 0 and 100, both excluded, got 0"),
        ({"k": 100}, r"k must be a percentage between 0 and 100"),
        ({"k": float("nan")}, r"k must be a percentage"),
        ({"layers": 4}, r"layers must be between 1 and 3, the number that have weights, got 4"),
        ({"layers": 0}, r"layers must be between 1 and 3"),
        ({"layers": "4.wieght"}, r"no trainable parameter matches '4.wieght'; did you mean '4.weight'\?"),
        ({"layers": ["4", "1"]}, r"layer '1' is a ReLU without parameters"),
        ({"layers": "4.bias"}, r"'4.bias' has no weight of two or more dimensions"),
        ({"score": "max"}, r"score must be one of sum, mean, diagonal, got 'max'"),
        ({"unit": "unit"}, r"unit must be one of weight, row, column"),
        ({"scope": "all"}, r"scope must be one of layer, pooled"),
        ({"select": "middle"}, r"select must be one of top, bottom, random"),
        ({"init": "he"}, r"init must be one of zeros, uniform, xavier, own, or a function"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)}, r"optimizer does not hold 4.weight"),
    ],
)
def test_wrong_choices_are_refused_with_a_sentence(choices, sentence):
    with pytest.raises(InputError, match=sentence):
        reset(rectifier_network()[0], **choices)


def test_tied_weights_are_refused():
    with pytest.raises(InputError, match=r"embed.weight is tied to out.weight"):
        reset(CASES["tied_weights"]().model, layers="out")
    with pytest.raises(InputError, match=r"0.weight is tied to 2.weight"):
        reset(CASES["shared_module"]().model, layers=2)


def test_an_embedding_that_has_no_way_of_drawing_is_refused_and_changes_nothing():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 2))

        def forward(self, x):
            return x @ self.w.T

    model = Bare()
    with pytest.raises(InputError, match=r"Bare, which owns w, has no reset_parameters"):
        reset(model, layers="w", init="own").step((torch.ones(4, 2), torch.zeros(4, dtype=torch.long)))
    assert bool((model.w == 1).all())


def test_new_values_that_are_no_numbers_are_refused_and_change_nothing():
    model, data = rectifier_network()
    before = model[4].weight.detach().clone()
    for values, sentence in (
        (float("nan"), "NaN or infinite values for 4.weight; nothing was reset"),
        (None, "NoneType"),
    ):
        made = (lambda shape, draw: None) if values is None else (lambda shape, draw: torch.full(shape, float("nan")))
        with pytest.raises(InputError, match=sentence):
            reset(model, init=made).step(data)
    assert torch.equal(model[4].weight, before)


def test_weights_are_those_that_the_model_has_when_a_step_is_taken():
    model, data = rectifier_network()
    again = reset(model, k=50)
    model.load_state_dict({name: p.clone() for name, p in model.state_dict().items()}, assign=True)
    found = again.step(data).coordinates["4.weight"]
    assert (model[4].weight.flatten()[found] == 0).all()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = reset(model, optimizer=optimizer)
    model[4].weight = nn.Parameter(model[4].weight.detach().clone())
    with pytest.raises(InputError, match="the optimizer does not hold"):
        held.step(data)


def test_weights_in_the_memory_of_others_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = nn.Parameter(model[0].weight.data.t())
    with pytest.raises(InputError, match="lies in the memory of"):
        CurvatureReinitializer(model, nn.CrossEntropyLoss())
    model[2].weight = nn.Parameter(torch.randn(1, 4).expand(4, 4))
    with pytest.raises(InputError, match="is an expanded tensor"):
        CurvatureReinitializer(model, nn.CrossEntropyLoss())
    lstm = nn.LSTM(3, 4)  # whose weights lie side by side in one memory
    assert CurvatureReinitializer(lstm, nn.CrossEntropyLoss()).names == ("weight_ih_l0", "weight_hh_l0")


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 2, groups=2), nn.ConvTranspose2d(4, 3, 2)], ids=["grouped", "transposed"]
)
def test_units_of_convolutions_whose_rows_are_none_are_refused(layer):
    with pytest.raises(InputError, match="rows and columns of weight are not its units"):
        CurvatureReinitializer(layer, nn.CrossEntropyLoss(), unit="row")
    CurvatureReinitializer(layer, nn.CrossEntropyLoss())
