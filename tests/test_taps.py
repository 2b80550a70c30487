"""Rows of known operations follow from their inputs and the cotangents of their outputs; all others are recognised."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, ggn_gram
from pyhessian_spectra.curvature.features import Plan
from pyhessian_spectra.curvature.rows import output_factors, tapped
from pyhessian_spectra.curvature.taps import Taps


class Twice(nn.Module):
    """One layer at two places, and a scale that is no known operation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 6), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x))) * self.scale


class Tokens(nn.Module):
    """Positions of all examples in one dimension, as some language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).view(len(x), -1)


class TimeFirst(nn.Module):
    """As many positions as examples, and these in the second dimension: shapes do not tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1).flatten(1)


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3, bias=False)), (6,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, (1, 2), dilation=(1, 2)), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(3),
        ),
        (2, 8, 8),
    ),
    "sequence": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.LayerNorm((3, 5)), nn.Flatten()), (2, 5)),
    "positions": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2), nn.Flatten()), (5, 3)
    ),
    "tokens": (Tokens, (5, 3)),
}  # fmt: skip


def risk_of(model, shape, count=7):
    torch.manual_seed(0)
    x = torch.randn(count, *shape, dtype=torch.float64)
    built = model().double()
    outputs = built.eval()(x)
    for p in built.parameters():  # no normalisation that multiplies by exactly one
        p.data += 0.1 * torch.randn_like(p)
    return EmpiricalRisk(built, nn.MSELoss(), (x, torch.randn_like(outputs.detach())))


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_derivatives_of_each_examples_outputs(name):
    risk = risk_of(*MODELS[name])
    point, batch = risk.point(), next(iter(risk.sample.read()))[1]
    factors = output_factors(risk.objective, point, batch)[:, :2]
    found = tapped(risk.objective, point, batch, factors)
    numbers = set(range(len(point.coordinates)))
    rows = found.rows(numbers)
    assert set(rows) == numbers and not found.others

    def outputs(i):
        return torch.func.functional_call(
            risk.model, dict(zip(risk.layout.names, point.coordinates, strict=True)), (batch.inputs[i : i + 1],)
        ).flatten()

    for i in range(len(factors)):
        for s in range(2):
            expected = torch.autograd.grad(outputs(i), point.coordinates, factors[i, s])
            for number, part in enumerate(expected):
                torch.testing.assert_close(rows[number][i, s], part.flatten(), rtol=1e-10, atol=1e-12)


def test_a_layer_at_two_places_adds_up_and_a_scale_is_told_apart():
    risk = risk_of(Twice, (6,))
    point, batch = risk.point(), next(iter(risk.sample.read()))[1]
    with Taps(point.coordinates, 7) as taps:
        risk.objective.run(point, batch, lambda: risk.objective.outputs(batch))
    names = list(risk.layout.names)
    assert [names[use.weight] for use in taps.uses] == ["layer.weight"] * 2
    assert taps.others == {names.index("scale")}


def test_what_is_seen_wrongly_is_found_out_and_taken_otherwise():
    risk = risk_of(TimeFirst, (4, 3), count=4)
    point, batch = risk.point(), next(iter(risk.sample.read()))[1]
    plan = Plan({0, 1})
    plan.try_out(risk.objective, point, batch, output_factors(risk.objective, point, batch))
    assert not plan.tapped
    dense = GGNOperator(risk).to_dense()
    torch.testing.assert_close(torch.from_numpy(ggn_gram(risk).eigenvalues()), torch.linalg.eigvalsh(dense))


def test_of_wide_layers_inputs_and_cotangents_are_kept_instead_of_rows():
    risk = risk_of(lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4)), (8, 3, 3))
    point, batch = risk.point(), next(iter(risk.sample.read()))[1]
    plan = Plan(set(range(4)))
    plan.try_out(risk.objective, point, batch, output_factors(risk.objective, point, batch))
    assert plan.tapped == {0, 1, 2, 3} and set(plan.paired) == {0, 2}
